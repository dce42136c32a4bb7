"""Whether there is room for what a run is about to write."""

import shutil
from pathlib import Path

from pipeline.errors import ResourceError


def check_space(folder: str, n_bytes: int) -> None:
    """Raise ``ResourceError`` where the disk of a folder, there or not yet, has too little room.

    A URL has none that could be asked for.
    """
    if "://" in folder:
        return
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if n_bytes > free:
        raise ResourceError(
            f"{folder}: {n_bytes / 1e9:,.1f} GB are to be written, {free / 1e9:,.1f} GB are free: "
            "make room, or choose another place (--store for features, --out for images)"
        )
