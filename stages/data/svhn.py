"""SVHN, street view house numbers, from its published MATLAB files of 32x32 crops."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.arrays import (
    Stamp,
    check_label_range,
    check_memory,
    checked_images,
    checked_labels,
)
from stages.data.fingerprint import array_content
from stages.data.idx import MNIST_NAMES
from stages.data.resize import Resize
from stages.data.source import ArrayReader, ReaderSource
from stages.errors import InputError

MARKER = "*_32x32.mat"
N_OF_CLASS = 1_000
"""Number of test images per class that OOD benchmarks use: the first ones in the file."""


def svhn_source(
    folder: Path,
    split: str,
    resizing: Resize,
    *,
    name: str = "svhn",
    n_of_class: int | None = None,
) -> ReaderSource:
    """SVHN's 73,257 + 26,032 images, digits 0 to 9.

    Args:
        folder: folder that contains ``train_32x32.mat`` and ``test_32x32.mat``.
        split: ``train`` or ``test``.
        resizing: how images become those of ``read``.
        name: name of the source.
        n_of_class: use only the first images of each class, in the order of the file.

    Raises:
        InputError: the file is missing, truncated, or has other content.
    """
    path = folder / f"{split}_32x32.mat"
    if not path.is_file():
        raise InputError(f"{folder}: has no {path.name}; `intro-pipe datasets --download svhn`")
    facts = path.stat()
    load = partial(load_svhn, path, (facts.st_mtime_ns, facts.st_size), n_of_class)
    images, _ = load()
    return ReaderSource(
        name=name,
        split=split,
        family="svhn",
        class_names=MNIST_NAMES,
        resizing=resizing,
        native=(images.shape[1], images.shape[2]),
        n_rows=len(images),
        reader=ArrayReader(load, partial(_content, load), split),
    )


@lru_cache(maxsize=2)
def load_svhn(
    path: Path, stamp: Stamp, n_of_class: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Checked images and labels; the stamp invalidates the cache if the file is rewritten."""
    del stamp  # part of the cache's key only
    images, labels = read_mat(path)
    if n_of_class is None:
        return images, labels
    of_class = [np.flatnonzero(labels == digit)[:n_of_class] for digit in range(10)]
    rows = np.sort(np.concatenate(of_class))
    return images[rows], labels[rows]


def read_mat(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read images ``uint8 [n, 32, 32, 3]`` and labels ``[n]`` from ``X [32, 32, 3, n]`` and ``y``.

    ``y [n, 1]`` in the file uses 10 for the digit 0.

    Raises:
        InputError: the arrays are missing or truncated, or it is not a MATLAB file.
    """
    from scipy import io

    try:
        shapes = {name: shape for name, shape, _ in io.whosmat(path)}
        check_memory(sum(map(math.prod, shapes.values())), path)
        found = io.loadmat(path, variable_names=("X", "y"))
        raw = np.asarray(found["y"]).reshape(-1)
        pixels = np.moveaxis(np.asarray(found["X"]), 3, 0)
    except InputError:
        raise
    except Exception as error:  # scipy raises nearly anything on a broken file
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: expected a MATLAB file with X [32, 32, 3, n] and y [n, 1] ({why}); download "
            "it again with `intro-pipe datasets --download svhn`"
        ) from error
    images = checked_images(np.ascontiguousarray(pixels), str(path))
    labels = checked_labels(raw, len(images), str(path))
    labels[labels == 10] = 0
    check_label_range(labels, 10, str(path))
    return images, labels


def _content(load: partial[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> str:
    return array_content(*load())
