"""Images in ``.npy`` and ``.npz`` files, and the checks that every array of images passes."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.memory import machine_bytes
from stages.data.fingerprint import file_content
from stages.data.resize import resize_rule
from stages.data.source import ArrayReader, ReaderSource
from stages.errors import DataNotFoundError, InputError

# Labels beyond this are taken for a mistake (ids, floats read as integers) when nothing names them.
MAX_UNNAMED_CLASSES = 65_536

_NO_ARRAYS = (
    ValueError,
    EOFError,
    OSError,
    MemoryError,  # a header can promise any shape
    OverflowError,
    SyntaxError,  # it is read as a literal of Python's: no code, but with Python's errors
    TypeError,
    tokenize.TokenError,
    NotImplementedError,  # a zip of another kind: encrypted, or packed by another method
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)  # what reading bytes that are no archive of arrays raises

Stamp = tuple[int, ...]
"""Tells a file that was written again, or another one in its place."""


def array_source(path: Path, name: str, split: str, image_size: tuple[int, int]) -> ReaderSource:
    """A source over one ``.npy`` or ``.npz`` file; it has one split, whatever that is called.

    A ``.npy`` is memory-mapped; its labels lie beside it in ``<stem>-labels.npy`` or
    ``labels.npy``. A ``.npz`` holds ``images`` and, where they are known, ``labels`` and
    ``class_names``; it is loaded whole. Without labels every label is -1.

    Raises:
        InputError: a file is cut short, or an array has another dtype, shape or length.
    """
    label_path = _labels_beside(path) if path.suffix == ".npy" else None
    load = partial(load_pair, path, label_path, _stamp(path), label_path and _stamp(label_path))
    images, labels = load()
    class_names = _names_in(path) or tuple(str(k) for k in range(int(labels.max()) + 1))
    check_label_range(labels, len(class_names), str(label_path or path))
    files = {"images" + path.suffix: path} | ({"labels.npy": label_path} if label_path else {})
    native = images.shape[1:3]
    return ReaderSource(
        name=name,
        split=split,
        family=name,
        class_names=class_names,
        image_size=image_size,
        resize=resize_rule((native[0], native[1]), image_size),
        n_rows=len(images),
        reader=ArrayReader(load, partial(file_content, files), split),
    )


@lru_cache(maxsize=4)
def load_pair(
    path: Path, label_path: Path | None, stamp: Stamp, label_stamp: Stamp | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Checked images and labels of one file; the stamps make a rewritten file another file."""
    del stamp, label_stamp  # part of the cache's key only
    if path.suffix == ".npz":
        members = _npz_members(path, ("images", "labels"))
        if "images" not in members:
            raise InputError(f"{path}: holds no array 'images'; save it with images=, labels=")
        images, labels = members["images"], members.get("labels")
    else:
        images, labels = open_npy(path), open_npy(label_path) if label_path else None
    checked = checked_images(images, str(path))
    if labels is None:
        return checked, np.full(len(checked), -1, dtype=np.int64)
    return checked, checked_labels(labels, len(checked), str(label_path or path))


def open_npy(path: Path) -> NDArray[Any]:
    """A ``.npy`` file, memory-mapped for reading.

    Raises:
        DataNotFoundError: there is no such file.
        InputError: it is cut short, no npy file, or holds Python objects (never unpickled).
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path}: no such file") from error
    except _NO_ARRAYS as error:
        raise InputError(
            f"{path}: expected a whole npy file of numbers, found {path.stat().st_size} bytes that "
            f"do not make one ({_one_line(error)}); write or copy it again"
        ) from error
    if not isinstance(array, np.ndarray):  # a zip archive under the wrong name
        raise InputError(f"{path}: is an npz archive; name it .npz")
    return array


def mapped_npy(path: Path) -> NDArray[Any]:
    """What `open_npy` gives, mapped once for as long as the file stays as it is.

    Taking a mapping away stops all threads of the process: after each batch it costs a fifth of an
    extraction. Raises what `open_npy` raises.
    """
    return _mapped(path, _stamp(path))


@lru_cache(maxsize=4)
def _mapped(path: Path, stamp: Stamp) -> NDArray[Any]:
    del stamp  # part of the cache's key only
    return open_npy(path)


def checked_images(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """The same array, known to hold 8-bit images.

    Raises:
        InputError: not ``uint8 [n, H, W]``, ``[n, H, W, 1]`` or ``[n, H, W, 3]``, or without rows.
    """
    is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not is_image or 0 in images.shape:
        raise InputError(
            f"{where}: images are {images.dtype} {list(images.shape)}, expected uint8 [n, H, W], "
            "[n, H, W, 1] or [n, H, W, 3] with values 0-255; convert them first"
        )
    return images


def checked_labels(labels: NDArray[Any], n_rows: int, where: str) -> NDArray[np.int64]:
    """Labels as ``int64 [n_rows]`` in memory.

    Raises:
        InputError: not integers, or not one per image.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: labels are {labels.dtype}, expected integers")
    if labels.shape != (n_rows,):
        raise InputError(
            f"{where}: labels are {list(labels.shape)}, expected one per image: [{n_rows}]"
        )
    return np.array(labels, dtype=np.int64)


def check_label_range(labels: NDArray[np.int64], n_classes: int, where: str) -> None:
    """Refuse labels outside ``[-1, n_classes)``; -1 stands for unknown.

    Raises:
        InputError: names the first such row.
    """
    allowed = min(n_classes, MAX_UNNAMED_CLASSES)
    outside = np.flatnonzero((labels < -1) | (labels >= allowed))
    if len(outside):
        row = int(outside[0])
        raise InputError(
            f"{where}: the label of row {row} is {labels[row]}, expected 0 to {allowed - 1} "
            f"(or -1 where it is unknown); {len(outside)} rows are out of range"
        )


def _labels_beside(path: Path) -> Path | None:
    candidates = (path.with_name(f"{path.stem}-labels.npy"), path.with_name("labels.npy"))
    return next((place for place in candidates if place.is_file() and place != path), None)


def _names_in(path: Path) -> tuple[str, ...]:
    members = _npz_members(path, ("class_names",)) if path.suffix == ".npz" else {}
    return tuple(str(name) for name in members.get("class_names", ()))


def _npz_members(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # numpy leaves a broken archive open that it opened itself
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise InputError(f"{path}: is a single array; name it .npy")
            found = [name for name in names if name in archive.files]
            sizes = {each.filename: each.file_size for each in archive.zip.infolist()}
            check_memory(sum(sizes.get(f"{name}.npy", 0) for name in found), path)
            return {name: archive[name] for name in found}
    except InputError:
        raise
    except _NO_ARRAYS as error:
        raise InputError(
            f"{path}: expected a whole npz archive of numbers ({_one_line(error)}); write it again"
        ) from error


def check_memory(n_bytes: int, path: Path) -> None:
    """Refuse to unpack what would fill this machine: a small file can stand for any number.

    Raises:
        InputError: it takes more than half of the memory.
    """
    most = machine_bytes() // 2
    if n_bytes > most:
        raise InputError(
            f"{path}: unpacks to {n_bytes:,} bytes, expected {most:,} at most, half of "
            "this machine's memory; save images as .npy, which is read in parts"
        )


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path}: no such file") from error
    return facts.st_ino, facts.st_ctime_ns, facts.st_mtime_ns, facts.st_size


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
