"""Facts about the machine: hardware, other load, and the version of the code."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OURS = ("torch", "numpy", "ray", "zarr", "pyarrow", "pandas", "duckdb")
PEERS = ("opacus", "backpack-for-pytorch", "bergson", "traker")

BUSY, STOLEN = 0.1, 0.02
"""Shares of the processors that others may take before we warn."""


def description() -> dict[str, object]:
    """Facts about the machine and the code for readers of the results."""
    n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kernel = platform.release().partition("-")[0]
    return {
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "accelerator": _accelerator(),
        "memory": f"{n_bytes / 2**30:.0f} GiB",
        "system": f"{platform.system()} {kernel}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {_version(name)}" for name in (*OURS, *PEERS)),
    }


def file_system(folder: str) -> str:
    """Type of the file system of a folder, from the longest mount point above it."""
    mounts = (line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines())
    place = Path(folder).resolve()
    above = {Path(point): kind for point, kind in mounts if place.is_relative_to(point)}
    return above[max(above, key=lambda point: len(point.parts))]


def warning_before(seconds: float = 1.0) -> str:
    """A warning if other programs use the machine; empty if it is quiet."""
    before = jiffies()
    time.sleep(seconds)
    idle = _share(before, "idle", "iowait", "steal")
    if idle >= 1 - BUSY:
        return ""
    return (
        f"not a quiet machine: others took {1 - idle:.0%} of the processors before it began "
        f"(load average {os.getloadavg()[0]:.1f})"
    )


def warning_after(before: Mapping[str, int]) -> str:
    """A warning if the host took processors away since then; else empty."""
    stolen = _share(before, "steal")
    return f"the host took {stolen:.0%} of the processors away" if stolen > STOLEN else ""


def _share(before: Mapping[str, int], *names: str) -> float:
    """Share of all jiffies since then that went to these states."""
    spent = {name: value - before[name] for name, value in jiffies().items()}
    return sum(spent[name] for name in names) / (sum(spent.values()) or 1)


def jiffies() -> dict[str, int]:
    """Jiffies by state since the machine started."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    values = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return dict(zip(names, map(int, values), strict=False))


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = (
        " and what was not committed"
        if git("status", "--porcelain", "-uno", "--", ".", ":!docs")
        else ""
    )
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
