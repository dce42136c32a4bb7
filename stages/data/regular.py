"""Checks for regular files: opening a named pipe or a device can block forever."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import InputError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_regular(path: str | Path) -> None:
    """Raise ``OSError`` for anything but a regular file or a link to one; call before opening."""
    mode = os.stat(path).st_mode  # noqa: PTH116 - called for every image; a Path is slower
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")
        raise OSError(f"expected a regular file, found {kind}")


def size_of_regular(path: Path) -> int:
    """Size of a regular file in bytes; -1 for anything else, or if it cannot be accessed."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return -1  # such as a broken link, or a NUL in its name: its row fails when it is read
    return facts.st_size if stat.S_ISREG(facts.st_mode) else -1


@contextmanager
def refused(path: str | Path) -> Iterator[None]:
    """Convert file system errors to an ``InputError`` that names the path."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
