"""The runner: what is missing, who computes it, what failed, what to say."""

import time
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TextIO

from pipeline.errors import RunFailedError
from pipeline.executors import Executor, Watch
from pipeline.journal import Journal
from pipeline.progress import Progress
from pipeline.space import Room
from pipeline.stage import MapStage
from pipeline.worker import Outcome, Pace, Work
from store.errors import StoreError, WriteError
from store.lease import Lease
from store.machine import Machine
from store.shards import Shard
from store.shardset import ShardSet, StagedShard

MAX_ATTEMPTS = 3
MAX_FAILED_SHARE = 0.01
"""Of the rows of a set; more bad samples than this stop the run."""

MAX_FRUITLESS = 10
"""Failures of one worker, before any shard was computed, that stop the run: it is not the shards.

Those that would fail the same way again do not count: they cost one attempt each.
"""

PACE_EVERY_S = 10.0
"""How often the journal is told where the workers are."""

FREE_FAILURES = 10
"""Bad samples that never stop a run, so that a small set is not held to a fraction of a row."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run came to."""

    n_shards: int
    n_computed: int
    n_rows_computed: int
    n_failed_rows: int
    seconds: float

    @property
    def rows_per_s(self) -> float:
        """Rows computed by the second, start-up of the workers included."""
        return self.n_rows_computed / self.seconds if self.n_rows_computed else 0.0

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, for JSON."""
        return {**asdict(self), "rows_per_s": self.rows_per_s}


def run_map(
    stage: MapStage,
    shard_set: ShardSet,
    executor: Executor,
    journal: Journal,
    *,
    title: str,
    unit: str = "images",
    redo: Sequence[Shard] = (),
    stream: TextIO | None = None,
    machine: Machine | None = None,
) -> RunReport:
    """Compute the missing shards of a set. Where none is missing, nothing starts.

    Those of ``redo`` are computed too, and stay as they are until their new bytes are staged.
    ``unit`` is what progress calls the rows.

    A shard that fails is tried three times, unless it would fail the same way again; the others are
    finished first. Where the inputs changed meanwhile, the shards of this run are taken back.
    Raises ``RunFailedError`` where shards failed for good, ``ValueError`` where inputs changed,
    ``LeaseError`` where another driver is at work.
    """
    if not shard_set.missing() and not redo:
        shard_set.confirm()
        return RunReport(len(shard_set.shards), 0, 0, 0, 0.0)
    with Lease(shard_set.storage, purpose=title, machine=machine) as lease:
        shard_set.confirm()
        missing = shard_set.missing()  # a driver before this one may have gone on until now
        todo = sorted({*missing, *redo}, key=lambda shard: shard.index)
        place = shard_set.storage.location
        journal.begin().note("work", title=title, place=place, unit="shard", units=len(todo))
        again = frozenset(shard.index for shard in redo)
        work = Work(stage, shard_set)
        return _Run(work, executor, journal, lease, title, unit, stream, again).run(todo)


class _Run:
    """The state of one run: what ended well, what is to be tried again, what failed for good."""

    def __init__(
        self,
        work: Work,
        executor: Executor,
        journal: Journal,
        lease: Lease,
        title: str,
        unit: str,
        stream: TextIO | None,
        redo: Collection[int],
    ) -> None:
        self._work = work
        self._executor = executor
        self._journal = journal
        self._lease = lease
        self._title = title
        self._unit = unit
        self._stream = stream
        self._redo = redo
        self._n_failed_before = 0
        self._n_failed_rows = 0
        self._computed: dict[int, Shard] = {}
        self._in_hand: StagedShard | None = None
        self._failed: list[Outcome] = []
        self._attempts: Counter[int] = Counter()
        self._fruitless: Counter[int] = Counter()

    def run(self, shards: Sequence[Shard]) -> RunReport:
        """Compute the shards; ``RunFailedError`` where some cannot be."""
        started = time.monotonic()
        failed_before = self._work.shard_set.failed_rows()
        todo = {shard.index for shard in shards}
        self._n_failed_before = sum(n for index, n in failed_before.items() if index not in todo)
        try:
            self._compute(deque(shards))
        finally:  # whatever ended it, Ctrl-C too
            self._check_inputs()
        if self._failed:
            raise self._failure()
        n_rows = sum(shard.n_rows for shard in self._computed.values())
        return RunReport(
            len(self._work.shard_set.shards),
            len(self._computed),
            n_rows,
            self._n_failed_rows,
            time.monotonic() - started,
        )

    def _compute(self, todo: deque[Shard]) -> None:
        """Compute the shards, those that fail again at the end of the queue."""
        n_rows = sum(shard.n_rows for shard in todo)
        room = Room(self._work.shard_set.storage.location)
        n_shards, lanes = len(todo), set[int]()
        with Progress(self._title, n_rows, unit=self._unit, stream=self._stream) as progress:
            watch = self._watched(progress.watch)
            for ended in self._executor.run(self._work, todo, watch):
                self._lease.check()
                outcome = self._published(ended)
                self._note(outcome)
                progress.end(outcome)
                lanes.add(outcome.lane)
                if outcome.staged is not None:
                    self._keep(outcome)
                    n_left = n_shards - len(self._computed)
                    if warning := room.take(outcome.n_bytes, n_left, len(lanes)):
                        progress.note(warning)
                elif self._is_tried_again(outcome):
                    progress.note(f"shard {outcome.shard.index} is tried again: {outcome.error}")
                    todo.append(outcome.shard)
                else:
                    self._failed.append(outcome)

    def _watched(self, watch: Watch) -> Watch:
        """Let the journal know now and then where each worker is, for who looks from elsewhere."""
        noted = time.monotonic()

        def watch_and_note(paces: Sequence[Pace]) -> None:
            nonlocal noted
            watch(paces)
            if paces and time.monotonic() - noted >= PACE_EVERY_S:
                noted = time.monotonic()
                self._journal.note("at work", lanes=[_lane(pace) for pace in paces])

        return watch_and_note

    def _published(self, outcome: Outcome) -> Outcome:
        """The outcome, its shard in place; one of failure where it cannot be published.

        The lease was seen after the worker staged the shard: see ``ShardSet.publish``.
        """
        if outcome.staged is None:
            return outcome
        began = time.perf_counter()
        self._in_hand = outcome.staged
        try:
            index = outcome.shard.index
            is_redone = index in self._redo and index not in self._computed
            replacing = self._lease.check if is_redone else None
            self._work.shard_set.publish(outcome.staged, replacing=replacing)
        except WriteError as error:
            raise RunFailedError(f"{error}; what was finished before is kept") from error
        except StoreError as error:  # swept by a driver that gave up meanwhile, or a torn receipt
            return replace(outcome, staged=None, error=str(error))
        return replace(outcome, costs={**outcome.costs, "publish": time.perf_counter() - began})

    def _check_inputs(self) -> None:
        """Take back what this run computed, if its inputs are no longer the planned ones."""
        shard_set = self._work.shard_set
        try:
            self._work.stage.check(shard_set.plan)
        except ValueError:
            ours = dict(self._computed)
            if (last := self._in_hand) and shard_set.holds(last):  # Ctrl-C came right after it
                ours[last.shard.index] = last.shard
            shard_set.discard(ours.values(), self._lease.check)
            raise

    def _keep(self, outcome: Outcome) -> None:
        if outcome.shard.index not in self._computed:  # a worker may answer twice
            self._computed[outcome.shard.index] = outcome.shard
            self._n_failed_rows += outcome.n_failed_rows
        self._in_hand = None
        self._stop_if_hopeless()

    def _is_tried_again(self, outcome: Outcome) -> bool:
        """Whether another try may help; raises ``RunFailedError`` where no shard will do better."""
        if outcome.stops_run:
            raise RunFailedError(f"{outcome.error}; what was finished before is kept")
        self._attempts[outcome.shard.index] += 1
        if outcome.is_final or self._attempts[outcome.shard.index] == MAX_ATTEMPTS:
            return False
        self._stop_if_fruitless(outcome)
        return True

    def _note(self, outcome: Outcome) -> None:
        facts = {
            "shard": outcome.shard.index,
            "lane": outcome.lane,
            "where": outcome.where,
            "seconds": round(outcome.seconds, 3),
            "costs": {name: round(seconds, 3) for name, seconds in outcome.costs.items()},
        }
        if outcome.staged is not None:
            self._journal.note("shard", **facts, failed_rows=outcome.n_failed_rows)
        else:
            self._journal.note("shard failed", **facts, error=outcome.error, trace=outcome.trace)

    def _stop_if_hopeless(self) -> None:
        n_rows = self._work.shard_set.n_rows
        n_failed = self._n_failed_before + self._n_failed_rows
        if n_failed > max(FREE_FAILURES, MAX_FAILED_SHARE * n_rows):
            raise RunFailedError(
                f"{n_failed} of {n_rows} samples cannot be used, more than "
                f"{MAX_FAILED_SHARE:.0%}: look at the `status` column of what is there, mend the "
                "data set, and run again"
            )

    def _stop_if_fruitless(self, outcome: Outcome) -> None:
        self._fruitless[outcome.lane] += 1
        if not self._computed and self._fruitless[outcome.lane] == MAX_FRUITLESS:
            raise RunFailedError(
                f"worker {outcome.lane} failed {MAX_FRUITLESS} times and no shard was computed; "
                f"last, shard {outcome.shard.index}: {outcome.error}"
            )

    def _failure(self) -> RunFailedError:
        first = self._failed[0]
        return RunFailedError(
            f"{len(self._failed)} of {len(self._work.shard_set.shards)} shards failed, "
            f"{len(self._computed)} computed; first, shard {first.shard.index}: {first.error}"
            " (run the same command again, or `intro-pipe resume`, to compute only what is missing)"
        )


def _lane(pace: Pace) -> dict[str, int | str]:
    return {
        "lane": pace.lane,
        "where": pace.where,
        "shard": pace.shard.index,
        "rows": pace.n_rows,
    }
