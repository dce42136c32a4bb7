"""How many CPUs this process may use."""

import math
import os
from pathlib import Path

from pipeline.cgroups import CGROUPS, groups_of

SPIN_COUNT = 3_000
"""Rounds of waiting, some 50 microseconds, before a thread of GNU's OpenMP sleeps."""


def n_cpus(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> int:
    """Number of CPUs that this process may run on (``taskset``), or fewer if a cgroup limits it.

    A quota of CPU time, as set by containers and batch systems, counts as that many CPUs, rounded
    up. ``os.cpu_count()`` would count all CPUs of the machine.
    """
    quotas = (_quota(*group) for group in groups_of("cpu", proc, cgroups))
    return max(1, min([_n_of_affinity(), *(math.ceil(quota) for quota in quotas if quota)]))


def limit_threads() -> None:
    """Limit numerical libraries to the CPUs of a cgroup's quota; call it before importing them.

    They respect the affinity of the process but not its quota, so that too many threads would
    compete. An ``OMP_NUM_THREADS`` set by the user is kept.
    """
    if (n_allowed := n_cpus()) < _n_of_affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(n_allowed))


def limit_spinning() -> None:
    """Let threads of OpenMP that wait for each other sleep soon; call it before importing torch.

    By default they spin for milliseconds. If another program uses one of their cores, a spinning
    thread occupies the core that the working thread needs, at each of the network's layers. The
    user's own ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` is kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def _n_of_affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(version: int, group: Path) -> float:
    """CPU time that a cgroup may use, in CPUs; 0 without a limit."""
    try:
        if version == 2:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return max(0.0, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, "max", or no permission
        return 0.0
