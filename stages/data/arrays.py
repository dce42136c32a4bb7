"""Images in ``.npy`` and ``.npz`` files, and the checks that every array of images passes."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pipeline.memory import limit_bytes
from stages.data.array_labels import how_to_label, labels_beside
from stages.data.array_shapes import check_unambiguous, how_to_convert
from stages.data.class_names import numbers
from stages.data.fingerprint import file_content
from stages.data.regular import require_regular
from stages.data.resize import Resize
from stages.data.source import ArrayReader, ReaderSource
from stages.errors import DataNotFoundError, InputError

# Without class names, larger labels are taken for a mistake (ids, floats read as integers).
MAX_UNNAMED_CLASSES = 65_536

_READ_ERRORS = (
    ValueError,
    EOFError,
    OSError,
    MemoryError,  # a header can claim any shape
    OverflowError,
    SyntaxError,  # the header is parsed as a Python literal: no code runs, but it may not parse
    TypeError,
    tokenize.TokenError,
    NotImplementedError,  # an encrypted zip, or one with another compression method
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)  # raised when reading bytes that are not an archive of arrays

Stamp = tuple[int, ...]
"""Identifies a version of a file: changes if it is rewritten or replaced."""


def array_source(path: Path, name: str, split: str, resizing: Resize) -> ReaderSource:
    """A source over one ``.npy`` or ``.npz`` file; it has one split, whatever that is called.

    A ``.npy`` is memory-mapped; its labels are beside it in ``<stem>-labels.npy``, in
    ``labels.npy``, or under a usual name: ``y_test.npy`` beside ``x_test.npy``,
    ``test_labels.npy`` beside ``test_images.npy``. A ``.npz`` has ``images`` and optionally
    ``labels`` and ``class_names``; it is loaded whole. Without labels every label is -1.

    Raises:
        InputError: a file is truncated, or an array has an unexpected dtype, shape or length.
    """
    label_path, left_out = labels_beside(path) if path.suffix == ".npy" else (None, ())
    load = partial(load_pair, path, label_path, _stamp(path), label_path and _stamp(label_path))
    images, labels = load()
    given_names = _names_in(path)
    class_names = given_names or numbers(int(labels.max()) + 1)
    check_label_range(labels, len(class_names), str(label_path or path))
    files = {"images" + path.suffix: path} | ({"labels.npy": label_path} if label_path else {})
    native = images.shape[1:3]
    return ReaderSource(
        name=name,
        split=split,
        family=name,
        class_names=class_names,
        resizing=resizing,
        native=(native[0], native[1]),
        n_rows=len(images),
        reader=ArrayReader(load, partial(file_content, files), split),
        is_named=bool(given_names),
        left_out=left_out,
        how_to_label="" if label_path or (labels >= 0).any() else how_to_label(path),
    )


@lru_cache(maxsize=4)
def load_pair(
    path: Path, label_path: Path | None, stamp: Stamp, label_stamp: Stamp | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Checked images and labels of one file; the stamps invalidate the cache on a rewrite."""
    del stamp, label_stamp  # part of the cache's key only
    if path.suffix == ".npz":
        members = _npz_members(path, ("images", "labels"))
        if "images" not in members:
            raise InputError(f"{path}: has no array 'images'; save it with images=, labels=")
        images, labels = members["images"], members.get("labels")
    else:
        images, labels = open_npy(path), open_npy(label_path) if label_path else None
    checked = checked_images(images, str(path))
    if labels is None or labels.shape[:1] != checked.shape[:1]:
        check_unambiguous(checked, str(path))
    if labels is None:
        return checked, np.full(len(checked), -1, dtype=np.int64)
    return checked, checked_labels(labels, len(checked), str(label_path or path))


def open_npy(path: Path) -> NDArray[Any]:
    """Memory-map a ``.npy`` file for reading.

    Raises:
        DataNotFoundError: the file does not exist.
        InputError: it is truncated, not an npy file, or has Python objects (never unpickled).
    """
    try:
        require_regular(path)
        if is_archive := zipfile.is_zipfile(path):
            array: NDArray[Any] = np.empty(0)
        else:  # unlike np.load, this never leaves a damaged file open
            array = open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except _READ_ERRORS as error:
        raise InputError(
            f"{path}: expected a complete npy file of numbers, found {path.stat().st_size} bytes "
            f"that are not one ({_one_line(error)}); write or copy it again"
        ) from error
    if is_archive:
        raise InputError(f"{path}: is an npz archive; name it .npz")
    return array


def mapped_npy(path: Path) -> NDArray[Any]:
    """Like `open_npy`, but the mapping is cached until the file changes.

    Removing a mapping stops all threads of the process: doing so after each batch takes a fifth of
    an extraction. Raises what `open_npy` raises.
    """
    return _mapped(path, _stamp(path))


@lru_cache(maxsize=4)
def _mapped(path: Path, stamp: Stamp) -> NDArray[Any]:
    del stamp  # part of the cache's key only
    return open_npy(path)


def checked_images(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Return the same array after checking that it holds 8-bit images.

    Raises:
        InputError: not ``uint8 [n, H, W]``, ``[n, H, W, 1]`` or ``[n, H, W, 3]``, or no rows.
    """
    is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not is_image or 0 in images.shape:
        raise InputError(
            f"{where}: images are {images.dtype} {list(images.shape)}, expected uint8 [n, H, W], "
            "[n, H, W, 1] or [n, H, W, 3] with values 0-255; "
            f"{how_to_convert(images) or 'convert them first'}"
        )
    return images


def checked_labels(labels: NDArray[Any], n_rows: int, where: str) -> NDArray[np.int64]:
    """Labels as ``int64 [n_rows]`` in memory, from integers ``[n_rows]`` or ``[n_rows, 1]``.

    Raises:
        InputError: not integers, or not one per image.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{where}: labels are {labels.dtype}, expected integers; save class numbers (convert "
            "one-hot rows with array.argmax(axis=1))"
        )
    if labels.shape == (n_rows, 1):
        labels = labels[:, 0]
    if labels.shape != (n_rows,):
        raise InputError(
            f"{where}: labels are {list(labels.shape)}, expected one per image: [{n_rows}]"
        )
    return np.array(labels, dtype=np.int64)


def check_label_range(labels: NDArray[np.int64], n_classes: int, where: str) -> None:
    """Refuse labels outside ``[-1, n_classes)``; -1 means unknown.

    Raises:
        InputError: the message names the first such row.
    """
    allowed = min(n_classes, MAX_UNNAMED_CLASSES)
    outside = np.flatnonzero((labels < -1) | (labels >= allowed))
    if len(outside):
        row = int(outside[0])
        raise InputError(
            f"{where}: the label of row {row} is {labels[row]}, expected 0 to {allowed - 1} "
            f"(or -1 if it is unknown); {len(outside)} rows are out of range"
        )


def _names_in(path: Path) -> tuple[str, ...]:
    members = _npz_members(path, ("class_names",)) if path.suffix == ".npz" else {}
    return tuple(str(name) for name in members.get("class_names", ()))


def _npz_members(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        require_regular(path)
        with path.open("rb") as file:  # numpy does not close a broken archive that it opened itself
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise InputError(f"{path}: is a single array; name it .npy")
            found = [name for name in names if name in archive.files]
            sizes = {each.filename: each.file_size for each in archive.zip.infolist()}
            check_memory(sum(sizes.get(f"{name}.npy", 0) for name in found), path)
            return {name: archive[name] for name in found}
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise InputError(
            f"{path}: expected a complete npz archive of numbers ({_one_line(error)}); write it "
            "again"
        ) from error


def check_memory(n_bytes: int, path: Path) -> None:
    """Refuse to unpack a file that would fill the memory: small files can expand to any size.

    Raises:
        InputError: it would take more than half of the memory.
    """
    most = limit_bytes() // 2
    if n_bytes > most:
        raise InputError(
            f"{path}: unpacks to {n_bytes:,} bytes, expected at most {most:,}, half of the memory "
            "that this process may use; save images as .npy, which is read in parts"
        )


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path}: no such file") from error
    return facts.st_ino, facts.st_ctime_ns, facts.st_mtime_ns, facts.st_size


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
