"""MNIST and Fashion-MNIST: images and labels in IDX files, gzipped or plain.

IDX (http://yann.lecun.com/exdb/mnist): two zero bytes, a type (8 = uint8), the number of axes, each
axis as a big-endian 32-bit integer, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.arrays import check_label_range, check_memory, checked_images, checked_labels
from stages.data.fingerprint import array_content
from stages.data.regular import require_regular
from stages.data.resize import Resize
from stages.data.source import ArrayReader, ReaderSource
from stages.errors import InputError

_UINT8 = 8
_STEMS = {"train": "train", "test": "t10k"}

MNIST_NAMES = tuple(str(digit) for digit in range(10))
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def idx_source(
    folder: Path, name: str, class_names: tuple[str, ...], split: str, resizing: Resize
) -> ReaderSource:
    """A source over the two IDX files of one split in ``folder``.

    Raises:
        InputError: a file is truncated or not an IDX file, or images and labels do not match.
    """
    images_path, labels_path = idx_file(folder, split, 3), idx_file(folder, split, 1)
    stamp = (images_path.stat().st_mtime_ns, labels_path.stat().st_mtime_ns)
    load = partial(load_idx_pair, images_path, labels_path, stamp)
    images, labels = load()
    check_label_range(labels, len(class_names), str(labels_path))
    return ReaderSource(
        name=name,
        split=split,
        family=name,
        class_names=class_names,
        resizing=resizing,
        native=(images.shape[1], images.shape[2]),
        n_rows=len(images),
        reader=ArrayReader(load, partial(_content, load), split),
    )


def idx_file(folder: Path, split: str, n_axes: int) -> Path:
    """The file of one split: images (3 axes) or labels (1 axis), plain before gzipped.

    ``train-images-idx3-ubyte`` is tried before ``train-images.idx3-ubyte``, the name on some
    mirrors.

    Raises:
        InputError: neither exists.
    """
    kind = "images" if n_axes == 3 else "labels"
    names = [f"{_STEMS[split]}-{kind}{mark}idx{n_axes}-ubyte" for mark in "-."]
    for path in (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")):
        if path.is_file():
            return path
    raise InputError(
        f"{folder}: contains neither {names[0]} nor {names[1]}, with or without .gz; download the "
        "data set again"
    )


@lru_cache(maxsize=4)
def load_idx_pair(
    images_path: Path, labels_path: Path, stamp: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Checked images and labels; the stamp invalidates the cache if a file is rewritten."""
    del stamp  # part of the cache's key only
    images = checked_images(read_idx(images_path, 3), str(images_path))
    return images, checked_labels(read_idx(labels_path, 1), len(images), str(labels_path))


def read_idx(path: Path, n_axes: int) -> NDArray[np.uint8]:
    """The values of an IDX file of bytes with ``n_axes`` axes.

    Raises:
        InputError: it is truncated, or has another type or number of axes.
    """
    try:
        require_regular(path)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            shape = _shape(path, file.read(4 + 4 * n_axes), n_axes)
            n_bytes = math.prod(shape)
            check_memory(n_bytes, path)
            data = file.read(n_bytes + 1)  # one more byte than expected
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: not a complete gzip file ({error}); download it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) != n_bytes:
        found = f"{len(data):,}" if len(data) < n_bytes else "more"
        raise InputError(
            f"{path}: the header states {n_bytes:,} values {list(shape)}, found {found}; "
            "download it again"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, n_axes: int) -> tuple[int, ...]:
    if len(header) < 4 + 4 * n_axes or header[:4] != bytes((0, 0, _UINT8, n_axes)):
        raise InputError(
            f"{path}: expected an IDX file of bytes with {n_axes} axes, its first bytes are "
            f"{header[:4].hex()}; download it again"
        )
    return struct.unpack(f">{n_axes}I", header[4:])


def _content(load: partial[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> str:
    return array_content(*load())  # decoded, so that gzipped and plain files hash equally
