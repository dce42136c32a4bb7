"""Attempts at the tasks of a run: recorded in the journal, shown, and repeated after failures."""

import time
from collections import Counter, deque
from collections.abc import Sequence

from pipeline.errors import RunFailedError
from pipeline.journal import Journal
from pipeline.progress import Progress
from pipeline.terminal import counted
from pipeline.work import Task
from pipeline.worker import Outcome, Pace

MAX_ATTEMPTS = 3
MAX_FRUITLESS = 10
"""A run stops if one worker fails this often before any task is computed.

Failures that a retry cannot fix do not count; they cost one attempt each.
"""

PACE_EVERY_S = 10.0
"""Interval at which the position of each worker is written to the journal."""


class Attempts:
    """The outcomes of a run so far: what is done, and what failed on its last attempt.

    A failed task is attempted three times, unless a retry would fail the same way; the other tasks
    are finished first.
    """

    def __init__(self, journal: Journal, progress: Progress, todo: deque[Task]) -> None:
        self.n_done = 0
        self.failed: list[Outcome] = []
        self._journal = journal
        self._progress = progress
        self._todo = todo
        self._attempts: Counter[int] = Counter()
        self._fruitless: Counter[int] = Counter()
        self._noted = time.monotonic()

    def watch(self, paces: Sequence[Pace], phase: str = "") -> None:
        """Show the progress of the workers, and note it from time to time, for `status`."""
        self._progress.watch(paces, phase)
        if paces and time.monotonic() - self._noted >= PACE_EVERY_S:
            self._noted = time.monotonic()
            self._journal.note("at work", lanes=[_lane(pace) for pace in paces])

    def end(self, outcome: Outcome) -> None:
        """Record how an attempt ended; a task to be retried goes to the end of the queue.

        Raises ``RunFailedError`` if every task would fail.
        """
        kind, index = self._progress.task, outcome.task.index
        self._note(kind, outcome)
        self._progress.end(outcome)
        if not outcome.error:
            self.n_done += 1
        elif self._is_retried(kind, outcome):
            self._progress.note(f"retrying {kind} {index}: {outcome.error}")
            self._todo.append(outcome.task)
        else:
            self.failed.append(outcome)

    def check(self, n_all: int) -> None:
        """Raise ``RunFailedError`` if tasks failed; ``n_all`` counts the existing ones too."""
        if self.failed:
            first, kind = self.failed[0], self._progress.task
            fix = "fix the cause, then " * all(outcome.is_final for outcome in self.failed)
            raise RunFailedError(
                f"{len(self.failed)} of {counted(n_all, kind)} failed, {self.n_done} computed; "
                f"first, {kind} {first.task.index}: {first.error} ({fix}run the same command "
                "again, or `intro-pipe resume`, to compute only what is missing)"
            ) from first.store_error

    def _note(self, kind: str, outcome: Outcome) -> None:
        facts = {
            "shard": outcome.task.index,  # under this key for every kind of task
            "lane": outcome.lane,
            "where": outcome.where,
            "seconds": round(outcome.seconds, 3),
            "costs": {name: round(seconds, 3) for name, seconds in outcome.costs.items()},
        }
        if outcome.error:
            self._journal.note(f"{kind} failed", **facts, error=outcome.error, trace=outcome.trace)
        else:
            self._journal.note(kind, **facts, failed_rows=outcome.n_failed_rows)

    def _is_retried(self, kind: str, outcome: Outcome) -> bool:
        if outcome.stops_run:
            message = f"{outcome.error}; finished {kind}s are kept"
            raise RunFailedError(message) from outcome.store_error
        self._attempts[outcome.task.index] += 1
        if outcome.is_final or self._attempts[outcome.task.index] == MAX_ATTEMPTS:
            return False
        self._fruitless[outcome.lane] += 1
        if not self.n_done and self._fruitless[outcome.lane] == MAX_FRUITLESS:
            raise RunFailedError(
                f"worker {outcome.lane} failed {MAX_FRUITLESS} times and no {kind} was computed; "
                f"last, {kind} {outcome.task.index}: {outcome.error}"
            ) from outcome.store_error
        return True


def _lane(pace: Pace) -> dict[str, int | str]:
    return {
        "lane": pace.lane,
        "where": pace.where,
        "shard": pace.task.index,
        "rows": pace.n_rows,
        "ticks": pace.n_ticks,
    }
