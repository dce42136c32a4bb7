"""Free memory: the minimum over the machine and every cgroup above the process."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ResourceError
from pipeline.executors import Executor, LocalExecutor
from pipeline.memory import bytes_of, check_free, free_bytes, limit_bytes, machine_bytes
from pipeline.ray_executor import RayExecutor

MIB = 2**20


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("800M", 800 * MIB), ("2G", 2**31), ("1.5g", 3 * 2**29), ("2GiB", 2**31), ("4096", 4096)],
)
def test_memory_is_written_as_people_do(text: str, n_bytes: int) -> None:
    assert bytes_of(text) == n_bytes


@pytest.mark.parametrize("text", ["", "much", "0G", "-2G", "2X", "2 G 3"])
def test_an_invalid_memory_size_is_refused(text: str) -> None:
    with pytest.raises(ResourceError, match="expected bytes as in 800M, 2G"):
        bytes_of(text)


def machine(folder: Path, cgroups: str, files: dict[str, object]) -> int:
    """Free memory of a machine of 1,000 MiB with these cgroups and their files."""
    write_machine(folder, cgroups, files)
    return free_bytes(folder / "proc", folder / "cgroup")


def write_machine(folder: Path, cgroups: str, files: dict[str, object]) -> None:
    for name, content in {
        "proc/meminfo": "MemTotal: 2048000 kB\nMemAvailable: 1024000 kB\n",
        "proc/self/cgroup": cgroups,
        **files,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(content))


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


@pytest.mark.parametrize(
    ("cgroups", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": 300 * MIB, "a/b/memory.max": "max"}, 300 * MIB),
        ("0::/a/b\n", {"a/memory.max": 300 * MIB, "a/b/memory.max": 200 * MIB}, 200 * MIB),
        ("0::/gone\n", {"memory.max": 100 * MIB}, 100 * MIB),
        ("4:memory:/docker/f00d\n", {"memory/memory.limit_in_bytes": 50 * MIB}, 50 * MIB),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": 2**63 - 4096}, machine_bytes()),
        ("0::/a\n", {"a/memory.max": "max"}, machine_bytes()),
        ("0::/a\n", {"a/memory.max": "?"}, machine_bytes()),
        ("0::/a\n", {}, machine_bytes()),
    ],
)
@pytest.mark.parametrize("used", [0, 90 * MIB])
def test_limit_is_the_smallest_of_all_groups_whatever_is_in_use(
    tmp_path: Path, cgroups: str, limits: dict[str, object], expected: int, used: int
) -> None:
    files = {f"cgroup/{name}": limit for name, limit in limits.items()}
    usage = {f"{Path(name).parent}/memory.current": used for name in files}
    write_machine(tmp_path, cgroups, {**files, **usage})
    assert limit_bytes(tmp_path / "proc", tmp_path / "cgroup") == expected


def test_without_cgroups_the_limit_is_what_the_machine_has(tmp_path: Path) -> None:
    assert limit_bytes(tmp_path / "proc", tmp_path / "cgroup") == machine_bytes()


def test_this_machine_has_some() -> None:
    assert free_bytes() > 0
    assert 0 < limit_bytes() <= machine_bytes()


@pytest.mark.parametrize(
    "executor", [LocalExecutor(memory_bytes=2**50), RayExecutor(memory_bytes=2**50)]
)
def test_more_memory_than_there_is_is_refused_before_anything_starts(executor: Executor) -> None:
    with pytest.raises(
        ResourceError, match=r"requested 1 worker of 1048576.0 GiB, .* enough for 0: use less"
    ):
        executor.check()


def test_workers_that_do_not_fit_into_memory_side_by_side_are_refused() -> None:
    with pytest.raises(ResourceError, match=r"100,000 workers of 1.0 GiB, .*, or --workers \d+$"):
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

def batches(counts):
    for batch in range(30):
        activations = [np.ones(2**18) for layer in range(8)]
        del activations
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

def faults():
    counts = []
    thread = threading.Thread(target=batches, args=[counts])
    thread.start(), thread.join()
    return counts[-1] - counts[9]  # the pages of the first batches are new in any case

given_back = faults()
keep_freed_memory()
print(given_back, faults())
"""
"""Arrays of 2 MiB: numpy asks for huge pages from 4 MiB on, which would hide most page faults."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep their own way")
def test_freed_memory_is_reused_by_the_next_batch() -> None:
    told = subprocess.run([sys.executable, "-c", BATCHES], capture_output=True, check=True)
    given_back, kept = map(int, told.stdout.split())
    assert given_back > 10_000 > 10 * kept


def test_arrays_larger_than_the_free_memory_are_refused():
    check_free(1, "a byte", "use none")
    with pytest.raises(
        ResourceError, match=r"^rows take 1024\.00 GiB, .* GiB are free: use fewer$"
    ):
        check_free(2**40, "rows", "use fewer")
