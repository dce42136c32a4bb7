"""How much memory there is for workers: of this machine, or of the cgroup that we are held to."""

import ctypes
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ResourceError

WORKERS_SHARE = 0.7
"""Of what is free; the rest is for the driver, for Ray and for the kernel's cache of files.

Ray gives actors of a machine the same share.
"""

PROCESS_BYTES = 600 * 2**20
"""Of a worker before it has seen an image: Python, torch or OpenCV, Ray, and what they load."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_CGROUPS = Path("/sys/fs/cgroup")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of ``mallopt(3)``; the second is 32 MiB at most."""


def bytes_of(text: str) -> int:
    """``"2G"`` as bytes, by powers of 1,024; raises ``ResourceError``.

    >>> bytes_of("1.5G")
    1610612736
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ResourceError(f"--memory {text}: expected bytes as in 800M, 2G or 1.5G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def gib(n_bytes: int) -> str:
    """Bytes as people read them.

    >>> gib(3 * 2**29)
    '1.50 GiB'
    """
    return f"{n_bytes / 2**30:.2f} GiB"


def for_workers() -> int:
    """Bytes of this machine's memory that workers may take."""
    return int(WORKERS_SHARE * free_bytes())


def n_fitting(worker_bytes: int, nodes: Sequence[float]) -> int:
    """How many workers of that size fit on nodes with so many bytes each.

    >>> n_fitting(2, [5, 3])
    3
    """
    return sum(int(n_bytes // worker_bytes) for n_bytes in nodes)


def check_fit(n_workers: int, worker_bytes: int | None, nodes: Sequence[float], where: str) -> None:
    """Raise ``ResourceError`` where so many workers of that size do not fit."""
    if worker_bytes is None or (n_fit := n_fitting(worker_bytes, nodes)) >= n_workers:
        return
    there = " + ".join(f"{n_bytes / 2**30:.1f}" for n_bytes in nodes) + " GiB"
    raise ResourceError(
        f"{n_workers} workers of {worker_bytes / 2**30:.1f} GiB were asked for, {where} has {there}"
        f" for workers, room for {n_fit}: give less --memory"
        + (f", or --workers {n_fit}" if n_fit else "")
    )


def machine_bytes() -> int:
    """What this machine has in all."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_bytes(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """What may still be taken here before the kernel kills somebody.

    The least of what the machine has free and what each cgroup above this process leaves, in either
    version of cgroups. What the kernel keeps of files counts as free.
    """
    if not (proc / "meminfo").is_file():  # no Linux: what the machine has in all
        return machine_bytes()
    meminfo = _numbers((proc / "meminfo").read_text().replace(":", ""))
    left = [meminfo["MemAvailable"] * 1024]
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            top, limit, usage, cache = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, cache = cgroups / "memory", "total_inactive_file"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        here = top / path.lstrip("/")
        # In a container the path is often that of the host, and its own group is at the top.
        for group in (here, *here.parents):
            if group.is_relative_to(top) and (group / limit).is_file():
                left += _left_in(group, limit, usage, cache)
    return max(0, min(left))


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it needs next, as much as it had at most.

    glibc gives large blocks back to the kernel, and every batch of images waits for zeroed pages
    again: a quarter of an extraction. Other libraries keep their own way.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_MMAP_THRESHOLD, 2**25)


def _left_in(group: Path, limit: str, usage: str, cache: str) -> list[int]:
    """What a cgroup leaves, as one number; none where it has no limit."""
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return []
        used = int((group / usage).read_text())
        return [int(most) - used + _numbers((group / "memory.stat").read_text()).get(cache, 0)]
    except (OSError, ValueError):  # gone meanwhile, or not for us to read
        return []


def _numbers(text: str) -> dict[str, int]:
    """``"name 12 kB"`` lines as numbers by name."""
    words = (line.split() for line in text.splitlines())
    return {parts[0]: int(parts[1]) for parts in words if len(parts) > 1}
