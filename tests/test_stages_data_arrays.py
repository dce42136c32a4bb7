import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from stages.data.arrays import MAX_UNNAMED_CLASSES, mapped_npy
from stages.data.registry import open_source
from stages.errors import DataNotFoundError, InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


def _npy(folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray | None = LABELS) -> Path:
    path = folder / "photos.npy"
    np.save(path, images)
    if labels is not None:
        np.save(folder / "photos-labels.npy", labels)
    return path


def _npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "photos.npz", **arrays)
    return folder / "photos.npz"


def test_rows_of_a_npy_are_its_slices(tmp_path: Path) -> None:
    rows = open_source(_npy(tmp_path), image_size=6).read(5, 9)
    assert rows.images.shape == (4, 6, 6, 3)
    assert rows.columns["label"].tolist() == LABELS[5:9].tolist()
    assert rows.columns["sample_id"].tolist() == [f"test/{row:05d}" for row in range(5, 9)]
    assert rows.failed == {}


def test_npy_and_npz_give_the_same_rows(tmp_path: Path) -> None:
    npy = open_source(_npy(tmp_path)).read(0, 20)
    npz = open_source(_npz(tmp_path, images=IMAGES, labels=LABELS)).read(0, 20)
    assert (npy.images == npz.images).all()
    assert (npy.columns["label"] == npz.columns["label"]).all()


@pytest.mark.parametrize("shape", [(20, 6, 6), (20, 6, 6, 1), (20, 6, 6, 3)])
def test_grey_and_colour_shapes_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    source = open_source(_npy(tmp_path, np.zeros(shape, dtype=np.uint8)), image_size=6)
    assert source.read(0, 20).images.shape == (20, 6, 6, 3)


def test_labels_npy_beside_is_found(tmp_path: Path) -> None:
    path = _npy(tmp_path, labels=None)
    np.save(tmp_path / "labels.npy", LABELS)
    assert open_source(path).n_classes == 4


def test_without_labels_every_label_is_unknown(tmp_path: Path) -> None:
    source = open_source(_npy(tmp_path, labels=None))
    assert (source.read(0, 20).columns["label"] == -1).all()
    assert source.class_names == ()


def test_class_names_come_from_the_npz(tmp_path: Path) -> None:
    names = np.array(["a", "b", "c", "d", "e"])
    source = open_source(_npz(tmp_path, images=IMAGES, labels=LABELS, class_names=names))
    assert source.class_names == tuple(names.tolist())


def test_name_and_family_are_the_stem(tmp_path: Path) -> None:
    source = open_source(_npy(tmp_path))
    assert (source.name, source.family) == ("photos", "photos")


def test_a_folder_of_splits_is_one_data_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=LABELS)
    np.savez(tmp_path / "test.npz", images=IMAGES[:7], labels=LABELS[:7])
    assert open_source(tmp_path, "train").n_rows == 20
    assert open_source(tmp_path, "test").n_rows == 7


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    open_source(_npz(tmp_path, images=IMAGES, labels=LABELS)).read(0, 1)
    source = open_source(_npz(tmp_path, images=IMAGES[:9], labels=LABELS[:9]))
    assert source.n_rows == 9


def test_a_source_survives_pickling(tmp_path: Path) -> None:
    source = open_source(_npy(tmp_path))
    again = pickle.loads(pickle.dumps(source))
    assert (again.read(2, 5).images == source.read(2, 5).images).all()
    assert again.fingerprint() == source.fingerprint()


def test_the_fingerprint_follows_images_labels_size_and_limit(tmp_path: Path) -> None:
    path = _npy(tmp_path)
    hashes = [
        open_source(path).fingerprint(),
        open_source(path, image_size=16).fingerprint(),
        open_source(path, limit=10).fingerprint(),
    ]
    hashes.append(open_source(_npy(tmp_path, 255 - IMAGES)).fingerprint())
    hashes.append(open_source(_npy(tmp_path, IMAGES, LABELS[::-1])).fingerprint())
    assert len(set(hashes)) == 5


def test_the_fingerprint_does_not_follow_the_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = open_source(_npy(tmp_path / "a")), open_source(_npy(tmp_path / "b"))
    assert one.fingerprint() == two.fingerprint()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"nothing\.npy"):
        open_source(tmp_path / "nothing.npy")


@pytest.mark.parametrize("n_bytes", [0, 5, 100, 300])
def test_a_truncated_npy_is_refused(tmp_path: Path, n_bytes: int) -> None:
    path = _npy(tmp_path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(InputError, match=rf"photos\.npy: expected a whole npy.*{n_bytes} bytes"):
        open_source(path)


def test_truncated_labels_are_refused(tmp_path: Path) -> None:
    path = _npy(tmp_path)
    labels = tmp_path / "photos-labels.npy"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"photos-labels\.npy: expected a whole npy"):
        open_source(path)


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path, images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="whole npz"):
        open_source(path)


def test_a_file_under_the_wrong_suffix_is_refused(tmp_path: Path) -> None:
    npy = _npy(tmp_path)
    with pytest.raises(InputError, match=r"name it \.npy"):
        open_source(npy.rename(tmp_path / "a.npz"))
    npz = _npz(tmp_path, images=IMAGES)
    with pytest.raises(InputError, match=r"name it \.npz"):
        open_source(npz.rename(tmp_path / "b.npy"))


def test_a_npz_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no array 'images'"):
        open_source(_npz(tmp_path, x=IMAGES))


@pytest.mark.parametrize("images", [IMAGES.astype(np.float32) / 255, IMAGES.astype(np.int64)])
def test_another_dtype_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"images are (float32|int64).*expected uint8"):
        open_source(_npy(tmp_path, images))


@pytest.mark.parametrize("shape", [(20,), (20, 108), (20, 6, 6, 4), (20, 3, 6, 6), (0, 6, 6, 3)])
def test_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \[n, H, W\]"):
        open_source(_npy(tmp_path, np.zeros(shape, dtype=np.uint8)))


def test_labels_of_another_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels are \[19\], expected one per image: \[20\]"):
        open_source(_npy(tmp_path, labels=LABELS[:-1]))


def test_labels_that_are_no_integers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labels are float64"):
        open_source(_npy(tmp_path, labels=LABELS / 2))


@pytest.mark.parametrize("label", [-2, MAX_UNNAMED_CLASSES])
def test_labels_out_of_range_are_refused(tmp_path: Path, label: int) -> None:
    labels = LABELS.copy()
    labels[6] = label
    with pytest.raises(InputError, match=f"label of row 6 is {label}"):
        open_source(_npy(tmp_path, labels=labels))


def test_labels_beyond_the_class_names_are_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path, images=IMAGES, labels=LABELS, class_names=np.array(["a", "b", "c"]))
    with pytest.raises(InputError, match="label of row 3 is 3, expected 0 to 2"):
        open_source(path)


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "photos.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="whole npy file of numbers"):
        open_source(path)


def test_another_file_of_the_same_size_and_time_is_another_array(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 1)):
        np.save(tmp_path / f"{name}.npy", np.full(9, value, np.uint8))
        os.utime(tmp_path / f"{name}.npy", (1e9, 1e9))
    assert mapped_npy(tmp_path / "a.npy")[0] == 0
    (tmp_path / "b.npy").replace(tmp_path / "a.npy")
    assert mapped_npy(tmp_path / "a.npy")[0] == 1
