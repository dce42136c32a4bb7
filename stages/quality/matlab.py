"""Read named numeric arrays of a MATLAB file from elsewhere, in bounded memory."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from stages.data.regular import refused, require_regular
from stages.errors import InputError

MOST_BYTES = 64 * 2**20
"""Largest file that is read, and largest array in it, unpacked."""

_HEADER_BYTES, _COMPRESSED = 128, 15
_CHUNK_BYTES = 2**20


def read_arrays(
    path: Path, names: tuple[str, ...], more: tuple[str, ...] = ()
) -> dict[str, Any]:  # Any: numpy arrays of any type
    """Arrays of a MATLAB file: those of ``names`` must exist, those of ``more`` may.

    No code of the file runs: `scipy.io.loadmat` parses numbers and texts.

    Raises:
        InputError: the file is damaged, too large, in the HDF5 format of MATLAB 7.3, or lacks one
            of the arrays or has it twice.
    """
    from scipy import io

    check_size(path)
    expected = f"expected a MATLAB file with {', '.join(names)}"
    try:
        _check_unpacked(path)
        listed = [name for name, _, _ in io.whosmat(path)]
        twice = [name for name in (*names, *more) if listed.count(name) > 1]
        found = {} if twice else io.loadmat(path, variable_names=(*names, *more))
    except InputError:
        raise
    except NotImplementedError as error:
        raise InputError(
            f"{path}: {expected}, found the HDF5 format of MATLAB 7.3: save it in MATLAB with -v7"
        ) from error
    except Exception as error:  # scipy raises nearly anything on a broken file
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: {expected} ({why})") from error
    if twice:
        raise InputError(f"{path}: {expected}, found {twice[0]} twice")
    if missing := [name for name in names if name not in found]:
        others = ", ".join(sorted(listed)[:8]) or "no array"
        raise InputError(f"{path}: {expected}, found no {missing[0]} but {others}")
    return found


def check_size(path: Path) -> None:
    """Raise ``InputError`` for anything but a regular file of at most `MOST_BYTES`."""
    with refused(path):
        require_regular(path)
        if (n_bytes := path.stat().st_size) > MOST_BYTES:
            raise InputError(f"{path}: {n_bytes:,} bytes, expected at most {MOST_BYTES:,}")


def _check_unpacked(path: Path) -> None:
    """Raise ``InputError`` if a compressed array unpacks to more than `MOST_BYTES`.

    A file of the format 5 has a header of 128 bytes, which ends in the order of bytes, and then
    arrays: four bytes for the type, four for the length, and the content. Other files hold nothing
    compressed.
    """
    with path.open("rb") as file:
        order = {b"IM": "<", b"MI": ">"}.get(file.read(_HEADER_BYTES)[-2:])
        while order is not None and len(tag := file.read(8)) == 8:
            kind, n_bytes = struct.unpack(f"{order}II", tag)
            if kind == _COMPRESSED and _unpacked_bytes(file, n_bytes) > MOST_BYTES:
                raise InputError(
                    f"{path}: an array unpacks to more than {MOST_BYTES:,} bytes, expected less"
                )
            if kind != _COMPRESSED:
                file.seek(n_bytes, 1)


def _unpacked_bytes(file: BinaryIO, n_bytes: int) -> int:
    """Unpacked size of the next ``n_bytes``, counted until it exceeds `MOST_BYTES`."""
    inflate, n_found = zlib.decompressobj(), 0
    while n_bytes > 0 and (packed := file.read(min(n_bytes, _CHUNK_BYTES))):
        n_bytes -= len(packed)
        while packed and n_found <= MOST_BYTES:
            n_found += len(inflate.decompress(packed, _CHUNK_BYTES))
            packed = inflate.unconsumed_tail
    return n_found
