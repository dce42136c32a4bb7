"""The standard streams, made to accept any text in any locale, shell and terminal."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

MIN_COLUMNS = 40
"""A smaller ``COLUMNS`` is ignored; Rich prints nothing if it is 0."""


def prepare_streams() -> None:
    """Make sure that output never fails, whatever the encoding, even if stderr is closed or unread.

    Characters that the encoding of a stream lacks are printed as escapes, as in ``\\xb1``.
    """
    _open_closed_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if (stream := sys.stderr) is sys.__stderr__ and stream:  # else a caller has replaced it
        writer = io.BufferedWriter(_Unread(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(
            writer, stream.encoding, errors="backslashreplace", line_buffering=True
        )
    columns = os.environ.get("COLUMNS", "")
    if not (columns.isdecimal() and int(columns) >= MIN_COLUMNS):
        os.environ.pop("COLUMNS", None)


def _open_closed_descriptors() -> None:
    """Open the null device for standard streams that the shell has closed (``2>&-``).

    Otherwise the next file that is opened, perhaps one of a store, gets the number 2, and anything
    that a library prints is written into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is used. Child processes inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            mode = "w" if descriptor else "r"
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


class _Unread(io.FileIO):
    """A file whose writes never fail: its reader may have ended, or its terminal have closed."""

    def write(self, data: Buffer, /) -> int:
        with suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes
