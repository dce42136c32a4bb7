"""The CPUs that this process may use: its affinity, and the quotas of every cgroup above it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cpus
from pipeline.cluster import Cluster
from pipeline.cpus import n_cpus
from pipeline.executors import LocalExecutor


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may run on 8 CPUs of a machine with 64."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def counted(folder: Path, groups: str, files: dict[str, str]) -> int:
    """The count for these lines of /proc/self/cgroup and these files of the groups."""
    for name, content in {"proc/self/cgroup": groups, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return n_cpus(folder / "proc", folder / "cgroup")


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a\n", {"cgroup/a/cpu.max": "max 100000\n"}, 8),
        ("0::/a\n", {"cgroup/a/cpu.max": "200000 100000\n"}, 2),
        ("0::/a\n", {"cgroup/a/cpu.max": "150000 100000\n"}, 2),
        ("0::/a\n", {"cgroup/a/cpu.max": "1000 100000\n"}, 1),
        ("0::/a\n", {"cgroup/a/cpu.max": "3200000 100000\n"}, 8),
        ("0::/a/b\n", {"cgroup/a/cpu.max": "300000 100000\n", "cgroup/a/b/cpu.max": "max 1"}, 3),
        ("0::/of/the/host\n", {"cgroup/cpu.max": "400000 100000\n"}, 4),
        ("0::/a\n", {"cgroup/a/cpu.max": "nonsense\n"}, 8),
        ("0::/a\n", {"cgroup/a/cpu.max": "100000 0\n"}, 8),
        ("0::/a\n", {}, 8),
        ("", {}, 8),
        (
            "3:cpu,cpuacct:/docker/f00d\n0::/\n",
            {"cgroup/cpu/cpu.cfs_quota_us": "250000", "cgroup/cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "3:cpu:/x\n",
            {"cgroup/cpu/x/cpu.cfs_quota_us": "-1", "cgroup/cpu/x/cpu.cfs_period_us": "100000"},
            8,
        ),
    ],
)
def test_the_smallest_limit_counts_rounded_up(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    assert counted(tmp_path, groups, files) == expected


@pytest.mark.usefixtures("eight")
def test_without_proc_and_affinity_it_is_what_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert n_cpus(tmp_path, tmp_path) == 64


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_a_process_held_to_one_cpu_plans_one_thread_and_one_worker() -> None:
    code = (
        "from pipeline.cluster import Cluster; from pipeline.executors import LocalExecutor;"
        "print(LocalExecutor().description, Cluster().nodes()[0]['CPU'])"
    )
    cpu = min(os.sched_getaffinity(0))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = ["taskset", "-c", str(cpu), sys.executable, "-c", code]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout == "this process, 1 thread 1\n"


def test_threads_of_libraries_are_limited_by_a_quota_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for quota, chosen, expected in [(2, None, "2"), (2, "7", "7"), (8, None, None)]:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if chosen is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", chosen)
        monkeypatch.setattr(cpus, "n_cpus", lambda quota=quota: quota)
        monkeypatch.setattr(cpus, "_n_of_affinity", lambda: 8)
        cpus.limit_threads()
        assert os.environ.get("OMP_NUM_THREADS") == expected


@pytest.mark.usefixtures("eight")
def test_every_default_is_that_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    expected = n_cpus()
    assert expected <= 8
    assert LocalExecutor().n_threads == expected
    assert Cluster().nodes()[0]["CPU"] == expected


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, str(cpus.SPIN_COUNT)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_spin_briefly_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setattr(os, "environ", dict(chosen))
    cpus.limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
