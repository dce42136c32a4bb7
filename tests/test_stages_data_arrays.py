import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from stages.data.arrays import MAX_UNNAMED_CLASSES, mapped_npy
from stages.data.listing import in_words
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


def test_labels_npy_is_found(tmp_path: Path) -> None:
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


def test_a_rewritten_file_is_read_again(tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match=rf"photos\.npy: expected a complete npy.*{n_bytes} bytes"):
        open_source(path)


def test_truncated_labels_are_refused(tmp_path: Path) -> None:
    path = _npy(tmp_path)
    labels = tmp_path / "photos-labels.npy"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"photos-labels\.npy: expected a complete npy"):
        open_source(path)


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path, images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="complete npz"):
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


def test_labels_other_than_integers_are_refused(tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match="complete npy file of numbers"):
        open_source(path)


def test_a_replaced_file_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 1)):
        np.save(tmp_path / f"{name}.npy", np.full(9, value, np.uint8))
        os.utime(tmp_path / f"{name}.npy", (1e9, 1e9))
    assert mapped_npy(tmp_path / "a.npy")[0] == 0
    (tmp_path / "b.npy").replace(tmp_path / "a.npy")
    assert mapped_npy(tmp_path / "a.npy")[0] == 1


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("x_test", "y_test"),
        ("X_train", "y_train"),
        ("X", "Y"),
        ("test_x", "test_y"),
        ("images", "labels"),
        ("test_images", "test_labels"),
        ("images-test", "targets-test"),
        ("data", "targets"),
    ],
)
@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_labels_are_found_under_the_evident_name(
    tmp_path: Path, images: str, labels: str, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / f"{images}.npy", IMAGES)
    np.save(tmp_path / f"{labels}.npy", LABELS.reshape(shape))
    source = open_source(tmp_path / f"{images}.npy")
    assert source.how_to_label == ""
    assert source.read(0, 20).columns["label"].tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("images", "other"),
    [("scan-x", "scan-y"), ("fox", "foy"), ("max_test", "may_test"), ("photos", "y_test")],
)
def test_other_names_are_not_used_as_labels(tmp_path: Path, images: str, other: str) -> None:
    np.save(tmp_path / f"{images}.npy", IMAGES)
    np.save(tmp_path / f"{other}.npy", LABELS)
    source = open_source(tmp_path / f"{images}.npy")
    assert source.class_names == ()
    assert source.how_to_label == (
        f"save class numbers, one for each image, as {images}-labels.npy beside {images}.npy"
    )


def test_label_files_of_earlier_versions_still_take_precedence(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    before = open_source(tmp_path / "x.npy").fingerprint()
    np.save(tmp_path / "y.npy", LABELS + 1)
    assert open_source(tmp_path / "x.npy").fingerprint() == before


def test_other_labels_beside_an_array_are_listed_as_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "x_test.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    assert open_source(tmp_path / "x_test.npy").left_out == ()
    np.save(tmp_path / "y_test.npy", LABELS)
    (left_out,) = open_source(tmp_path / "x_test.npy").left_out
    assert in_words([left_out]) == "1 skipped because labels are in labels.npy (y_test.npy)"


def test_links_to_one_file_of_labels_count_once(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    (tmp_path / "targets.npy").symlink_to("labels.npy")
    assert open_source(tmp_path / "images.npy").left_out == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(4)[LABELS], r"y_test.npy: labels are float64, .* rows with array.argmax\(axis=1\)"),
        (LABELS[:19], r"y_test.npy: labels are \[19\], expected one per image: \[20\]"),
    ],
)
def test_labels_under_the_evident_name_that_do_not_fit_are_refused(
    tmp_path: Path, labels: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "x_test.npy", IMAGES)
    np.save(tmp_path / "y_test.npy", labels)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "x_test.npy")


def test_an_archive_without_labels_is_listed(tmp_path: Path) -> None:
    source = open_source(_npz(tmp_path, images=IMAGES, y=LABELS))
    assert source.how_to_label == (
        "save class numbers, one for each image, as the array 'labels' in photos.npz, which "
        "contains images, y"
    )
    unknown = np.full(20, -1)
    assert open_source(_npz(tmp_path, images=IMAGES, labels=unknown)).how_to_label == ""


@pytest.mark.parametrize(
    ("shape", "one"),
    [
        ((32, 32, 3), "array[None]"),
        ((28, 28, 1), "array[None]"),
        ((300, 200, 3), "array[None]"),
        ((32, 32, 4), "array[None, ..., :3]"),
        ((3, 32, 32), "array.transpose(1, 2, 0)[None]"),
    ],
)
def test_an_array_that_may_be_one_image_is_refused(
    tmp_path: Path, shape: tuple[int, ...], one: str
) -> None:
    path = _npy(tmp_path, np.zeros(shape, dtype=np.uint8), None)
    n, height, width = shape
    with pytest.raises(InputError) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path}: {list(shape)} may be one image or {n} grey ones of {height}x{width}, expected "
        f"[n, H, W, C]; save {one} for one image, array[..., None] for {n} grey ones"
    )


def test_conversions_named_in_the_error_open_as_one_or_many_images(tmp_path: Path) -> None:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    assert open_source(_npy(tmp_path, image[None], None)).n_rows == 1
    assert open_source(_npy(tmp_path, image[..., None], None)).n_rows == 32
    chw = np.zeros((3, 32, 32), dtype=np.uint8)
    assert open_source(_npy(tmp_path, chw.transpose(1, 2, 0)[None], None)).n_rows == 1


@pytest.mark.parametrize("shape", [(32, 32, 3), (3, 32, 32)])
def test_a_label_per_row_determines_the_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.zeros(shape, dtype=np.uint8)
    assert open_source(_npy(tmp_path, images, np.zeros(shape[0], int))).n_rows == shape[0]
    with pytest.raises(InputError, match="may be one image or"):
        open_source(_npy(tmp_path, images, np.zeros(1, int)))
    with pytest.raises(InputError, match="may be one image or"):
        open_source(_npy(tmp_path, images, np.array(0)))


@pytest.mark.parametrize(
    ("images", "way_out"),
    [
        (np.zeros((9, 3, 8, 8), np.uint8), "save array.transpose(0, 2, 3, 1)"),
        (np.zeros((9, 1, 8, 8), np.uint8), "save array.transpose(0, 2, 3, 1)"),
        (np.zeros((9, 8, 8, 4), np.uint8), "save array[..., :3]"),
        (np.zeros((9, 4, 8, 8), np.uint8), "save array[:, :3].transpose(0, 2, 3, 1)"),
        (np.zeros((8, 8), np.uint8), "save array[None]"),
        (np.zeros((9, 8, 8, 3)), "(255 * array).round().astype('uint8')"),
        (np.zeros((9, 8, 8, 3), np.int64), "convert them first"),
    ],
)
def test_another_shape_is_refused_with_a_conversion(
    tmp_path: Path, images: np.ndarray, way_out: str
) -> None:
    with pytest.raises(InputError) as caught:
        open_source(_npy(tmp_path, images, None))
    assert str(caught.value).endswith(way_out)
