"""Check how much memory a file of ``torch.save`` would need, before torch reads it."""

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickletools import OpcodeInfo, genops
from typing import IO

from pipeline.memory import limit_bytes
from stages.errors import InputError

_ZIP = b"PK\3\4"
"""Start of a file by which torch recognises an archive."""

_END, _LOCATOR, _END64 = 22, 20, 56
"""Sizes of the records at the end of an archive; the last two are for large archives."""

_N_PICKLES = 5
"""Number of pickles at the start of files of torch before 1.6; tensors follow them."""

_ALLOCATING = (
    "builtins bytearray",
    "__builtin__ bytearray",
    "torch._utils _rebuild_device_tensor_from_cpu_tensor",
)
"""Calls allowed by torch with which a pickle can allocate arbitrary memory."""

_OBJECT_BYTES, _CHARACTER_BYTES = 100, 4

_PUT, _GET = ("BINPUT", "LONG_BINPUT", "PUT"), ("BINGET", "LONG_BINGET", "GET")
_INTO = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_CALLS = ("REDUCE", "NEWOBJ")


def check_archive(path: Path) -> None:
    """Refuse files that would take much more memory than they have bytes.

    ``torch.save`` stores its members uncompressed, so together they are never larger than the file.

    Raises:
        InputError: it would, or it contains a program.
        ValueError, LookupError, OSError, zipfile.BadZipFile: it is damaged.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            for _ in range(_N_PICKLES):
                _check_pickle(file, path)
            return
    n_in_file = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_directory(path, n_in_file - _END - len(archive.comment))
        if any(each.filename.partition("/")[2] == "constants.pkl" for each in members):
            raise InputError(
                f"weights {path}: a TorchScript program, expected only tensors: save "
                "module.state_dict(), preferably as .safetensors"
            )
        if (n_bytes := sum(each.file_size for each in members)) > n_in_file:
            raise InputError(
                f"weights {path}: unpacks to {n_bytes:,} bytes from {n_in_file:,}, expected an "
                "uncompressed archive, as written by torch.save; save module.state_dict() again"
            )
        for member in members:
            if member.filename.endswith("data.pkl"):
                with archive.open(member) as file:
                    _check_pickle(file, path)


def _check_directory(path: Path, end: int) -> None:
    """Check that torch finds the same list of members as ``zipfile``, which ends at ``end``.

    Torch reads it from the place that the file states; ``zipfile``, from directly before the end.
    """
    first = end - _LOCATOR - _END64
    with path.open("rb") as file:
        file.seek(max(first, 0))
        tail = file.read(end + _END - max(first, 0))
    record, locator = tail[-_END:], tail[-_END - _LOCATOR : -_END]
    n_bytes, start = struct.unpack_from("<LL", record, 12)
    if locator.startswith(b"PK\6\7"):
        if struct.unpack_from("<Q", locator, 8)[0] != first or not tail.startswith(b"PK\6\6"):
            raise ValueError("its list of members is not at its end")
        n_bytes, start = struct.unpack_from("<QQ", tail, 40)
        end = first
    if not record.startswith(b"PK\5\6") or start + n_bytes != end:
        raise ValueError("its list of members is not at its end")


def _check_pickle(file: IO[bytes], path: Path) -> None:
    """Refuse a pickle that expands far beyond its size by referring to objects repeatedly."""
    most, n_bytes = limit_bytes() // 2, 0
    for n_copied in _copied_bytes(file, path):
        n_bytes += n_copied
        if n_bytes > most:
            raise InputError(
                f"weights {path}: unpacks to more than {most:,} bytes, half of the "
                "memory that this process may use; save module.state_dict() again, preferably as "
                ".safetensors"
            )


def _copied_bytes(file: IO[bytes], path: Path) -> Iterator[int]:
    """Approximate memory of the arguments of each call, including nested ones.

    Follows the pickle as an unpickler does, with sizes in place of objects.
    """
    stack: list[list[int]] = []
    marks: list[int] = []
    memo: dict[object, list[int]] = {}
    for code, value, _ in genops(file):
        if code.name == "GLOBAL" and value in _ALLOCATING:
            name = value.split()[-1]
            raise InputError(
                f"weights {path}: refused, loading it would run code ({name}); expected only "
                "tensors: save module.state_dict(), preferably as .safetensors"
            )
        if code.name in _PUT:
            memo[value] = stack[-1]
        elif code.name in _GET:
            stack.append(memo[value])
        elif code.name == "MARK":
            marks.append(len(stack))
        else:
            start = _first_taken(code, stack, marks)
            taken = sum(size for (size,) in stack[start:])
            del stack[start:]
            if code.name in _INTO:
                stack[-1][0] += taken
            elif code.stack_after:
                n_characters = len(value) if isinstance(value, str | bytes) else 0
                stack.append([taken + _OBJECT_BYTES + _CHARACTER_BYTES * n_characters])
            if code.name in _CALLS:
                yield taken


def _first_taken(code: OpcodeInfo, stack: list[list[int]], marks: list[int]) -> int:
    """Index on the stack of the first object that an instruction removes."""
    if any(kind.name == "mark" for kind in code.stack_before):
        return marks.pop()
    n_taken = len(code.stack_before) - (code.name in _INTO)  # the container stays
    if n_taken > len(stack):
        raise ValueError("its pickle removes more objects than there are")
    return len(stack) - n_taken
