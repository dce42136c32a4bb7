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
from stages.data.resize import resize_rule
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
    folder: Path, name: str, class_names: tuple[str, ...], split: str, image_size: tuple[int, int]
) -> ReaderSource:
    """A source over the two IDX files of one split in ``folder``.

    Raises:
        InputError: a file is cut short or no IDX file, or images and labels do not fit.
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
        image_size=image_size,
        resize=resize_rule((images.shape[1], images.shape[2]), image_size),
        n_rows=len(images),
        reader=ArrayReader(load, partial(_content, load), split),
    )


def idx_file(folder: Path, split: str, n_axes: int) -> Path:
    """The file of one split: images (3 axes) or labels (1 axis), plain before gzipped.

    Raises:
        InputError: neither is there.
    """
    kind = "images" if n_axes == 3 else "labels"
    stem = f"{_STEMS[split]}-{kind}-idx{n_axes}-ubyte"
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{folder}: holds neither {stem} nor {stem}.gz; download the set again")


@lru_cache(maxsize=4)
def load_idx_pair(
    images_path: Path, labels_path: Path, stamp: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Checked images and labels; the stamp makes a rewritten file another file."""
    del stamp  # part of the cache's key only
    images = checked_images(read_idx(images_path, 3), str(images_path))
    return images, checked_labels(read_idx(labels_path, 1), len(images), str(labels_path))


def read_idx(path: Path, n_axes: int) -> NDArray[np.uint8]:
    """The values of an IDX file of bytes with ``n_axes`` axes.

    Raises:
        InputError: it is cut short, or has another type or number of axes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            shape = _shape(path, file.read(4 + 4 * n_axes), n_axes)
            n_bytes = math.prod(shape)
            check_memory(n_bytes, path)
            data = file.read(n_bytes + 1)  # one more than there should be
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); download it again") from error
    if len(data) != n_bytes:
        found = f"{len(data):,}" if len(data) < n_bytes else "more"
        raise InputError(
            f"{path}: the header promises {n_bytes:,} values {list(shape)}, found {found}; "
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
    return array_content(*load())  # decoded, so that gzipped and plain files are the same data
