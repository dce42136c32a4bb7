import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from stages.data.cifar import BATCHES, CLASS_NAMES, cifar10_source, read_batch
from stages.data.resize import Resize
from stages.errors import DataNotFoundError, InputError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 3072), dtype=np.uint8)
LABELS = [3, 8, 8, 0, 6, 9]


def _text(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING, Python 2's str


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _python2_array(array: np.ndarray) -> bytes:
    rebuild = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _int(0) + b"\x85"
    dtype = b"cnumpy\ndtype\n(" + _text(b"u1") + _int(0) + _int(1) + b"tR("
    dtype += _int(3) + _text(b"|") + b"NNN" + _int(-1) + _int(-1) + _int(0) + b"tb"
    shape = b"(" + b"".join(_int(n) for n in array.shape) + b"t"
    state = b"(" + _int(1) + shape + dtype + b"\x89" + _text(array.tobytes()) + b"tb"
    return rebuild + _text(b"b") + b"tR" + state


def python2_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A pickle as Python 2 wrote it for the published batches: protocol 2, byte strings."""
    items = _text(b"batch_label") + _text(b"testing batch 1 of 1")
    items += _text(b"labels") + b"](" + b"".join(_int(label) for label in labels) + b"e"
    items += _text(b"data") + _python2_array(pixels)
    return b"\x80\x02}(" + items + b"u."


def _write(folder: Path, name: str, data: bytes) -> tuple[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return name, hashlib.md5(data).hexdigest()


def test_a_batch_is_read_as_rgb_images_and_labels(tmp_path: Path) -> None:
    name, md5 = _write(tmp_path, "batch", python2_batch(PIXELS, LABELS))
    images, labels = read_batch(tmp_path / name, md5)
    assert images.shape == (6, 32, 32, 3)
    assert images[4, 2, 7].tolist() == [PIXELS[4, plane * 1024 + 2 * 32 + 7] for plane in range(3)]
    assert labels.tolist() == LABELS


def test_batches_follow_each_other(tmp_path: Path) -> None:
    batches = {
        "train": (
            _write(tmp_path, "one", python2_batch(PIXELS[:4], LABELS[:4])),
            _write(tmp_path, "two", python2_batch(PIXELS[4:], LABELS[4:])),
        )
    }
    source = cifar10_source(tmp_path, "train", Resize((32, 32)), batches)
    assert (source.n_rows, source.resize, source.family) == (6, "none", "cifar10")
    assert source.read(3, 6).columns["label"].tolist() == LABELS[3:]
    assert source.read(3, 6).columns["sample_id"][0] == "train/00003"


def test_the_published_split_has_six_batches() -> None:
    assert [len(BATCHES[split]) for split in ("train", "test")] == [5, 1]
    assert len(CLASS_NAMES) == 10


def test_an_altered_batch_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(b"\x80\x02.")
    with pytest.raises(InputError, match="the published one is 40351d587109b95175f43aff81a1287e"):
        cifar10_source(tmp_path, "test", Resize((32, 32)))


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="data_batch_1: no such batch"):
        cifar10_source(tmp_path, "train", Resize((32, 32)))


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("the pickle ran code",)


def test_a_pickle_that_calls_anything_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, md5 = _write(tmp_path, "batch", pickle.dumps({"data": _Trap()}, protocol=2))
    with pytest.raises(InputError, match="print, which is not allowed"):
        read_batch(tmp_path / name, md5)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (PIXELS, LABELS[:-1], "expected one per image"),
        (PIXELS, [*LABELS[:-1], 10], "label of row 5 is 10"),
        (PIXELS[:, :-1], LABELS, "not a CIFAR batch"),
    ],
)
def test_batches_that_do_not_fit_are_refused(
    tmp_path: Path, pixels: np.ndarray, labels: list[int], message: str
) -> None:
    name, md5 = _write(tmp_path, "batch", python2_batch(np.ascontiguousarray(pixels), labels))
    with pytest.raises(InputError, match=message):
        read_batch(tmp_path / name, md5)


@pytest.mark.parametrize("data", [b"", b"\x80\x02}.", b"\x80\x02N.", b"text"])
def test_files_other_than_batches_are_refused(tmp_path: Path, data: bytes) -> None:
    name, md5 = _write(tmp_path, "batch", data)
    with pytest.raises(InputError, match="not a CIFAR batch"):
        read_batch(tmp_path / name, md5)
