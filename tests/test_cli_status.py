"""The status command: contents of the store, activity of runs, costs of shards."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from made import write_corrupted
from small_data import write_npz, write_npz_set
from squares import Squares, plan_of
from typer.testing import CliRunner

from cli.app import app
from pipeline.errors import RunFailedError
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from pipeline.runner import run_map
from pipeline.work import ShardOutput, Tick
from stages.data.corruption_work import CorruptionWork
from stages.data.registry import SourceSpec
from stages.errors import InputError
from store.catalog import FeatureStore
from store.shards import Shard

AT_WORK = """
import sys, time
from pipeline.journal import Journal

journal = Journal.of(sys.argv[1], ["extract"]).begin()
journal.note("work", title="extract numbers", place="numbers", unit="shard", units=7)
journal.note("at work", lanes=[{"lane": 0, "shard": 3, "rows": 12}])
print("begun", flush=True)
sys.stdin.read()
"""

Status = Callable[..., str]


@pytest.fixture
def status(store: FeatureStore) -> Status:
    def said(*options: str) -> str:
        found = CliRunner().invoke(app, ["status", *options, "--store", store.location])
        assert found.exit_code == 0, found.output
        return found.output

    return said


@pytest.fixture
def at_work(store: FeatureStore):
    """A run in a child process, which ends when its stdin is closed."""
    command = [sys.executable, "-c", AT_WORK, store.location]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_the_activity_of_a_running_run_is_shown(
    status: Status, at_work: "subprocess.Popen[str]"
) -> None:
    text = status()
    assert "running  intro-pipe extract" in text
    assert "extract numbers: 0 of 7 shards in this run" in text
    assert "worker 0: shard 3, at row 12 for " in text


def test_watching_ends_with_the_last_run_at_work(
    status: Status, at_work: "subprocess.Popen[str]"
) -> None:
    at_work.stdin.close()  # it ends while it is watched, or was just over
    assert status("--watch").endswith("nothing is running\n")


def test_the_cost_of_every_shard_of_the_newest_run_is_shown(
    store: FeatureStore, status: Status, tmp_path: Path
) -> None:
    assert "no run in this store has computed a shard" in status("--shards")
    shards = store.create(plan_of(30, 10)).shard_set
    stage = Squares(10, str(tmp_path), {1: ("fail",)})
    with Journal.of(store.location, ["test"]).outcome() as journal:
        run_map(stage, shards, LocalExecutor(1), journal, title="squares")
    header, *lines = status("--shards").splitlines()
    assert header.split()[:4] == ["shard", "attempt", "where", "seconds"]
    assert {"compute", "write", "publish", "error"} <= set(header.split())
    assert len(lines) == 4
    assert lines[1].endswith("RuntimeError: this one may pass")


def test_watching_is_for_people(store: FeatureStore) -> None:
    with pytest.raises(InputError, match="--watch cannot be combined"):
        CliRunner().invoke(
            app, ["status", "--watch", "--json", "--store", store.location], catch_exceptions=False
        )


@dataclass(frozen=True)
class Broken(Squares):
    """Its third shard cannot be had."""

    def compute(self, state: int, shard: Shard, tick: Tick) -> ShardOutput:
        if shard.index == 2:
            raise ValueError("no such number")
        return super().compute(state, shard, tick)


def row_of(status: Status, name: str) -> dict[str, Any]:
    (row,) = [each for each in json.loads(status("--json"))["contents"] if name in each["name"]]
    return dict(row)


def test_a_partial_set_reports_what_is_missing_and_how_the_run_ended(
    store: FeatureStore, status: Status, tmp_path: Path
) -> None:
    shards = store.create(plan_of(30, 10)).shard_set
    stage = Broken(10, str(tmp_path))
    journal = Journal.of(store.location, ["test"])
    with pytest.raises(RunFailedError), journal.outcome():
        run_map(stage, shards, LocalExecutor(1), journal, title="squares")
    row = row_of(status, "numbers")
    assert row["state"] == "partial"
    assert row["detail"].startswith(
        "2 of 3 shards, missing 2; RunFailedError: 1 of 3 shards failed"
    )


@dataclass(frozen=True)
class Stopped(Squares):
    """A signal comes at its third shard."""

    signal: str = ""

    def compute(self, state: int, shard: Shard, tick: Tick) -> ShardOutput:
        if shard.index == 2:
            raise KeyboardInterrupt(self.signal)
        return super().compute(state, shard, tick)


@pytest.mark.parametrize(
    ("signal", "name"),
    [("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGHUP"), ("SIGINT", "Ctrl-C"), ("", "Ctrl-C")],
)
def test_a_partial_set_reports_the_signal_that_stopped_its_run(
    store: FeatureStore, status: Status, tmp_path: Path, signal: str, name: str
) -> None:
    shards = store.create(plan_of(30, 10)).shard_set
    journal = Journal.of(store.location, ["test"])
    with pytest.raises(KeyboardInterrupt), journal.outcome():
        run_map(
            Stopped(10, str(tmp_path), signal=signal),
            shards,
            LocalExecutor(1),
            journal,
            title="squares",
        )
    row = row_of(status, "numbers")
    assert row["detail"].endswith(f"; stopped by {name}")
    why = f"{row['name']} (features): missing 2; stopped by {name}"
    assert status().split("\n\n")[1] == why
    assert json.loads(status("--json"))["runs"][0]["why"] == f"stopped by {name}"


def test_the_last_runs_have_reasons_for_their_failure(store: FeatureStore, status: Status) -> None:
    journal = Journal.of(store.location, ["test"]).begin()
    with pytest.raises(RunFailedError), journal.outcome():
        raise RunFailedError("no luck " * 40)
    header, run, why = status().partition("newest first\n")[2].splitlines()
    assert (header.split(), run) == (["outcome", "command"], "failed   intro-pipe test")
    assert why.strip() == f"RunFailedError: {'no luck ' * 40}"[:160] + "..."


@pytest.mark.parametrize(
    ("verb", "why"),
    [
        ("extract", "ValueError: no luck; a later run completed its output"),
        ("run", "ValueError: no luck"),
    ],
)
def test_a_run_whose_output_another_one_completed_says_so(
    store: FeatureStore, status: Status, verb: str, why: str
) -> None:
    first = Journal.of(store.location, [verb, "--features", "numbers"]).begin()
    first.note("work", title="t", place="/store/numbers", unit="shards", units=2)
    with pytest.raises(ValueError, match="no luck"), first.outcome():
        raise ValueError("no luck")
    later = Journal.of(store.location, ["extract", "--features", "numbers", "--workers", "2"])
    with later.begin().outcome():
        later.note("work", title="t", place="/store/numbers", unit="shards", units=1)
    assert [run["why"] for run in json.loads(status("--json"))["runs"]] == ["", why]


def test_feature_sets_and_corrupted_sets_are_stale_after_their_data_changed(
    store: FeatureStore, status: Status, tmp_path: Path
) -> None:
    """The journal records the location of the images relative to the folder of the run."""
    clean = write_npz_set(tmp_path / "tiny", 4, 4)
    corrupt = CorruptionWork(SourceSpec(str(clean), "test", ""), ("contrast",))
    place = str(tmp_path / "tiny-c")
    words = ["corrupt", "--dataset", str(clean), "--split", "test"]
    write_corrupted(store, corrupt, place, LocalExecutor(1), Journal.of(store.location, words))
    assert row_of(status, "tiny-c")["state"] == "complete"
    write_npz(clean / "test.npz", 5)
    row = row_of(status, "tiny-c")
    assert (row["kind"], row["state"]) == ("corrupted", "stale")
    assert row["detail"].startswith("1 of 1 shard; its data set has changed: other ")
    shutil.rmtree(place)
    assert row_of(status, "tiny-c")["state"] == "missing"
