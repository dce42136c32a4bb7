import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from stages.data.corruptions.names import CORRUPTIONS
from stages.data.registry import open_source
from stages.errors import DataNotFoundError, InputError

N_IMAGES = 4
LABELS = np.array([7, 1, 1, 9], dtype=np.uint8)


def _array(code: int) -> np.ndarray:
    """Every pixel of row ``r`` of corruption ``code`` is ``20 * code + r``."""
    values = (20 * code + np.arange(5 * N_IMAGES)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (5 * N_IMAGES, 32, 32, 3)).copy()


def _write(folder: Path, names: tuple[str, ...] = ("fog", "blur", "snow")) -> Path:
    folder.mkdir()
    for code, name in enumerate(sorted(names)):
        np.save(folder / f"{name}.npy", _array(code % 12))
    np.save(folder / "labels.npy", np.tile(LABELS, 5))
    return folder


def test_rows_are_ordered_by_corruption_severity_and_image(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path / "photos-c"))
    columns = source.read(0, source.n_rows).columns
    assert source.n_rows == 3 * 5 * N_IMAGES
    assert columns["corruption"].tolist() == [n for n in ("blur", "fog", "snow") for _ in range(20)]
    assert columns["severity"].tolist() == [s for s in range(1, 6) for _ in range(N_IMAGES)] * 3
    assert columns["label"].tolist() == LABELS.tolist() * 15
    assert columns["sample_id"][20 + 3 * N_IMAGES + 2] == "fog/4/00002"


def test_a_range_across_arrays_reads_the_same_images(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path / "photos-c"))
    assert source.read(17, 44).images[:, 0, 0, 0].tolist() == list(range(17, 44))
    assert source.read(25, 25).images.shape == (0, 32, 32, 3)


def test_pieces_equal_the_whole(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path / "photos-c"))
    whole = source.read(0, 60)
    pieces = [source.read(start, min(start + 7, 60)) for start in range(0, 60, 7)]
    assert (np.concatenate([piece.images for piece in pieces]) == whole.images).all()
    assert all(
        (np.concatenate([piece.columns[name] for piece in pieces]) == column).all()
        for name, column in whole.columns.items()
    )


def test_facts_of_a_folder(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path / "photos-c"))
    assert (source.name, source.family, source.split) == ("photos-c", "photos", "test")
    assert source.extra_columns == (("corruption", "string"), ("severity", "int64"))
    assert source.n_classes == 10


def test_family_and_classes_come_from_the_plan(tmp_path: Path) -> None:
    folder = _write(tmp_path / "anything")
    names = [f"class {k}" for k in range(12)]
    plan = {"inputs": {"source": {"family": "photos", "class_names": names}}}
    (folder / "plan.json").write_text(json.dumps(plan))
    source = open_source(folder)
    assert (source.family, source.class_names) == ("photos", tuple(names))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"inputs": {"source": {"family": "x"}}}'])
def test_an_empty_plan_is_refused(tmp_path: Path, text: str) -> None:
    folder = _write(tmp_path / "photos-c")
    (folder / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"plan\.json: expected JSON with family"):
        open_source(folder)


@pytest.mark.parametrize("folder", ["CIFAR-10-C", "cifar10c"])
def test_cifar10c_is_found_in_the_data_root(tmp_path: Path, folder: str) -> None:
    _write(tmp_path / folder, CORRUPTIONS)
    source = open_source("cifar10c", data_root=tmp_path)
    assert (source.name, source.family, source.n_rows) == ("cifar10c", "cifar10", 19 * 20)
    assert source.class_names[0] == "airplane"


def test_all_nineteen_are_in_alphabetical_order() -> None:
    assert len(set(CORRUPTIONS)) == 19
    assert list(CORRUPTIONS) == sorted(CORRUPTIONS)


def test_missing_corruptions_of_cifar10c_are_named(tmp_path: Path) -> None:
    _write(tmp_path / "CIFAR-10-C", CORRUPTIONS[2:])
    with pytest.raises(DataNotFoundError, match=r"2 of 19 .* missing: brightness, contrast;"):
        open_source("cifar10c", data_root=tmp_path)


def test_missing_labels_of_cifar10c_are_named(tmp_path: Path) -> None:
    (_write(tmp_path / "CIFAR-10-C", CORRUPTIONS) / "labels.npy").unlink()
    with pytest.raises(DataNotFoundError, match=r"labels\.npy: no such file"):
        open_source("cifar10c", data_root=tmp_path)


def test_a_corrupted_set_has_no_train_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no split 'train'"):
        open_source(_write(tmp_path / "photos-c"), "train")
    with pytest.raises(InputError, match="has no split 'train'"):
        open_source("cifar10c", "train", tmp_path)


def test_labels_that_are_not_five_blocks_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "photos-c")
    np.save(folder / "labels.npy", np.tile(LABELS, 4)[:14])
    with pytest.raises(InputError, match="has 14 labels, expected 5 equal blocks"):
        open_source(folder)


def test_labels_that_change_between_severities_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "photos-c")
    labels = np.tile(LABELS, 5)
    labels[9] = 0
    np.save(folder / "labels.npy", labels)
    with pytest.raises(InputError, match="labels of severity 3 differ"):
        open_source(folder)


def test_an_array_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "photos-c")
    np.save(folder / "fog.npy", _array(1)[:16])
    with pytest.raises(InputError, match=r"fog\.npy: has 16 rows, expected 20: 5 severities of 4"):
        open_source(folder)


def test_a_rotation_alone_has_fifteen_severities(tmp_path: Path) -> None:
    folder = tmp_path / "photos-rotations"
    folder.mkdir()
    np.save(folder / "rotation.npy", np.repeat(_array(1), 3, axis=0))
    np.save(folder / "labels.npy", np.tile(LABELS, 15))
    source = open_source(folder)
    severities = source.read(0, source.n_rows).columns["severity"]
    assert severities.tolist() == [s for s in range(1, 16) for _ in range(N_IMAGES)]


def test_an_array_for_each_severity_is_refused_with_the_way_to_join_them(tmp_path: Path) -> None:
    folder = _write(tmp_path / "photos-rotations", ("rotation",))
    np.save(folder / "rotation.npy", np.zeros((15, N_IMAGES, 32, 32, 3), np.uint8))
    np.save(folder / "labels.npy", np.tile(LABELS, 15))
    with pytest.raises(InputError, match=r"is \[15, 4, 32, 32, 3\], expected .* reshape"):
        open_source(folder)


def test_a_truncated_array_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "photos-c")
    (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"fog\.npy: expected a complete npy file"):
        open_source(folder)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "photos-c")
    np.save(folder / "fog.npy", _array(1) / np.float32(255))
    with pytest.raises(InputError, match=r"fog\.npy: images are float32"):
        open_source(folder)


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "photos-c")
    np.save(folder / "fog.npy", _array(1)[:, :16])
    with pytest.raises(InputError, match=r"several sizes: .*fog \[16, 32\]"):
        open_source(folder)


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "cifar10c", CORRUPTIONS)
    np.save(folder / "labels.npy", np.tile(LABELS + np.uint8(1), 5))
    with pytest.raises(InputError, match="label of row 3 is 10, expected 0 to 9"):
        open_source("cifar10c", data_root=tmp_path)


def test_the_fingerprint_follows_content_and_not_place(tmp_path: Path) -> None:
    one, two = _write(tmp_path / "one"), _write(tmp_path / "two")
    assert open_source(one).fingerprint() == open_source(two).fingerprint()
    np.save(two / "fog.npy", _array(7))
    assert open_source(one).fingerprint() != open_source(two).fingerprint()


def test_a_source_survives_pickling(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path / "photos-c"))
    again = pickle.loads(pickle.dumps(source))
    assert (again.read(15, 30).images == source.read(15, 30).images).all()
