"""A loop resumes from its last checkpoint, and ends like an uninterrupted one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import LoopFailedError
from pipeline.journal import Journal
from pipeline.loop import (
    CHECKPOINTS,
    Claim,
    History,
    Keep,
    Loop,
    LoopReport,
    n_units_done,
    run_loop,
)
from pipeline.make import ArtifactJob
from pipeline.stage import NO_PREVIEW
from pipeline.work import Tick
from store.artifacts import FAILED_KEY, Artifact
from store.catalog import FeatureStore
from store.errors import LeaseError, PlanMismatchError
from store.lease import Lease
from store.verify import verify_artifact

PLAN = {"stage": {"name": "walk", "params": {"seed": 0}}}


@dataclass(frozen=True)
class Walk:
    """A random walk of twelve steps in each of five units; ``at`` is called before every step."""

    at: Callable[[int, int], None] = lambda unit, step: None
    n_units: int = 5
    unit_name: str = "epoch"
    rows_per_unit: int = 12

    def start(self) -> NDArray[np.float64]:
        return np.zeros(3)

    def step(self, state: NDArray[np.float64], unit: int, tick: Tick) -> dict[str, float]:
        random = np.random.default_rng([0, unit])
        for step in range(12):
            self.at(unit, step)
            state += 0.9 * np.sin(state) + random.normal(size=3)
            tick(1)
        return {"loss": float(np.abs(state).sum())}

    def save(self, state: NDArray[np.float64]) -> bytes:
        return state.tobytes()

    def load(self, data: bytes) -> NDArray[np.float64]:
        return np.frombuffer(data).copy()

    def finish(self, state: NDArray[np.float64]) -> tuple[dict[str, bytes], dict[str, Any]]:
        return {"weights": state.tobytes()}, {"walked": self.n_units}


def uninterrupted() -> bytes:
    stage = Walk()
    state = stage.start()
    for unit in range(stage.n_units):
        stage.step(state, unit, lambda n_rows: None)
    return stage.save(state)


def keep_nothing(state: NDArray[np.float64], history: History) -> None:
    pass


def run(
    store: FeatureStore, stage: Walk | None = None, plan: Any = PLAN, keep: Keep = keep_nothing
) -> LoopReport:
    stage = stage or Walk()
    loop = Loop(lambda: stage, stage.n_units, keep=lambda: keep)
    claim = Claim(walk_of(store), plan, store, "walk")
    return run_loop(loop, claim, Journal.of(store.location, ["walk"]))


def walk_of(store: FeatureStore) -> Artifact:
    return store.artifact("model", "walk")


def checkpoints(store: FeatureStore) -> list[str]:
    return [Path(key).name for key in walk_of(store).storage.keys(CHECKPOINTS)]


def stop_at(store: FeatureStore, unit: int, step: int) -> None:
    """Run until an error rises just before a step."""

    def stop(*now: int) -> None:
        if now == (unit, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, Walk(stop))


def never(unit: int, step: int) -> None:
    raise AssertionError("nothing was to be computed")


def test_a_loop_writes_its_artifact_and_sweeps_its_checkpoints(store: FeatureStore) -> None:
    report = run(store)
    assert walk_of(store).read("weights") == uninterrupted()
    assert (report.n_units_run, report.card["walked"], len(report.history)) == (5, 5, 5)
    assert checkpoints(store) == []


def test_a_finished_loop_is_not_started_again(store: FeatureStore) -> None:
    def start() -> Walk:
        raise AssertionError("the loop was started")

    job = ArtifactJob(store, walk_of(store), PLAN, "walk", NO_PREVIEW, Loop(start, 5))
    first = run(store)
    report = job.run(Journal.of(store.location, ["walk"])).report
    assert report == LoopReport(first.card, first.history, 0, 0.0)


@pytest.mark.parametrize(("unit", "step", "n_left"), [(0, 5, 5), (2, 0, 3), (2, 7, 3), (4, 11, 1)])
def test_a_stopped_loop_resumes_from_its_last_checkpoint(
    store: FeatureStore, unit: int, step: int, n_left: int
) -> None:
    stop_at(store, unit, step)
    report = run(store)
    assert report.n_units_run == n_left
    assert [set(entry) for entry in report.history] == [{"loss", "seconds"}] * 5
    assert walk_of(store).read("weights") == uninterrupted()


KILLED = """
import os, sys
from test_pipeline_loop import *

kill = tuple(map(int, sys.argv[2:]))
run(FeatureStore(sys.argv[1]), Walk(lambda *now: now == kill and os.kill(os.getpid(), 9)))
"""


@pytest.mark.parametrize(("unit", "step"), [(3, 0), (1, 6)], ids=["between", "within"])
def test_a_killed_loop_ends_with_the_same_bits(store: FeatureStore, unit: int, step: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", KILLED, store.location, str(unit), str(step)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert run(store).n_units_run == 5 - unit
    assert walk_of(store).read("weights") == uninterrupted()


def test_one_checkpoint_is_kept(store: FeatureStore) -> None:
    stop_at(store, 3, 0)
    assert checkpoints(store) == ["00002.json", "00002.safetensors"]


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def change_a_metric(path: Path) -> None:
    """The first that there is in a note; in a state, some byte."""
    content = path.read_bytes()
    at = max(content.find(b'"loss": ') + len(b'"loss": '), 0)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@pytest.mark.parametrize("name", ["00002.safetensors", "00002.json"])
@pytest.mark.parametrize(
    "harm", [damage, change_a_metric, Path.unlink, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_checkpoint_costs_time_but_no_bit(
    store: FeatureStore, name: str, harm: Callable[[Path], None]
) -> None:
    stop_at(store, 3, 0)
    harm(Path(walk_of(store).storage.location, CHECKPOINTS, name))
    assert run(store).n_units_run == 5
    assert walk_of(store).read("weights") == uninterrupted()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(store: FeatureStore) -> None:
    stop_at(store, 2, 0)
    folder = Path(walk_of(store).storage.location, CHECKPOINTS)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    stop_at(store, 3, 0)
    for path, data in before.items():  # as a kill before the sweep leaves it
        path.write_bytes(data)
    damage(folder / "00002.safetensors")
    assert run(store).n_units_run == 3
    assert walk_of(store).read("weights") == uninterrupted()


def test_a_state_without_its_note_is_not_trusted(store: FeatureStore) -> None:
    """A kill between the two writes of a checkpoint."""
    stop_at(store, 1, 0)
    folder = Path(walk_of(store).storage.location, CHECKPOINTS)
    (folder / "00001.safetensors").write_bytes(b"\0" * 24)
    assert run(store).n_units_run == 4
    assert walk_of(store).read("weights") == uninterrupted()


def test_a_finished_loop_is_only_read(store: FeatureStore) -> None:
    first = run(store)
    again = run(store, Walk(never))
    assert (again.card, again.history, again.n_units_run) == (first.card, first.history, 0)


def states_kept(store: FeatureStore, kill_at: int | None = None) -> Keep:
    """Keeps the state after each unit in a file, or kills the process instead."""

    def keep(state: NDArray[np.float64], history: History) -> None:
        if len(history) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        path = Path(store.location, f"kept-{len(history)}")
        path.write_bytes(path.read_bytes() if path.exists() else state.tobytes())

    return keep


def kept(store: FeatureStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(store.location).glob("kept-*")}


def states_after_each_unit() -> dict[str, bytes]:
    stage, states = Walk(), {}
    state = stage.start()
    for unit in range(stage.n_units):
        stage.step(state, unit, lambda n_rows: None)
        states[f"kept-{unit + 1}"] = stage.save(state)
    return states


def test_the_stored_state_of_each_unit_is_its_own(store: FeatureStore) -> None:
    run(store, keep=states_kept(store))
    assert kept(store) == states_after_each_unit()


KILLED_KEEPING = """
import sys
from test_pipeline_loop import *

store = FeatureStore(sys.argv[1])
run(store, keep=states_kept(store, kill_at=int(sys.argv[2])))
"""


@pytest.mark.parametrize("unit", [1, 5])
def test_a_snapshot_missed_by_a_kill_is_stored_from_the_checkpoint(
    store: FeatureStore, unit: int
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", KILLED_KEEPING, store.location, str(unit)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert f"kept-{unit}" not in kept(store)
    assert run(store, keep=states_kept(store)).n_units_run == 5 - unit
    assert kept(store) == states_after_each_unit()
    assert walk_of(store).read("weights") == uninterrupted()


def test_keep_is_not_called_for_a_finished_loop(store: FeatureStore) -> None:
    run(store)
    run(store, keep=states_kept(store))
    assert kept(store) == {}


def test_the_units_done_are_those_of_the_last_good_checkpoint_or_of_the_card(
    store: FeatureStore,
) -> None:
    assert n_units_done(walk_of(store)) == 0
    stop_at(store, 3, 0)
    assert n_units_done(walk_of(store)) == 3
    damage(Path(walk_of(store).storage.location, CHECKPOINTS, "00002.safetensors"))
    assert n_units_done(walk_of(store)) == 0
    run(store)
    assert n_units_done(walk_of(store)) == 5


def test_another_plan_under_the_same_name_is_refused_with_what_differs(store: FeatureStore) -> None:
    stop_at(store, 1, 0)
    with pytest.raises(
        PlanMismatchError, match=r"model 'walk' .*stage.params.seed: 1, found 0.*another name"
    ):
        run(store, Walk(never), {"stage": {"name": "walk", "params": {"seed": 1}}})


OTHER = {"stage": {"name": "walk", "params": {"seed": 1}}}


def fail_at(store: FeatureStore, unit: int) -> None:
    """Run until a unit reports that this plan cannot finish."""

    def fail(now: int, step: int) -> None:
        if now == unit:
            raise LoopFailedError("the loss is nan")

    with pytest.raises(LoopFailedError, match="the loss is nan"):
        run(store, Walk(fail))


@pytest.mark.parametrize("unit", [0, 3])
def test_another_plan_may_use_the_name_of_a_loop_that_failed(
    store: FeatureStore, unit: int
) -> None:
    fail_at(store, unit)
    assert not walk_of(store).holds(OTHER)
    report = run(store, plan=OTHER)
    assert (report.n_units_run, walk_of(store).plan()) == (5, OTHER)
    assert walk_of(store).read("weights") == uninterrupted()
    assert list(verify_artifact(walk_of(store))) == []


def test_another_plan_may_use_the_name_of_a_loop_without_checkpoints(
    store: FeatureStore,
) -> None:
    stop_at(store, 0, 5)
    run(store, plan=OTHER)
    assert walk_of(store).plan() == OTHER


def test_the_plan_that_failed_can_be_run_again(store: FeatureStore) -> None:
    fail_at(store, 3)
    assert run(store).n_units_run == 2
    assert walk_of(store).read("weights") == uninterrupted()
    with pytest.raises(PlanMismatchError, match="'walk' was made with another plan"):
        run(store, Walk(never), OTHER)


def test_a_mark_of_an_earlier_plan_does_not_free_the_name(store: FeatureStore) -> None:
    """The state after a crash between writing the new plan and removing the mark."""
    fail_at(store, 1)
    mark = walk_of(store).storage.read(FAILED_KEY)
    walk_of(store).claim(OTHER)
    walk_of(store).storage.write(FAILED_KEY, mark)
    with pytest.raises(KeyboardInterrupt):
        run(store, Walk(stop_in(2)), OTHER)
    with pytest.raises(
        PlanMismatchError, match=r"'walk' was started with another plan.*or remove "
    ):
        run(store, Walk(never))


def stop_in(unit: int) -> Callable[[int, int], None]:
    def stop(now: int, step: int) -> None:
        if now == unit:
            raise KeyboardInterrupt

    return stop


def test_a_loop_whose_name_was_used_meanwhile_does_not_start(store: FeatureStore) -> None:
    stop_at(store, 0, 5)
    claim = Artifact.claim

    def claim_then_lose(artifact: Artifact, plan: Any) -> None:
        claim(artifact, plan)
        claim(artifact, OTHER)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Artifact, "claim", claim_then_lose)
        with pytest.raises(PlanMismatchError, match="seed: 0, found 1"):
            run(store, Walk(never))


def test_a_loop_at_work_is_not_replaced(store: FeatureStore) -> None:
    stop_at(store, 0, 5)
    with (
        Lease(walk_of(store).storage, purpose="train walk"),
        pytest.raises(PlanMismatchError, match="was started with another plan"),
    ):
        run(store, Walk(never), OTHER)


def test_a_second_driver_is_refused(store: FeatureStore) -> None:
    with (
        Lease(walk_of(store).storage, purpose="train walk"),
        pytest.raises(LeaseError, match="being written by train walk"),
    ):
        run(store, Walk(never))


def test_every_unit_is_in_the_journal(store: FeatureStore) -> None:
    run(store)
    (path,) = Path(store.location, "journal").iterdir()
    assert path.read_text().count('"event": "epoch"') == 5
