"""How much memory is free: the least of the machine's and of every cgroup above us."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ResourceError
from pipeline.executors import Executor, LocalExecutor
from pipeline.memory import bytes_of, free_bytes
from pipeline.ray_executor import RayExecutor

MIB = 2**20


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("800M", 800 * MIB), ("2G", 2**31), ("1.5g", 3 * 2**29), ("2GiB", 2**31), ("4096", 4096)],
)
def test_memory_is_written_as_people_do(text: str, n_bytes: int) -> None:
    assert bytes_of(text) == n_bytes


@pytest.mark.parametrize("text", ["", "much", "0G", "-2G", "2X", "2 G 3"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(ResourceError, match="expected bytes as in 800M, 2G"):
        bytes_of(text)


def machine(folder: Path, cgroups: str, files: dict[str, object]) -> int:
    """What is free on a machine of 1,000 MiB with these cgroups and their files."""
    for name, content in {
        "proc/meminfo": "MemTotal: 2048000 kB\nMemAvailable: 1024000 kB\n",
        "proc/self/cgroup": cgroups,
        **files,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(content))
    return free_bytes(folder / "proc", folder / "cgroup")


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    files = {"cgroup/a/memory.max": "max", "cgroup/a/memory.current": 5}
    assert machine(tmp_path, "0::/a\n", files) == 1000 * MIB


def test_a_group_above_ours_counts_and_cached_files_do_not(tmp_path: Path) -> None:
    files = {
        "cgroup/a/memory.max": 300 * MIB,
        "cgroup/a/memory.current": 200 * MIB,
        "cgroup/a/memory.stat": f"anon {50 * MIB}\ninactive_file {150 * MIB}\n",
        "cgroup/a/b/memory.max": "max",
        "cgroup/a/b/memory.current": 1,
    }
    assert machine(tmp_path, "0::/a/b\n", files) == 250 * MIB


def test_version_1_is_read_too_and_a_container_s_own_group_is_at_the_top(tmp_path: Path) -> None:
    files = {
        "cgroup/memory/memory.limit_in_bytes": 100 * MIB,
        "cgroup/memory/memory.usage_in_bytes": 40 * MIB,
        "cgroup/memory/memory.stat": f"total_inactive_file {10 * MIB}\n",
    }
    assert machine(tmp_path, "5:cpu:/x\n4:memory:/docker/f00d\n0::/\n", files) == 70 * MIB


def test_this_machine_has_some() -> None:
    assert free_bytes() > 0


@pytest.mark.parametrize(
    "executor", [LocalExecutor(memory_bytes=2**50), RayExecutor(memory_bytes=2**50)]
)
def test_more_memory_than_there_is_is_refused_before_anything_starts(executor: Executor) -> None:
    with pytest.raises(ResourceError, match=r"1 workers of 1048576.0 GiB .* room for 0: give less"):
        executor.check()


def test_workers_that_do_not_fit_into_memory_side_by_side_are_refused() -> None:
    with pytest.raises(ResourceError, match=r"100000 workers of 1.0 GiB .*, or --workers \d+$"):
        RayExecutor(n_workers=100_000, memory_bytes=2**30).check()


def test_memory_is_shared_by_as_many_workers_as_there_are_shards() -> None:
    one, two = (RayExecutor(n_workers=2).worker_memory(n_shards) for n_shards in (1, 2))
    assert 1.8 < one / two < 2.2  # what is free changes meanwhile
    assert RayExecutor(n_workers=2, memory_bytes=2**30).worker_memory(1) == 2**30


def test_as_many_workers_are_started_as_there_is_memory_for() -> None:
    bytes_of_nodes = (5 * 2**29, 2**30)
    of_four, of_one = ([{"CPU": n, "memory": b} for b in bytes_of_nodes] for n in (4, 1))
    assert RayExecutor(memory_bytes=2**30)._n_workers(of_four, 8) == 3
    assert RayExecutor(memory_bytes=2**30)._n_workers(of_one, 8) == 1
    assert RayExecutor()._n_workers(of_four, 8) == 7


BATCHES = """
import resource, sys, threading
import numpy as np
from pipeline.memory import keep_freed_memory

def batches():
    for _ in range(20):
        np.ones(2**20)

def faults():
    thread = threading.Thread(target=batches)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread.start(), thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep their own way")
def test_freed_memory_is_there_for_the_next_batch() -> None:
    told = subprocess.run([sys.executable, "-c", BATCHES], capture_output=True, check=True)
    given_back, kept = map(int, told.stdout.split())
    assert kept < given_back / 10
