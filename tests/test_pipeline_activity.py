"""The activity of a run according to its events."""

import json
from pathlib import Path
from typing import Any

from squares import Squares, plan_of

from pipeline.activity import activity_of, costs_of
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal, runs
from pipeline.runner import run_map
from store.catalog import FeatureStore

WORK = {"event": "work", "time": 0.0, "title": "extract numbers", "unit": "shard", "units": 9}


def at_work(time: float, *lanes: tuple[int, int, int], where: str = "") -> dict[str, Any]:
    rows = [
        {"lane": lane, "where": where, "shard": shard, "rows": n_rows}
        for lane, shard, n_rows in lanes
    ]
    return {"event": "at work", "time": time, "lanes": rows}


def done(time: float, lane: int, shard: int) -> dict[str, Any]:
    return {"event": "shard", "time": time, "lane": lane, "shard": shard, "seconds": 2.0}


def failed(time: float, lane: int, shard: int) -> dict[str, Any]:
    return {**done(time, lane, shard), "event": "shard failed", "error": "worker 1 died"}


def test_a_run_before_its_first_work_does_nothing() -> None:
    assert activity_of([{"event": "started", "time": 0.0}], 1.0) is None


def test_shards_and_failures_are_counted_since_the_last_work_began() -> None:
    events = [WORK, done(1, 0, 7), {**WORK, "title": "extract others"}, failed(2, 1, 4)]
    found = activity_of([*events, done(3, 0, 3), done(4, 1, 4)], 5.0)
    assert found is not None
    assert (found.title, found.n_done, found.n_failures) == ("extract others", 2, 1)
    assert found.lines() == [
        "extract others: 2 of 9 shards in this run, 1 attempts failed (last: worker 1 died)"
    ]


def test_a_worker_is_shown_with_its_current_node() -> None:
    moved = [at_work(10, (0, 3, 5), where="one:17"), at_work(20, (0, 4, 5), where="two:9 gpu 3")]
    found = activity_of([WORK, *moved], 21.0)
    assert found is not None
    assert found.lines()[1:] == ["  worker 0 on two:9 gpu 3: shard 4, at row 5 for 1 s"]


def test_a_worker_without_progress_is_marked() -> None:
    events = [
        WORK,
        at_work(10, (0, 0, 500), (1, 1, 640)),
        at_work(20, (0, 0, 900), (1, 1, 640)),
        done(25, 0, 0),
        at_work(200, (0, 2, 10), (1, 1, 640)),
    ]
    found = activity_of(events, 203.0)
    assert found is not None
    assert found.lines()[1:] == [
        "  worker 0: shard 2, at row 10 for 3 s",
        "  worker 1: shard 1, at row 640 for 3 min 13 s <- may be hanging",
    ]


def test_a_worker_holds_no_shard_once_that_has_ended() -> None:
    found = activity_of([WORK, at_work(1, (0, 0, 5)), failed(2, 0, 0)], 3.0)
    assert found is not None
    assert found.lanes == ()


def test_a_silent_run_is_marked() -> None:
    found = activity_of([WORK], 1000.0)
    assert found is not None
    assert found.lines()[-1] == "  <- no event for 16 min 40 s"


def test_the_journal_of_a_real_run_has_the_cost_of_each_attempt(
    store: FeatureStore, tmp_path: Path
) -> None:
    shards = store.create(plan_of(30, 10)).shard_set
    stage = Squares(10, str(tmp_path), {1: ("fail",)}, pause_s=0.01)
    with Journal.of(store.location, ["test"]).outcome() as journal:
        run_map(stage, shards, LocalExecutor(1), journal, title="squares")
    (run,) = runs(store.location)
    rows = costs_of(run.events)
    assert [(row["shard"], row["attempt"]) for row in rows] == [(0, 1), (1, 1), (2, 1), (1, 2)]
    assert [row["error"] for row in rows] == ["", "RuntimeError: this one may pass", "", ""]
    assert set(rows[0]) >= {"setup", "compute", "write", "publish", "where"}
    assert all(row["compute"] >= 0.01 for row in rows if not row["error"])
    assert activity_of(run.events, run.events[-1]["time"]) is not None
    assert json.dumps(rows)
