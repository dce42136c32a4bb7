"""Whether there is room for what a run writes: before it starts, and as it goes on."""

import shutil
from pathlib import Path

from pipeline.errors import ResourceError, RunFailedError


def free_space(folder: str) -> int | None:
    """Bytes that are free on the disk of a folder, there or not yet; ``None`` for a URL."""
    if "://" in folder:
        return None
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_space(folder: str, n_bytes: int) -> None:
    """Raise ``ResourceError`` where the disk of a folder, there or not yet, has too little room."""
    free = free_space(folder)
    if free is not None and n_bytes > free:
        raise ResourceError(
            f"{folder}: {_gb(n_bytes)} are to be written, {_gb(free)} are free: "
            "make room, or choose another place (--store for features, --out for images)"
        )


class Room:
    """Room on the disk of a run, looked at after each shard.

    How large a shard is tell those that were written.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._n_bytes = 0
        self._n_written = 0
        self._has_warned = False

    def take(self, n_bytes: int, n_left: int, n_lanes: int) -> str:
        """Note a shard of so many bytes; gives a warning, once, where the rest will not fit.

        ``n_left`` shards are still to be written, and each of ``n_lanes`` may be at one of them.
        Raises ``RunFailedError`` where not even those, and one besides, would fit.
        """
        self._n_written += 1
        self._n_bytes += n_bytes
        free = free_space(self._folder)
        if free is None or n_left < 1:
            return ""
        each = self._n_bytes / self._n_written
        told = f"about {_gb(n_left * each)} are left to write, {_gb(free)} are free"
        if free < min(n_left, n_lanes + 1) * each:
            raise RunFailedError(
                f"{self._folder}: the disk is nearly full, {told}: free some space and run the "
                "same command again; what was finished before is kept"
            )
        if free >= n_left * each or self._has_warned:
            return ""
        self._has_warned = True
        return f"{told}: make room while this runs, or it stops before the disk is full"


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.2f} MB"
