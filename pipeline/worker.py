"""A worker is set up once, then computes one task after another, such as shards."""

import os
import platform
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from typing import Any

from pipeline.memory import keep_freed_memory
from pipeline.work import Clock, ShardWork, Task, Tick, Work
from store.errors import StoreError, WriteError
from store.shards import Shard
from store.shardset import ShardSet, StagedShard

MAX_SETUPS = 3
"""Failed setups after which a worker stops the run, since every shard would fail."""

VERSIONS_OF = ("intro-pipe", "numpy", "torch", "zarr")
"""Packages whose versions are recorded in every receipt."""


@dataclass(frozen=True)
class SetWork:
    """The work on the shards of a set: a stage computes them, and they are staged."""

    stage: ShardWork
    shard_set: ShardSet

    def setup(self, n_threads: int) -> Any:  # Any: each stage has its own state
        """Set up the stage; raises ``ValueError`` if the inputs changed since the plan."""
        state = self.stage.setup(n_threads)
        # After setup, so that changes since the plan are seen.
        self.stage.check(self.shard_set.plan)
        return state

    def compute(self, state: Any, shard: Shard, tick: Tick, clock: Clock) -> StagedShard:
        """Compute and stage a shard."""
        output = self.stage.compute(state, shard, tick)
        clock.note("compute", output.costs)
        facts = {
            **output.facts,
            "seconds": round(sum(clock.costs.values()), 3),
            "python": platform.python_version(),
            "versions": _versions(),
        }
        staged = self.shard_set.stage(shard, output.files, facts)
        clock.note("write")
        return staged


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: the task.
        lane: number of the worker.
        seconds: time that it took.
        staged: the staged shard, ready to be published, if the task is one and did not fail.
        error: the error in one line; empty if there was none.
        store_error: the error itself if it is one of the store.
        trace: traceback of the error.
        is_final: a retry would fail in the same way.
        stops_run: every other task would fail in the same way.
        where: the process that computed it.
        costs: seconds by kind of work.
    """

    task: Task
    lane: int
    seconds: float
    staged: StagedShard | None = None
    error: str = ""
    store_error: StoreError | None = None
    trace: str = ""
    is_final: bool = False
    stops_run: bool = False
    where: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def n_failed_rows(self) -> int:
        """Number of rows that are NaN because their sample is bad; the receipt has the reasons."""
        return len(self.staged.receipt.failed) if self.staged else 0

    @property
    def n_bytes(self) -> int:
        """Total size of the shard's files."""
        files = self.staged.receipt.files.values() if self.staged else ()
        return sum(file.n_bytes for file in files)


@dataclass(frozen=True, slots=True)
class Pace:
    """Progress of a lane in its task, and its process.

    ``n_ticks`` counts the reports so far: while it grows, the worker does not hang.
    """

    lane: int
    task: Task
    n_rows: int
    where: str = field(default="", compare=False)
    n_ticks: int = 0


class Worker:
    """Runs in the driver or as a Ray actor; the work is set up at the first task."""

    def __init__(self, work: Work, lane: int, n_threads: int) -> None:
        self._work = work
        self._lane = lane
        self._n_threads = n_threads
        self._state: Any = None
        self._is_set_up = False
        self._n_setups = 0
        self._pace: Pace | None = None

    def run(self, task: Task) -> Outcome:
        """Compute a task; exceptions become outcomes here, and nowhere else."""
        started = time.perf_counter()
        self._pace = Pace(self._lane, task, 0, self.where())
        try:
            costs: dict[str, float] = {}
            staged = self._computed(task, _Clock(costs))
        except (Exception, SystemExit) as error:  # the other tasks are still computed
            return self._failure(task, time.perf_counter() - started, error)
        finally:
            self._pace = None
        seconds = time.perf_counter() - started
        return Outcome(task, self._lane, seconds, staged, where=self.where(), costs=costs)

    def pace(self) -> Pace | None:
        """The task in progress and its finished rows; may be called while ``run`` is busy."""
        return self._pace

    def where(self) -> str:
        """This process as ``host:pid``."""
        return f"{platform.node()}:{os.getpid()}"

    def _failure(self, task: Task, seconds: float, error: BaseException) -> Outcome:
        is_final = isinstance(error, ValueError | TypeError | WriteError)
        is_useless = not self._is_set_up and (is_final or self._n_setups == MAX_SETUPS)
        kind = type(error).__name__
        first_line = (str(error).strip().splitlines() or [""])[0]
        return Outcome(
            task,
            self._lane,
            seconds,
            error=(isinstance(error, StoreError) and first_line) or f"{kind}: {first_line}",
            store_error=error if isinstance(error, StoreError) else None,
            trace=traceback.format_exc(),
            is_final=is_final,
            stops_run=is_useless or isinstance(error, WriteError),
            where=self.where(),
        )

    def _computed(self, task: Task, clock: Clock) -> StagedShard | None:
        """Compute the task, after setting up if that has not been done."""
        if not self._is_set_up:
            self._n_setups += 1
            keep_freed_memory()
            self._state = self._work.setup(self._n_threads)
            self._is_set_up = True
            clock.note("setup")
        return self._work.compute(self._state, task, self._tick, clock)

    def _tick(self, n_rows: int) -> None:
        if (pace := self._pace) is not None:
            n_rows, n_ticks = pace.n_rows + n_rows, pace.n_ticks + 1
            self._pace = replace(pace, n_rows=n_rows, n_ticks=n_ticks)


class _Clock:
    """Implements ``pipeline.work.Clock``."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.costs = costs
        self._then = time.perf_counter()

    def note(self, name: str, parts: Mapping[str, float] | None = None) -> None:
        """Add the time since the last record to ``name``, except for that of its ``parts``."""
        now = time.perf_counter()
        parts = parts or {}
        self.costs.update(parts)
        self.costs[name] = now - self._then - sum(parts.values())
        self._then = now


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS_OF}
