"""Memory that workers may use: that of the machine, or of the cgroup that limits this process."""

import ctypes
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.cgroups import CGROUPS, groups_of
from pipeline.errors import ResourceError
from pipeline.terminal import counted

WORKERS_SHARE = 0.7
"""Share of the free memory that workers may use; the driver, Ray and file caches need the rest.

Ray gives actors the same share of a machine.
"""

PROCESS_BYTES = 600 * 2**20
"""Memory of a worker before it reads an image: Python, torch or OpenCV, Ray and their libraries."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""Files of a cgroup's limit and usage by version, and the name of the entry for cached files."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt(3)``; the second may be at most 32 MiB."""


def bytes_of(text: str) -> int:
    """Parse a size such as ``"2G"``, in powers of 1,024; raises ``ResourceError``.

    >>> bytes_of("1.5G")
    1610612736
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ResourceError(f"--memory {text}: expected bytes as in 800M, 2G or 1.5G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def gib(n_bytes: int) -> str:
    """Format a size in GiB.

    >>> gib(3 * 2**29)
    '1.50 GiB'
    """
    return f"{n_bytes / 2**30:.2f} GiB"


def for_workers() -> int:
    """Memory of this machine, in bytes, that workers may use."""
    return int(WORKERS_SHARE * free_bytes())


def n_fitting(worker_bytes: int, nodes: Sequence[float]) -> int:
    """Number of workers that fit on nodes with the given memory; sizes in bytes.

    >>> n_fitting(2, [5, 3])
    3
    """
    return sum(int(n_bytes // worker_bytes) for n_bytes in nodes)


def check_fit(n_workers: int, worker_bytes: int | None, nodes: Sequence[float], where: str) -> None:
    """Raise ``ResourceError`` if ``n_workers`` of ``worker_bytes`` each do not fit on the nodes."""
    if worker_bytes is None or (n_fit := n_fitting(worker_bytes, nodes)) >= n_workers:
        return
    available = " + ".join(f"{n_bytes / 2**30:.1f}" for n_bytes in nodes) + " GiB"
    raise ResourceError(
        f"requested {counted(n_workers, 'worker')} of {worker_bytes / 2**30:.1f} GiB, {where} has "
        f"{available} for workers, enough for {n_fit}: use less --memory"
        + (f", or --workers {n_fit}" if n_fit else "")
    )


def check_free(n_bytes: int, what: str, remedy: str) -> None:
    """Raise ``ResourceError`` if an array or several do not fit into the free memory.

    Args:
        n_bytes: their size.
        what: the subject of the message, such as "knn: 50,000 rows of 64 features".
        remedy: what to do instead.
    """
    if n_bytes > (free := free_bytes()):
        raise ResourceError(f"{what} take {gib(n_bytes)}, {gib(free)} are free: {remedy}")


def machine_bytes() -> int:
    """Total memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def limit_bytes(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> int:
    """The most memory that this process may ever use, regardless of current usage.

    It is the smallest limit of the cgroups above the process, or the total of the machine.
    """
    groups = groups_of("memory", proc, cgroups)
    limits = [_limit_of(group / _FILES[version][0]) for version, group in groups]
    return min([machine_bytes(), *(limit for limit in limits if limit is not None)])


def free_bytes(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> int:
    """Memory that can be allocated before the kernel kills a process.

    It is the minimum of what the machine has free and what each cgroup above this process leaves,
    in either version of cgroups. Cached files count as free.
    """
    if not (proc / "meminfo").is_file():  # not Linux
        return machine_bytes()
    meminfo = _numbers((proc / "meminfo").read_text().replace(":", ""))
    left = [meminfo["MemAvailable"] * 1024]
    for version, group in groups_of("memory", proc, cgroups):
        left += _left_in(group, *_FILES[version])
    return max(0, min(left))


def keep_freed_memory() -> None:
    """Make this process keep freed memory for reuse, up to its peak usage.

    glibc returns large blocks to the kernel, so every batch of images would wait for zeroed pages
    again, which took a quarter of an extraction. Other C libraries are not changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_MMAP_THRESHOLD, 2**25)


def _left_in(group: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Memory that a cgroup leaves, as a list of one number; empty if it has no limit."""
    if (most := _limit_of(group / limit)) is None:
        return []
    try:
        used = int((group / usage).read_text())
        return [most - used + _numbers((group / "memory.stat").read_text()).get(cache, 0)]
    except (OSError, ValueError):  # gone in the meantime, or no permission
        return []


def _limit_of(file: Path) -> int | None:
    """The limit in a file of a cgroup, in bytes; ``None`` if it has none."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max", gone in the meantime, or no permission
        return None


def _numbers(text: str) -> dict[str, int]:
    """Parse lines such as ``name 12 kB`` into numbers by name."""
    words = (line.split() for line in text.splitlines())
    return {parts[0]: int(parts[1]) for parts in words if len(parts) > 1}
