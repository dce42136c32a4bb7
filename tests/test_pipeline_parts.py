"""The parts of an artifact are loops that workers run; each resumes and fails on its own."""

from collections.abc import Callable

import pytest
from test_pipeline_loop import Walk, uninterrupted

from pipeline.activity import activity_of
from pipeline.errors import RunFailedError
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal, runs
from pipeline.loop import Claim, Loop
from pipeline.parts import Parts, make_parts
from pipeline.worker import Pace
from store.artifacts import Artifact
from store.catalog import FeatureStore

At = Callable[[int, int], None]


def nothing(unit: int, step: int) -> None:
    pass


def part(store: FeatureStore, number: int) -> Artifact:
    return store.artifact("result", f"walk-{number}")


def make(store: FeatureStore, *ats: At, executor: LocalExecutor | None = None) -> None:
    """Make a walk for each function, which is called before each of its steps."""
    loops = tuple(
        (
            Claim(part(store, number), {"walk": number}, store, f"walk {number}"),
            Loop(lambda at=at: Walk(at), Walk.n_units),  # type: ignore[misc]  # a default of a lambda has no type
        )
        for number, at in enumerate(ats)
    )
    parts = Parts(loops, "epochs", lambda n_threads: None)
    with Journal.of(store.location, ["walks"]).begin().outcome() as journal:
        make_parts(parts, executor or LocalExecutor(1), journal, title="walks", place="walks")


def never(unit: int, step: int) -> None:
    raise AssertionError("nothing was to be computed")


def test_each_part_is_an_artifact_of_its_own(store: FeatureStore) -> None:
    make(store, nothing, nothing)
    assert [part(store, number).read("weights") for number in (0, 1)] == [uninterrupted()] * 2
    make(store, never, never)


def test_a_part_that_fails_is_retried_from_its_checkpoint(store: FeatureStore) -> None:
    seen: list[tuple[int, int]] = []

    def fail_once(unit: int, step: int) -> None:
        seen.append((unit, step))
        if (unit, step) == (3, 5) and seen.count((3, 5)) == 1:
            raise RuntimeError("a transient error")

    make(store, fail_once)
    assert part(store, 0).read("weights") == uninterrupted()
    assert [unit for unit, step in seen if step == 0] == [0, 1, 2, 3, 3, 4]


def test_the_other_parts_are_finished_first(store: FeatureStore) -> None:
    def fail(unit: int, step: int) -> None:
        raise ValueError("a bad image")

    with pytest.raises(RunFailedError, match="1 of 3 runs failed, 2 computed; first, run 1: Value"):
        make(store, nothing, fail, nothing)
    assert [part(store, number).is_complete() for number in range(3)] == [True, False, True]
    make(store, never, nothing, never)


def test_a_killed_part_is_resumed_and_only_its_missing_units_count(store: FeatureStore) -> None:
    def stop(unit: int, step: int) -> None:
        if unit == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(store, stop)
    sizes = []

    class Watching(LocalExecutor):
        def run(self, work, todo, watch):  # type: ignore[no-untyped-def]  # as its base class
            sizes.extend(task.n_rows for task in todo)
            return super().run(work, todo, watch)

    make(store, nothing, executor=Watching(1))
    assert sizes == [3]
    assert part(store, 0).read("weights") == uninterrupted()


def test_progress_counts_units_and_every_step_shows_that_the_worker_is_alive(
    store: FeatureStore,
) -> None:
    paces: list[Pace] = []

    class Watching(LocalExecutor):
        def run(self, work, todo, watch):  # type: ignore[no-untyped-def]  # as its base class
            return super().run(work, todo, lambda found, *_: paces.extend(found))

    make(store, nothing, executor=Watching(1))
    assert [pace.n_rows for pace in paces][11::13] == [0, 1, 2, 3, 4]
    assert [pace.n_ticks for pace in paces] == list(range(1, 5 * 13 + 1))


def test_the_journal_counts_runs(store: FeatureStore) -> None:
    make(store, nothing, nothing)
    (run,) = runs(store.location)
    found = activity_of(run.events, run.events[-1]["time"])
    assert found is not None
    assert found.lines() == ["walks: 2 of 2 runs in this run"]
