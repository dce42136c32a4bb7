"""CIFAR-10 from its published batches, which are Python pickles.

A pickle can run code. Therefore each batch is compared with its published md5 before it is opened,
and opened by an unpickler that can only build numpy arrays.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.arrays import check_label_range, checked_labels
from stages.data.regular import refused
from stages.data.resize import Resize
from stages.data.source import ArrayReader, ReaderSource
from stages.errors import DataNotFoundError, InputError

FOLDER = "cifar-10-batches-py"
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# md5 of each batch inside cifar-10-python.tar.gz, as torchvision 0.28 lists them.
BATCHES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    "test": (("test_batch", "40351d587109b95175f43aff81a1287e"),),
}
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)  # raised when reading another pickle, or a file that is not one
_REMEDY = "remove the folder and run `intro-pipe datasets --download cifar10`"


def cifar10_source(
    folder: Path,
    split: str,
    resizing: Resize,
    batches: Mapping[str, tuple[tuple[str, str], ...]] = BATCHES,
) -> ReaderSource:
    """CIFAR-10, 50,000 + 10,000 images of 32x32, from ``cifar-10-batches-py``.

    Args:
        folder: folder that contains the batches.
        split: ``train`` or ``test``.
        resizing: how images become those of ``read``.
        batches: file names and md5 sums of each split.

    Raises:
        InputError: a batch is missing, altered, or not a CIFAR batch.
    """
    load = partial(load_split, folder, batches[split])
    images, _ = load()
    return ReaderSource(
        name="cifar10",
        split=split,
        family="cifar10",
        class_names=CLASS_NAMES,
        resizing=resizing,
        native=(32, 32),
        n_rows=len(images),
        reader=ArrayReader(load, partial(_content, batches[split]), split),
    )


@lru_cache(maxsize=2)
def load_split(
    folder: Path, batches: tuple[tuple[str, str], ...]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images, ``uint8 [n, 32, 32, 3]``, and labels, ``int64 [n]``, of several batches in order."""
    parts = [read_batch(folder / name, md5) for name, md5 in batches]
    images = np.concatenate([images for images, _ in parts])
    return images, np.concatenate([labels for _, labels in parts])


def read_batch(path: Path, md5: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of one batch: rows of 1,024 red, 1,024 green and 1,024 blue values.

    Raises:
        InputError: it is missing, has another md5, or is not a CIFAR batch.
    """
    if not path.is_file():
        raise DataNotFoundError(f"{path}: no such batch of CIFAR-10; {_REMEDY}")
    with refused(path):
        data = path.read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(f"{path}: its md5 is {found}, the published one is {md5}; {_REMEDY}")
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        pixels, raw_labels = batch[b"data"], np.asarray(batch[b"labels"])
        images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    except _UNPICKLING_ERRORS as error:
        raise InputError(f"{path}: not a CIFAR batch ({error}); {_REMEDY}") from error
    if pixels.dtype != np.uint8:
        raise InputError(f"{path}: images are {pixels.dtype}, expected uint8; {_REMEDY}")
    labels = checked_labels(raw_labels, len(images), str(path))
    check_label_range(labels, len(CLASS_NAMES), str(path))
    return np.ascontiguousarray(images), labels


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays of numbers; any other class or function is refused."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return one of the three functions and classes that the pickle of an array uses."""
        # The first is numpy's own function, whichever module a version of numpy keeps it in.
        rebuild: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]  # typed as str | tuple
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy.core.multiarray", "_reconstruct"): rebuild,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return allowed[module, name]


def _content(batches: tuple[tuple[str, str], ...]) -> str:
    """Hash of the published md5 sums, with which each batch is compared when it is read."""
    return hashlib.sha256("\n".join(md5 for _, md5 in batches).encode()).hexdigest()
