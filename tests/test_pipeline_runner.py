"""How the runner handles outcomes: which it retries, when it stops, what it reports."""

import os
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from squares import Squares, plan_of

from pipeline.errors import RunFailedError
from pipeline.executors import Executor, LocalExecutor, Watch
from pipeline.journal import Journal
from pipeline.runner import RunReport, run_map
from pipeline.work import Task, Work
from pipeline.worker import Outcome, Pace
from store.catalog import FeatureStore
from store.errors import LeaseError
from store.failures import FREE_FAILURES
from store.featureset import FeatureSet
from store.lease import Lease, holder_of
from store.plan import Plan
from store.receipts import Receipt
from store.shards import Shard
from store.shardset import ShardSet, StagedShard
from store.storage import FileLog
from store.verify import verify_files

LOCAL = LocalExecutor(n_threads=1)


@dataclass
class Scripted:
    """An executor that computes nothing; ``outcome_of`` says how each attempt ends."""

    outcome_of: Callable[[Any], Outcome]
    n_runs: int = 0
    attempts: Counter[int] = field(default_factory=Counter)
    description: str = "a script"

    def check(self) -> None:
        pass

    def run(self, work: Work, todo: deque[Task], watch: Watch) -> Iterator[Outcome]:
        self.n_runs += 1
        while todo:
            shard = todo.popleft()
            self.attempts[shard.index] += 1
            watch([Pace(0, shard, 1)])
            yield self.outcome_of(shard)


def good(shard: Shard) -> Outcome:
    return Outcome(shard, 0, 1.0, StagedShard(shard, {}, Receipt("", shard, {}, {})))


def dead(shard: Shard) -> Outcome:
    return Outcome(shard, 0, 0.0, error="worker 0 died: out of memory")


@pytest.fixture
def shards(store: FeatureStore) -> ShardSet:
    """A thousand rows in five shards."""
    return store.create(plan_of(1000, 200)).shard_set


@pytest.fixture
def many(store: FeatureStore) -> ShardSet:
    """Twenty rows in twenty shards."""
    return store.create(plan_of(20, 1)).shard_set


def journal_of(shards: ShardSet) -> Journal:
    return Journal.of(shards.storage.location, ["test"]).begin()


def run(stage: Squares, shards: ShardSet, executor: Executor = LOCAL) -> RunReport:
    return run_map(stage, shards, executor, journal_of(shards), title="squares")


def test_a_report_counts_what_this_run_did(shards: ShardSet, tmp_path: Path) -> None:
    report = run(Squares(200, str(tmp_path), nan_rows=(3,)), shards)
    counted = (report.n_shards, report.n_computed, report.n_rows_computed, report.n_failed_rows)
    assert counted == (5, 5, 1000, 1)
    assert report.to_dict()["rows_per_s"] == pytest.approx(1000 / report.seconds)


def test_redone_shards_replace_existing_ones(shards: ShardSet, tmp_path: Path) -> None:
    run(Squares(200, str(tmp_path), nan_rows=(3,)), shards)
    others = list(shards.receipts())[1:]
    stage, redo = Squares(200, str(tmp_path)), shards.shards[:1]
    report = run_map(stage, shards, LOCAL, journal_of(shards), title="squares", redo=redo)
    assert (report.n_computed, report.n_failed_rows, shards.n_failed_rows()) == (1, 0, 0)
    assert list(shards.receipts())[1:] == others


def test_rows_that_fail_when_redone_are_counted_once(shards: ShardSet, tmp_path: Path) -> None:
    stage = Squares(200, str(tmp_path), nan_rows=tuple(range(FREE_FAILURES)))
    run(stage, shards)
    redo = shards.shards[:1]
    run_map(stage, shards, LOCAL, journal_of(shards), title="squares", redo=redo)
    assert shards.n_failed_rows() == FREE_FAILURES


def test_a_rerun_starts_no_executor_and_takes_no_lease(shards: ShardSet, tmp_path: Path) -> None:
    stage, executor = Squares(200, str(tmp_path)), Scripted(good)
    run(stage, shards)
    with Lease(shards.storage, purpose="someone else's"):
        assert run(stage, shards, executor) == RunReport(5, 0, 0, 0, 0.0)
    assert executor.n_runs == 0


def test_only_the_missing_shards_are_handed_out(shards: ShardSet, tmp_path: Path) -> None:
    run(Squares(200, str(tmp_path)), shards)
    for index in (1, 3):
        shards.discard([shards.shards[index]], lambda: None)
    executor = Scripted(good)
    run(Squares(200, str(tmp_path)), shards, executor)
    assert executor.attempts == {1: 1, 3: 1}


def test_a_second_driver_is_refused_with_the_name_of_the_first(
    shards: ShardSet, tmp_path: Path
) -> None:
    executor = Scripted(good)
    with (
        Lease(shards.storage, purpose="extract numbers"),
        pytest.raises(LeaseError, match=rf"being written by extract numbers \(pid {os.getpid()} "),
    ):
        run(Squares(200, str(tmp_path)), shards, executor)
    assert executor.n_runs == 0


@pytest.mark.parametrize("script", [{}, {2: ("final",)}], ids=["done", "failed"])
def test_the_lease_is_given_back(
    shards: ShardSet, tmp_path: Path, script: dict[int, tuple[str, ...]]
) -> None:
    with suppress(RunFailedError):
        run(Squares(200, str(tmp_path), script), shards)
    assert holder_of(shards.storage) is None


def test_a_driver_that_lost_its_lease_stops(shards: ShardSet, tmp_path: Path) -> None:
    def lose_lease(shard: Shard) -> Outcome:
        shards.storage.create("lease/00000002.json", b"another driver's")
        return good(shard)

    executor = Scripted(lose_lease)
    with pytest.raises(LeaseError, match=r"another driver took over .*: this one stops"):
        run(Squares(200, str(tmp_path)), shards, executor)
    assert executor.attempts.total() == 1
    assert shards.done() == set()


def test_eleven_bad_samples_in_a_thousand_stop_the_run_early(
    shards: ShardSet, tmp_path: Path
) -> None:
    stage = Squares(200, str(tmp_path), nan_rows=tuple(range(100, 111)))
    with pytest.raises(
        RunFailedError, match="11 of 1,000 rows failed, more than 1%: 11 x scripted"
    ):
        run(stage, shards)
    assert shards.done() == {0}


@pytest.mark.parametrize(
    ("bad", "shard_rows"),
    [(range(100, 111), 200), (range(1000), 1000)],
    ids=["partial", "complete"],
)
def test_a_set_with_too_many_failed_rows_fails_again_until_they_are_retried(
    tmp_path: Path, bad: range, shard_rows: int
) -> None:
    shards = FeatureStore(str(tmp_path)).create(plan_of(1000, shard_rows)).shard_set
    stage = Squares(shards.chunk_rows, str(tmp_path), nan_rows=tuple(bad))
    messages, executor = [], Scripted(good)
    for again in (LOCAL, executor, executor):
        with pytest.raises(RunFailedError, match=f"{len(bad):,} of 1,000 rows failed") as error:
            run(stage, shards, again)
        messages.append(str(error.value))
    assert len(set(messages)) == 1
    assert executor.n_runs == 0
    good_stage, redo = Squares(shards.chunk_rows, str(tmp_path)), shards.shards[:1]
    run_map(good_stage, shards, LOCAL, journal_of(shards), title="squares", redo=redo)
    assert (shards.is_complete(), shards.n_failed_rows()) == (True, 0)
    assert run(good_stage, shards).n_failed_rows == 0


def test_rows_that_fail_again_when_retried_stop_the_run(shards: ShardSet, tmp_path: Path) -> None:
    stage = Squares(200, str(tmp_path), nan_rows=tuple(range(100, 111)))
    for redo in ((), shards.shards[:1]):
        with pytest.raises(RunFailedError, match="11 of 1,000 rows failed"):
            run_map(stage, shards, LOCAL, journal_of(shards), title="squares", redo=redo)


def test_accepted_failures_let_a_run_continue_and_are_recorded(
    shards: ShardSet, tmp_path: Path
) -> None:
    stage = Squares(200, str(tmp_path), nan_rows=tuple(range(100, 111)))
    with pytest.raises(RunFailedError):
        run(stage, shards)
    report = run_map(
        stage, shards, LOCAL, journal_of(shards), title="squares", accepts_failures=True
    )
    assert (report.n_computed, shards.is_complete()) == (4, True)
    assert run(stage, shards).n_failed_rows == 11
    shards.discard(shards.shards[:2], lambda: None)  # as repair does
    assert run(stage, shards).n_failed_rows == 11


def test_a_complete_set_is_accepted_without_computing_anything(tmp_path: Path) -> None:
    shards = FeatureStore(str(tmp_path)).create(plan_of(1000, 1000)).shard_set
    stage = Squares(1000, str(tmp_path), nan_rows=tuple(range(1000)))
    with pytest.raises(RunFailedError):
        run(stage, shards)
    with (
        Lease(shards.storage, purpose="someone else's"),
        pytest.raises(LeaseError),
    ):
        run_map(stage, shards, LOCAL, journal_of(shards), title="squares", accepts_failures=True)
    run_map(stage, shards, LOCAL, journal_of(shards), title="squares", accepts_failures=True)
    assert run(stage, shards, Scripted(good)).n_failed_rows == 1000


def test_ten_bad_samples_stop_no_run(shards: ShardSet, tmp_path: Path) -> None:
    stage = Squares(200, str(tmp_path), nan_rows=tuple(range(100, 110)))
    assert run(stage, shards).n_failed_rows == 10


def test_workers_that_always_die_stop_the_run_before_every_shard_was_tried(
    many: ShardSet, tmp_path: Path
) -> None:
    executor = Scripted(dead)
    with pytest.raises(RunFailedError, match="worker 0 failed 10 times and no shard was computed;"):
        run(Squares(1, str(tmp_path)), many, executor)
    assert executor.attempts.total() == 10


def test_workers_that_die_after_a_first_success_cost_their_shards_only(
    many: ShardSet, tmp_path: Path
) -> None:
    executor = Scripted(lambda shard: dead(shard) if shard.index else good(shard))
    with pytest.raises(RunFailedError, match="19 of 20 shards failed, 1 computed"):
        run(Squares(1, str(tmp_path)), many, executor)
    assert executor.attempts == {0: 1} | dict.fromkeys(range(1, 20), 3)


def test_many_shards_that_fail_permanently_do_not_stop_the_others(
    many: ShardSet, tmp_path: Path
) -> None:
    stage = Squares(1, str(tmp_path), dict.fromkeys(range(15), ("final",)))
    with pytest.raises(RunFailedError, match="15 of 20 shards failed, 5 computed"):
        run(stage, many)


def test_a_full_disk_stops_the_run_at_once(tiny_disk: Path, tmp_path: Path) -> None:
    """Its first shard does not fit, before it is known how large a shard is."""
    shards = FeatureStore(str(tiny_disk)).prepare().create(plan_of(200_000, 50_000)).shard_set
    journal = Journal.of(str(tiny_disk), ["test"]).begin()
    stage = Squares(50_000, str(tmp_path))
    with pytest.raises(RunFailedError) as failure, journal.outcome():
        run_map(stage, shards, LOCAL, journal, title="squares")
    message = str(failure.value)
    assert "the disk is full: free some space" in message
    assert message.endswith("; finished shards are kept")
    assert "\n" not in message
    assert sum(stage.attempts(index) for index in range(4)) == 1


def test_a_run_stops_before_the_disk_is_full_and_resumes_with_free_space(
    tiny_disk: Path, tmp_path: Path
) -> None:
    shards = FeatureStore(str(tiny_disk)).prepare().create(plan_of(50_000, 5_000)).shard_set
    stage, journal = Squares(5_000, str(tmp_path)), Journal(FileLog(tmp_path / "journal")).begin()
    with pytest.raises(RunFailedError, match=r"the disk is nearly full.*finished shards are kept"):
        run_map(stage, shards, LOCAL, journal, title="squares")
    n_done = len(shards.done())
    assert 1 < n_done < 10
    assert shards.storage.staged() == []
    assert {problem.kind for problem in verify_files(shards)} == {"missing shard"}
    subprocess.run(["mount", "-o", "remount,size=2m", str(tiny_disk)], check=True)
    assert run_map(stage, shards, LOCAL, journal, title="squares").n_computed == 10 - n_done
    assert shards.is_complete()


def test_a_read_only_store_stops_the_run_at_once(tiny_disk: Path, tmp_path: Path) -> None:
    shards = FeatureStore(str(tiny_disk)).prepare().create(plan_of(100, 10)).shard_set
    stage, executor = Squares(10, str(tmp_path)), Scripted(good)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(OSError, match="the file system is read-only: choose another location"):
        run_map(stage, shards, executor, Journal(FileLog(tmp_path / "journal")), title="squares")
    assert executor.n_runs == 0


def test_every_outcome_is_in_the_journal(shards: ShardSet, tmp_path: Path) -> None:
    journal = journal_of(shards)
    stage = Squares(200, str(tmp_path), {4: ("fail",)})
    run_map(stage, shards, LOCAL, journal, title="squares")
    text = journal.log.path.read_text()
    assert text.count('"event": "shard",') == 5
    assert text.count('"event": "shard failed"') == 1
    assert "RuntimeError: this one may pass" in text


def test_a_short_run_prints_no_progress(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Squares(200, str(tmp_path)), shards)
    assert capsys.readouterr().err == ""  # it was over before the first line was due


INTERRUPTED = """
import os, signal, sys
from squares import Squares, plan_of
from test_pipeline_runner import LOCAL, Scripted, good, holder_of, run
from store.catalog import FeatureStore

shards = FeatureStore(sys.argv[1]).prepare().create(plan_of(20, 5)).shard_set
try:
    run(Squares(5, sys.argv[1]), shards, Scripted(lambda s: os.kill(os.getpid(), signal.SIGINT)))
except KeyboardInterrupt:
    print(holder_of(shards.storage))
"""


def test_an_interrupt_gives_the_lease_back(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "None\n"


@dataclass(frozen=True)
class Changing(Squares):
    """Its inputs are no longer the planned ones once a file exists."""

    def check(self, plan: Plan) -> None:
        if Path(self.folder, "changed").exists():
            raise ValueError("the inputs changed")


@dataclass(frozen=True)
class Meddling(LocalExecutor):
    """Changes the inputs after the second shard."""

    folder: str = ""

    def run(self, work: Work, todo: deque[Task], watch: Watch) -> Iterator[Outcome]:
        for n_done, outcome in enumerate(super().run(work, todo, watch), start=1):
            if n_done == 2:
                Path(self.folder, "changed").touch()
            yield outcome


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_shards_are_discarded_if_inputs_changed_during_the_run(
    numbers: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_interrupted: bool
) -> None:
    """Including a shard that was published just before Ctrl-C."""
    kept = numbers.shard_set.shards[0]
    for shard in numbers.shard_set.shards[1:]:
        numbers.shard_set.discard([shard], lambda: None)
    publish = ShardSet.publish

    def interrupted(self: ShardSet, staged: StagedShard, **how: Any) -> None:
        publish(self, staged, **how)
        if Path(tmp_path, "changed").exists():
            raise KeyboardInterrupt

    if is_interrupted:
        monkeypatch.setattr(ShardSet, "publish", interrupted)  # Ctrl-C has no hook there
    journal = Journal.of(str(tmp_path), ["test"]).begin()
    executor = Meddling(1, str(tmp_path))
    with pytest.raises(ValueError, match="the inputs changed"):
        run_map(
            Changing(numbers.shard_set.chunk_rows, str(tmp_path)),
            numbers.shard_set,
            executor,
            journal,
            title="squares",
        )
    assert numbers.shard_set.done() == {kept.index}
