"""Room for the images of a data set: in memory, or in a scratch file if they would fill it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ResourceError
from pipeline.memory import free_bytes, gib
from pipeline.space import free_space

HELD_SHARE = 0.5
"""Share of the free memory that the images of a data set may take; more go to a scratch file."""

SCRATCH = Path("/var/tmp")
"""Where scratch files are if ``TMPDIR`` is not set: unlike ``/tmp``, it is never in memory."""


def image_array(
    shape: tuple[int, int, int, int], what: str, note: Callable[[str], None]
) -> NDArray[np.uint8]:
    """An array for the images ``[n, H, W, 3]`` of a data set, with undefined contents.

    A scratch file has no name from the start, so that it disappears with the process, even if that
    is killed. The kernel keeps those of its pages in memory that fit.

    Args:
        shape: shape of the array.
        what: the data set, for messages.
        note: called with a line that says that a scratch file is used, and where it is.

    Raises:
        ResourceError: neither the memory nor the disk has room, or the folder cannot be written to.
    """
    n_bytes, free = int(np.prod(shape, dtype=np.int64)), free_bytes()
    if n_bytes <= HELD_SHARE * free:
        return np.empty(shape, np.uint8)
    folder = scratch_folder()
    room = free_space(str(folder))
    why = f"{what}: its images take {gib(n_bytes)}, more than half of the free memory ({gib(free)})"
    if room is not None and n_bytes > room:
        raise ResourceError(
            f"{why}, and {folder} has {gib(room)} for a scratch file: set TMPDIR to a folder with "
            "more room, or use a smaller --image-size"
        )
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Without its blocks, a file on a disk that fills up later would end the process.
            os.posix_fallocate(file.fileno(), 0, n_bytes)
            images = np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise ResourceError(
            f"{why}, and {folder} cannot hold a scratch file ({error.strerror}): set TMPDIR to a "
            "folder with room, or use a smaller --image-size"
        ) from error
    note(f"{why}; they are kept in a scratch file in {folder}")
    return images


def scratch_folder() -> Path:
    """Folder of scratch files: ``TMPDIR``, else ``/var/tmp``, else the system's default."""
    default = SCRATCH if os.access(SCRATCH, os.W_OK) else tempfile.gettempdir()
    return Path(os.environ.get("TMPDIR") or default)
