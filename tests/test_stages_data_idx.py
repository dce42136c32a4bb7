import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from stages.data.idx import read_idx
from stages.data.registry import open_source
from stages.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = (np.arange(12) % 10).astype(np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def _write(folder: Path, stem: str = "t10k", labels: np.ndarray = LABELS) -> Path:
    folder.mkdir(parents=True)
    (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(IMAGES)))
    (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return folder


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
    ],
)
def test_both_sets_are_found_in_both_layouts(tmp_path: Path, name: str, folder: str) -> None:
    _write(tmp_path / folder)
    source = open_source(name, "test", tmp_path, image_size=28)
    assert (source.name, source.n_rows, source.n_classes) == (name, 12, 10)
    assert (source.read(0, 12).images[..., 1] == IMAGES).all()
    assert source.read(3, 5).columns["label"].tolist() == [3, 4]


def test_train_is_read_from_the_train_files(tmp_path: Path) -> None:
    _write(tmp_path / "mnist", "train")
    assert open_source("mnist", "train", tmp_path).resize == "bilinear-antialias 28x28->32x32"


def test_plain_and_gzipped_files_have_one_fingerprint(tmp_path: Path) -> None:
    _write(tmp_path / "a" / "mnist")
    plain = tmp_path / "b" / "mnist"
    plain.mkdir(parents=True)
    (plain / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    (plain / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS))
    hashes = {open_source("mnist", "test", tmp_path / place).fingerprint() for place in "ab"}
    assert len(hashes) == 1


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "mnist") / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a complete gzip file"):
        open_source("mnist", "test", tmp_path)


def test_a_truncated_plain_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(idx_bytes(IMAGES)[:-1])
    with pytest.raises(InputError, match="the header states 9,408 values"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "data", [b"", b"\x00\x00", b"\x00\x00\x0d\x03" + bytes(20), b"\x89PNG" * 9]
)
def test_files_of_another_kind_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(InputError, match="expected an IDX file of bytes with 3 axes"):
        read_idx(path, 3)


def test_labels_of_another_length_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "mnist", labels=LABELS[:-1])
    with pytest.raises(InputError, match="expected one per image"):
        open_source("mnist", "test", tmp_path)


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "mnist", labels=LABELS + np.uint8(5))
    with pytest.raises(InputError, match="label of row 5 is 10, expected 0 to 9"):
        open_source("mnist", "test", tmp_path)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "mnist")
    with pytest.raises(InputError, match="neither train-images-idx3-ubyte nor"):
        open_source("mnist", "train", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("stem", ["t10k", "train"])
def test_names_with_a_dot_are_found(tmp_path: Path, suffix: str, name: str, stem: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    pack = gzip.compress if suffix else bytes
    (folder / f"{stem}-images.idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(IMAGES)))
    (folder / f"{stem}-labels.idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(LABELS)))
    source = open_source(name, "test" if stem == "t10k" else "train", tmp_path, image_size=28)
    assert (source.read(0, 12).images[..., 1] == IMAGES).all()
    assert source.read(3, 5).columns["label"].tolist() == [3, 4]


def test_a_name_with_a_hyphen_goes_before_one_with_a_dot(tmp_path: Path) -> None:
    folder = _write(tmp_path / "mnist")
    before = open_source("mnist", "test", tmp_path).fingerprint()
    (folder / "t10k-images.idx3-ubyte").write_bytes(idx_bytes(IMAGES[::-1]))
    assert open_source("mnist", "test", tmp_path).fingerprint() == before


def test_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "mnist") / "t10k-images-idx3-ubyte.gz"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="contains neither"):
        open_source("mnist", "test", tmp_path)
    with pytest.raises(InputError, match="expected a regular file, found a named pipe"):
        read_idx(path, 3)
