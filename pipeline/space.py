"""Check that the disk has room for what a run writes, before it starts and while it runs."""

import shutil
from pathlib import Path

from pipeline.errors import ResourceError, RunFailedError


def free_space(folder: str) -> int | None:
    """Free bytes on the disk of a folder, which need not exist; ``None`` for a URL."""
    if "://" in folder:
        return None
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_space(folder: str, n_bytes: int) -> None:
    """Raise ``ResourceError`` if the disk of a folder has less than ``n_bytes`` free."""
    free = free_space(folder)
    if free is not None and n_bytes > free:
        raise ResourceError(
            f"{folder}: {_gb(n_bytes)} are to be written, {_gb(free)} are free: free some space, "
            "or choose another location (--store for features, --out for images)"
        )


class Room:
    """Checks the free space after each shard, from the average size of the shards written."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._n_bytes = 0
        self._n_written = 0
        self._has_warned = False

    def take(self, n_bytes: int, n_left: int, n_lanes: int) -> str:
        """Record a written shard, and return a warning, once, if the rest will not fit.

        Args:
            n_bytes: size of the shard.
            n_left: number of shards that remain to be written.
            n_lanes: number of shards that may be being written at once.

        Raises:
            RunFailedError: less space is left than for the shards in progress and one more.
        """
        self._n_written += 1
        self._n_bytes += n_bytes
        free = free_space(self._folder)
        if free is None or n_left < 1:
            return ""
        each = self._n_bytes / self._n_written
        state = f"about {_gb(n_left * each)} are left to write, {_gb(free)} are free"
        if free < min(n_left, n_lanes + 1) * each:
            raise RunFailedError(
                f"{self._folder}: the disk is nearly full, {state}: free some space and run the "
                "same command again; finished shards are kept"
            )
        if free >= n_left * each or self._has_warned:
            return ""
        self._has_warned = True
        return f"{state}: free some space while this runs, or it stops before the disk is full"


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.2f} MB"
