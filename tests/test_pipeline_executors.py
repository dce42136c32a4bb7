"""Behaviour of every executor, and of Ray in particular. Ray tests share one small cluster."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from squares import Squares, plan_of

from pipeline.cpus import n_cpus
from pipeline.errors import ResourceError, RunFailedError
from pipeline.executors import LOADING, Executor, LocalExecutor
from pipeline.journal import Journal
from pipeline.ray_executor import RayExecutor
from pipeline.runner import RunReport, run_map
from pipeline.work import ShardOutput, Tick
from pipeline.worker import SetWork
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.shards import Shard

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster that the program has connected to itself: executors use it, and leave it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))  # where workers find the stages of these tests
        import ray

        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        yield
        ray.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "local":
        return LocalExecutor(n_threads=1)
    request.getfixturevalue("cluster")
    return RayExecutor(n_workers=2)


@pytest.fixture
def numbers(store: FeatureStore) -> FeatureSet:
    """Forty rows in eight shards."""
    return store.create(plan_of(40, 5))


def run(stage: Any, numbers: FeatureSet, executor: Executor) -> RunReport:
    journal = Journal.of(numbers.shard_set.storage.location, ["test"]).begin()
    return run_map(stage, numbers.shard_set, executor, journal, title="squares")


def attempts(stage: Squares) -> list[int]:
    return [stage.attempts(index) for index in range(8)]


def test_every_shard_has_one_outcome_and_its_rows_in_any_order_of_shards(
    numbers: FeatureSet, executor: Executor, tmp_path: Path
) -> None:
    work = SetWork(Squares(5, str(tmp_path)), numbers.shard_set)
    shards = deque(reversed(numbers.shard_set.shards))
    phases: list[str] = []

    def watch(_: object, phase: str = "") -> None:
        phases.append(phase)

    outcomes = list(executor.run(work, shards, watch))
    is_local = isinstance(executor, LocalExecutor)
    assert phases[0] == (LOADING if is_local else "joining Ray")
    assert is_local or f"{LOADING} on 2 workers" in phases
    assert sorted(outcome.task.index for outcome in outcomes) == list(range(8))
    assert numbers.shard_set.done() == set()
    for outcome in outcomes:
        assert outcome.staged is not None
        assert numbers.shard_set.publish(outcome.staged) == outcome.staged.receipt
    assert numbers.shard_set.is_complete()
    assert numbers.shard_set.storage.staged() == []
    rows = np.arange(40, dtype=np.float32)
    assert np.array_equal(numbers.read("square"), np.stack([rows, rows * rows], axis=1))
    assert numbers.frame().compute()["row"].tolist() == list(range(40))


def test_a_shard_is_tried_three_times_and_the_others_are_finished(
    numbers: FeatureSet, executor: Executor, tmp_path: Path
) -> None:
    stage = Squares(5, str(tmp_path), {2: ("fail",) * 9, 5: ("fail",)})
    with pytest.raises(RunFailedError) as failure:
        run(stage, numbers, executor)
    assert str(failure.value) == (
        "1 of 8 shards failed, 7 computed; first, shard 2: RuntimeError: this one may pass "
        "(run the same command again, or `intro-pipe resume`, to compute only what is missing)"
    )
    assert attempts(stage) == [1, 1, 3, 1, 1, 2, 1, 1]
    assert [shard.index for shard in numbers.shard_set.missing()] == [2]


def test_a_permanent_error_is_not_retried_and_a_rerun_computes_only_what_is_missing(
    numbers: FeatureSet, executor: Executor, tmp_path: Path
) -> None:
    stage = Squares(5, str(tmp_path), {2: ("final",)})
    with pytest.raises(RunFailedError, match="first, shard 2: ValueError: this one will not"):
        run(stage, numbers, executor)
    assert attempts(stage) == [1] * 8
    assert run(stage, numbers, executor).n_computed == 1
    assert attempts(stage) == [1, 1, 2, 1, 1, 1, 1, 1]


def test_the_caller_may_append_shards_between_two_outcomes(
    numbers: FeatureSet, executor: Executor, tmp_path: Path
) -> None:
    work = SetWork(Squares(5, str(tmp_path)), numbers.shard_set)
    first, second = numbers.shard_set.shards[:2]
    todo = deque([first])
    outcomes = executor.run(work, todo, lambda *_: None)
    assert next(outcomes).task == first
    todo.append(second)
    assert [outcome.task for outcome in outcomes] == [second]


class UnpicklableError(RuntimeError):
    """Like exceptions of libraries that keep a handle."""

    def __init__(self) -> None:
        super().__init__("first line\nsecond line")
        self.lock = threading.Lock()


@dataclass(frozen=True)
class Raises(Squares):
    """A stage that fails with an error that no process can send to another."""

    def compute(self, state: int, shard: Shard, tick: Tick) -> ShardOutput:
        raise UnpicklableError


def test_an_error_that_cannot_be_pickled_is_reported_in_one_line(
    store: FeatureStore, executor: Executor, tmp_path: Path
) -> None:
    numbers = store.create(plan_of(5, 5))
    with pytest.raises(RunFailedError, match=r"shard 0: UnpicklableError: first line \(run"):
        run(Raises(5, str(tmp_path)), numbers, executor)


@dataclass(frozen=True)
class NeverReady(Squares):
    """A stage that cannot be set up: its weights are damaged, its GPU is broken."""

    error: type[Exception] = ValueError

    def setup(self, n_threads: int) -> int:
        super().setup(n_threads)
        with Path(self.folder, "setups").open("a") as file:
            file.write(".")
        raise self.error("no such weights")


def test_a_setup_that_will_never_work_stops_the_run_at_once(
    numbers: FeatureSet, executor: Executor, tmp_path: Path
) -> None:
    stage = NeverReady(5, str(tmp_path))
    with pytest.raises(
        RunFailedError, match="ValueError: no such weights; finished shards are kept"
    ):
        run(stage, numbers, executor)
    assert len((tmp_path / "setups").read_text()) <= 2  # once on every worker


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_stops_the_run_gets_no_further_shards(
    numbers: FeatureSet, tmp_path: Path
) -> None:
    work = SetWork(NeverReady(5, str(tmp_path)), numbers.shard_set)
    todo = deque(numbers.shard_set.shards)
    for outcome in RayExecutor(n_workers=1).run(work, todo, lambda *_: None):
        assert outcome.stops_run
        time.sleep(1.0)  # a worker that holds another shard would begin with it meanwhile
        break
    assert (tmp_path / "setups").read_text() == "."


def test_a_setup_that_may_work_is_tried_three_times(
    numbers: FeatureSet, executor: Executor, tmp_path: Path
) -> None:
    stage = NeverReady(5, str(tmp_path), error=RuntimeError)
    with pytest.raises(
        RunFailedError, match="RuntimeError: no such weights; finished shards are kept"
    ):
        run(stage, numbers, executor)
    assert 3 <= len((tmp_path / "setups").read_text()) <= 6


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_the_shard_of_a_worker_that_hangs_is_handed_on(
    numbers: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ray_executor.HANG_S", 3.0)  # not a quarter of an hour
    stage = Squares(5, str(tmp_path), {2: ("hang",)})
    assert run(stage, numbers, RayExecutor(n_workers=2)).n_computed == 8
    assert attempts(stage) == [1, 1, 2, 1, 1, 1, 1, 1]


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_costs_only_its_shard_which_is_reported_after_three_kills(
    numbers: FeatureSet, tmp_path: Path
) -> None:
    stage = Squares(5, str(tmp_path), {0: ("kill",) * 9, 4: ("kill", "fail")})
    with pytest.raises(
        RunFailedError,
        match=r"1 of 8 shards failed, 7 .* shard 0: worker \d died: .*use less --memory or fewer",
    ):
        run(stage, numbers, RayExecutor(n_workers=2))
    assert attempts(stage) == [3, 1, 1, 1, 3, 1, 1, 1]


@pytest.mark.ray
@pytest.mark.soak
def test_more_workers_than_cores_of_this_machine_share_them(tmp_path: Path) -> None:
    """No worker continues until all have started."""
    n_workers = n_cpus() + 1
    code = (
        "from nodes import RayExecutor, run_together;"
        f"run_together({str(tmp_path)!r}, RayExecutor(n_workers={n_workers}), {n_workers})"
    )
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "NODE": "here"}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=True)
    setups = [path.name for path in tmp_path.glob("setup-*")]
    assert len(setups) == n_workers
    assert all(name.endswith("-1") for name in setups)  # one thread each


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_cluster_of_the_users_own_is_left_running(numbers: FeatureSet, tmp_path: Path) -> None:
    import ray

    before = {name: text for name, text in os.environ.items() if name.startswith("RAY_AUTH")}
    RayExecutor(n_workers=1).check()
    run(Squares(5, str(tmp_path)), numbers, RayExecutor(n_workers=1))
    assert ray.is_initialized()
    after = {name: text for name, text in os.environ.items() if name.startswith("RAY_AUTH")}
    assert after == before


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_more_gpus_than_the_cluster_has_are_refused() -> None:
    with pytest.raises(ResourceError, match="requested 8 GPUs, the cluster has 0: use"):
        RayExecutor(n_gpus=8).check()


SCRIPT = """
import sys, tempfile
import ray  # before anything of ours, as programs do
from squares import Squares, plan_of
from pipeline.ray_executor import RayExecutor
from pipeline.journal import Journal
from pipeline.runner import run_map
from store.catalog import FeatureStore

for script in ({1: ("kill",)}, {}):
    folder = tempfile.mkdtemp(dir=sys.argv[1])
    shards = FeatureStore(folder).prepare().create(plan_of(20, 5)).shard_set
    journal = Journal.of(folder, ["test"]).begin()
    stage = Squares(5, folder, script)
    report = run_map(stage, shards, RayExecutor(n_workers=1), journal, title="squares")
    print("computed", report.n_computed)
print("connected", ray.is_initialized())
"""


@pytest.mark.ray
@pytest.mark.soak
def test_two_runs_of_one_program_print_nothing_but_results(tmp_path: Path) -> None:
    """One worker is killed on the way: what Ray says about that is no result."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout == "computed 4\ncomputed 4\nconnected False\n", ended.stderr
    assert "A worker died or was killed" in ended.stderr


LISTENING = """
import json, os
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen
from pipeline.cluster import Cluster

def family():
    stats = [place.read_text() for place in Path("/proc").glob("[0-9]*/stat")]
    parents = {int(s.split()[0]): int(s.rpartition(")")[2].split()[1]) for s in stats}
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return ours

def links_in(folder):
    for link in list(folder.iterdir()):
        with suppress(FileNotFoundError):  # it was closed meanwhile
            yield os.readlink(link)

def addresses():
    folders = [Path(f"/proc/{pid}/fd") for pid in family()]
    sockets = {link for each in folders for link in links_in(each)}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                address, _, port = local.partition(":")
                yield address, int(port, 16)

def answer(port):
    try:
        with urlopen(f"http://127.0.0.1:{port}/api/version", timeout=3) as page:
            text = page.read()
        return "metrics" if text.startswith(b"# HELP") else text[:200].decode("latin-1")
    except HTTPError as error:
        return error.code
    except (OSError, HTTPException):
        return None  # another protocol

with Cluster().connected() as ray:
    ray.get(ray.remote(lambda: 1).remote())
    found = sorted(set(addresses()))
    answers = [answer(port) for _, port in found]
print(json.dumps([found, answers, os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]]))
"""
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F")
"""127.0.0.1 as Linux formats it, alone and where both protocols are served."""


@pytest.mark.ray
def test_a_cluster_of_our_own_listens_on_the_loopback_alone_behind_a_token() -> None:
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    ended = subprocess.run(
        [sys.executable, "-c", LISTENING],
        env={**environment, "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found, answers, mode, token = json.loads(ended.stdout)
    assert {address for address, _ in found} <= {*LOOPBACK}
    assert not {8265, 10001} & {port for _, port in found}  # the dashboard's, and Ray Client's
    assert 401 in answers  # from the agents, which were called without the token
    assert set(answers) <= {401, "metrics", None}
    assert (mode, len(token)) == ("token", 64)


NOWHERE = """
import os, time
from pipeline.errors import ResourceError
from pipeline.ray_executor import RayExecutor

for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "nonsense"):
    os.environ["RAY_ADDRESS"] = address
    started = time.monotonic()
    try:
        RayExecutor().check()
    except ResourceError as error:
        print(error)
    assert time.monotonic() - started < 30
"""


def test_an_address_without_a_cluster_is_refused_in_one_line_within_seconds() -> None:
    command = [sys.executable, "-c", NOWHERE]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = ended.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0] == (
        "cannot join a Ray cluster at 127.0.0.1:1 ([Errno 111] Connection refused): start one with "
        "`ray start --head`, or leave out --address and RAY_ADDRESS to use this machine alone"
    )
    assert all(line.startswith("cannot join a Ray cluster at ") for line in lines)


def test_a_run_with_nothing_to_do_imports_no_ray(numbers: FeatureSet, tmp_path: Path) -> None:
    run(Squares(5, str(tmp_path)), numbers, LocalExecutor(n_threads=1))
    location = str(tmp_path / "store")
    script = (
        "import sys; from test_pipeline_executors import *;"
        f"numbers = next(FeatureStore({location!r}).feature_sets());"
        f"report = run(Squares(5, {str(tmp_path)!r}), numbers, RayExecutor());"
        "print(report.n_computed, 'ray' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "0 False\n"


def test_gpus_that_are_hidden_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ResourceError, match=r"requested 8 GPUs, .* has [02]: use --gpus [02]"):
        RayExecutor(n_gpus=8).check()
