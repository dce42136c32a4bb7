"""The runner: computes the missing shards of a set, retries failures and reports progress."""

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf

from pipeline.attempts import Attempts
from pipeline.errors import RunFailedError
from pipeline.executors import Executor
from pipeline.journal import Journal
from pipeline.progress import Progress
from pipeline.space import Room
from pipeline.work import ShardWork, Task
from pipeline.worker import Outcome, SetWork
from store.errors import FailedRowsError, StoreError, WriteError
from store.failures import accept, check_failures, max_failed_rows, refusal
from store.lease import Lease
from store.machine import Machine
from store.shards import Shard
from store.shardset import ShardSet, StagedShard


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of a run over shards."""

    n_shards: int
    n_computed: int
    n_rows_computed: int
    n_failed_rows: int
    seconds: float

    @property
    def rows_per_s(self) -> float:
        """Rows computed per second, including the start of the workers."""
        return self.n_rows_computed / self.seconds if self.n_rows_computed else 0.0

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, for JSON."""
        return {**asdict(self), "rows_per_s": self.rows_per_s}


def run_map(
    stage: ShardWork,
    shard_set: ShardSet,
    executor: Executor,
    journal: Journal,
    *,
    title: str,
    redo: Sequence[Shard] = (),
    accepts_failures: bool = False,
    machine: Machine | None = None,
) -> RunReport:
    """Compute the missing shards of a set. If none is missing, no worker starts.

    The shards of ``redo`` are computed too; the old ones are kept until the new ones are staged.
    With ``accepts_failures`` any number of rows may fail, which is recorded in the set.

    A shard that fails is attempted three times, unless a retry would fail the same way; the other
    shards are finished first. If the inputs changed in the meantime, the shards of this run are
    discarded.

    Raises:
        RunFailedError: some shards failed on their last attempt, or more rows than allowed failed.
        ValueError: the inputs changed.
        LeaseError: another driver is running.
    """
    if not shard_set.missing() and not redo:
        return finished(shard_set, accepts_failures=accepts_failures, machine=machine)
    with Lease(shard_set.storage, purpose=title, machine=machine) as lease:
        shard_set.confirm()
        missing = shard_set.missing()  # another driver may have computed some until now
        todo = sorted({*missing, *redo}, key=lambda shard: shard.index)
        place = shard_set.storage.location
        journal.begin().note("work", title=title, place=place, unit="shard", units=len(todo))
        again = frozenset(shard.index for shard in redo)
        max_failed = inf if accepts_failures else max_failed_rows(shard_set)
        run = _Run(SetWork(stage, shard_set), executor, journal, lease, again, max_failed)
        n_rows = sum(shard.n_rows for shard in todo)
        report = run.run(todo, Progress(title, n_rows, unit=stage.rows))
        if accepts_failures:
            accept(shard_set)
        return report


def finished(
    shard_set: ShardSet, *, accepts_failures: bool = False, machine: Machine | None = None
) -> RunReport:
    """The report on a complete set, which is made durable; ``accepts_failures`` as in ``run_map``.

    Raises ``RunFailedError`` if more rows failed than allowed.
    """
    if accepts_failures:
        with Lease(shard_set.storage, purpose="accept failed rows", machine=machine):
            n_failed = accept(shard_set)
    else:
        n_failed = refuse_failed(shard_set)
    shard_set.confirm()
    return RunReport(len(shard_set.shards), 0, 0, n_failed, 0.0)


def refuse_failed(shard_set: ShardSet) -> int:
    """Number of failed rows of a set; raises ``RunFailedError`` if the set is failed.

    The same run fails again until the rows are retried or accepted.
    """
    try:
        return check_failures(shard_set)
    except FailedRowsError as error:
        raise RunFailedError(str(error)) from error


class _Run:
    """The state of one run: the computed shards and how many of their rows failed.

    ``redo`` has the indexes of the existing shards that are replaced.
    """

    def __init__(
        self,
        work: SetWork,
        executor: Executor,
        journal: Journal,
        lease: Lease,
        redo: Collection[int],
        max_failed: float,
    ) -> None:
        self._work = work
        self._executor = executor
        self._journal = journal
        self._lease = lease
        self._redo = redo
        self._max_failed = max_failed
        self._n_failed_before = 0
        self._n_failed_rows = 0
        self._computed: dict[int, Shard] = {}
        self._publishing: StagedShard | None = None

    def run(self, shards: Sequence[Shard], progress: Progress) -> RunReport:
        """Compute the shards; raises ``RunFailedError`` if some fail."""
        started = time.monotonic()
        failed_before = self._work.shard_set.failed_rows()
        todo = {shard.index for shard in shards}
        self._n_failed_before = sum(n for index, n in failed_before.items() if index not in todo)
        self._stop_if_too_many_failed()
        n_all, queue = len(self._work.shard_set.shards), deque[Task](shards)
        attempts = Attempts(self._journal, progress, queue)
        try:
            self._compute(queue, attempts, progress)
        finally:  # after an error or Ctrl-C, too
            self._check_inputs()
        attempts.check(n_all)
        n_rows = sum(shard.n_rows for shard in self._computed.values())
        seconds = time.monotonic() - started
        return RunReport(n_all, len(self._computed), n_rows, self._n_failed_rows, seconds)

    def _compute(self, todo: deque[Task], attempts: Attempts, progress: Progress) -> None:
        """Compute the shards, and publish each."""
        room = Room(self._work.shard_set.storage.location)
        n_shards, lanes = len(todo), set[int]()
        with progress:
            for ended in self._executor.run(self._work, todo, attempts.watch):
                self._lease.check()
                outcome = self._published(ended)
                attempts.end(outcome)
                lanes.add(outcome.lane)
                if outcome.staged is not None:
                    self._keep(outcome, outcome.staged.shard)
                    n_left = n_shards - len(self._computed)
                    if warning := room.take(outcome.n_bytes, n_left, len(lanes)):
                        progress.note(warning)

    def _published(self, outcome: Outcome) -> Outcome:
        """Publish the shard of an outcome; returns a failed outcome if it cannot be published.

        The lease was checked after the worker staged the shard: see ``ShardSet.publish``.
        """
        if outcome.staged is None:
            return outcome
        began = time.perf_counter()
        self._publishing = outcome.staged
        try:
            index = outcome.task.index
            is_redone = index in self._redo and index not in self._computed
            replacing = self._lease.check if is_redone else None
            self._work.shard_set.publish(outcome.staged, replacing=replacing)
        except WriteError as error:
            raise RunFailedError(f"{error}; finished shards are kept") from error
        except StoreError as error:  # deleted by another driver's sweep, or a damaged receipt
            return replace(outcome, staged=None, error=str(error), store_error=error)
        return replace(outcome, costs={**outcome.costs, "publish": time.perf_counter() - began})

    def _check_inputs(self) -> None:
        """Discard the shards of this run if its inputs are no longer the planned ones."""
        shard_set = self._work.shard_set
        try:
            self._work.stage.check(shard_set.plan)
        except ValueError:
            computed = dict(self._computed)
            if (last := self._publishing) and shard_set.holds(last):  # published just before Ctrl-C
                computed[last.shard.index] = last.shard
            shard_set.discard(computed.values(), self._lease.check)
            raise

    def _keep(self, outcome: Outcome, shard: Shard) -> None:
        if shard.index not in self._computed:  # a worker may answer twice
            self._computed[shard.index] = shard
            self._n_failed_rows += outcome.n_failed_rows
        self._publishing = None
        self._stop_if_too_many_failed()

    def _stop_if_too_many_failed(self) -> None:
        if self._n_failed_before + self._n_failed_rows > self._max_failed:
            error = refusal(self._work.shard_set)
            raise RunFailedError(str(error)) from error
