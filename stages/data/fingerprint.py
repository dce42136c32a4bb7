"""Cheap content hashes of arrays and files, independent of their location.

Small data is hashed completely. Large data is hashed by names, sizes and sampled bytes, so the hash
*can miss* a change that keeps the names and sizes of all files and lies between the sampled blocks:
one image rewritten inside an array of gigabytes, or a file of a large folder replaced by another of
exactly the same size. The data of each shard is recorded when it is read; this hash only serves to
distinguish data sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.anywhere import open_file, ranges, size_of
from stages.data.regular import refused

WHOLE_BYTES = 64 * 2**20  # up to this total size, everything is hashed
WHOLE_FILES = 8_192  # up to this many files, since opening one costs more than hashing it
BLOCK_BYTES = 64 * 2**10
BLOCKS_PER_FILE = 16  # in addition to the first and the last block


def array_content(*arrays: NDArray[Any]) -> str:
    """Hash of shapes, dtypes and all values, hex."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def file_content(files: Mapping[str, Path | str]) -> str:
    """Hash of a few files, at paths or URLs, each under a given name; hex.

    Files are hashed completely up to ``WHOLE_BYTES`` in total. Beyond that each is hashed by its
    size, its first and last block and ``BLOCKS_PER_FILE`` evenly spaced blocks; see the module's
    docstring for what that misses.
    """
    sizes = {name: size_of(str(path)) for name, path in files.items()}
    is_whole = sum(sizes.values()) <= WHOLE_BYTES
    digest = hashlib.sha256(b"whole\n" if is_whole else b"sampled\n")
    for name in sorted(files):
        digest.update(f"{name}\0{sizes[name]}\n".encode())
        with refused(files[name]):
            _update_with_file(digest, str(files[name]), sizes[name], is_whole)
    return digest.hexdigest()


def listing_content(root: Path, files: Sequence[tuple[str, int]]) -> str:
    """Hash of a folder's listing, hex: all names and sizes, and the bytes of a sample of files.

    A file that cannot be opened is hashed by its name and size: its row fails when it is read.

    Args:
        root: the folder that the names are relative to.
        files: ``(name, size in bytes)`` in the order of the rows; a size of -1 means that the file
            cannot be accessed and is not read.
    """
    digest = hashlib.sha256()
    for name, size_bytes in files:
        digest.update(f"{name}\0{size_bytes}\n".encode())
    n_sampled = min(len(files), WHOLE_FILES)
    for index in np.linspace(0, len(files) - 1, n_sampled).astype(int):
        name, size_bytes = files[index]
        if size_bytes >= 0:
            with suppress(OSError):
                path = str(root / name)
                _update_with_file(digest, path, size_bytes, size_bytes <= 2 * BLOCK_BYTES)
    return digest.hexdigest()


def _update_with_file(digest: Any, place: str, size_bytes: int, is_whole: bool) -> None:
    # Any: hashlib has no public name for the type of its hashes.
    if is_whole:
        with open_file(place) as file:
            while block := file.read(2**20):
                digest.update(block)
        return
    last = max(size_bytes - BLOCK_BYTES, 0)
    starts = np.linspace(0, last, BLOCKS_PER_FILE + 2).astype(int).tolist()
    for block in ranges(place, starts, [start + BLOCK_BYTES for start in starts]):
        digest.update(block)
