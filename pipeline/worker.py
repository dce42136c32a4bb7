"""A worker: sets a stage up once, then computes and stages one shard after another."""

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
from pipeline.stage import MapStage
from store.errors import StoreError, WriteError
from store.shards import Shard
from store.shardset import ShardSet, StagedShard

MAX_SETUPS = 3
"""A worker that could not be set up so often stops the run: it would fail with every shard."""

VERSIONS_OF = ("intro-pipe", "numpy", "torch", "zarr")
"""Packages whose versions stand in every receipt."""


@dataclass(frozen=True)
class Work:
    """What workers are given: a stage and the set its shards go to. Small, and picklable."""

    stage: MapStage
    shard_set: ShardSet


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a shard ended: staged, to be published, or with a one-line error and its traceback.

    ``is_final``: trying again would fail the same way. ``stops_run``: so would every other shard.
    ``costs`` has the seconds of its parts, ``where`` the process that did it.
    """

    shard: Shard
    lane: int
    seconds: float
    staged: StagedShard | None = None
    error: str = ""
    trace: str = ""
    is_final: bool = False
    stops_run: bool = False
    where: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def n_failed_rows(self) -> int:
        """Rows of the shard that are NaN because their sample is bad; the receipt says why."""
        return len(self.staged.receipt.get("failed", {})) if self.staged else 0

    @property
    def n_bytes(self) -> int:
        """Of the shard's files."""
        files = self.staged.receipt["files"].values() if self.staged else ()
        return sum(file["bytes"] for file in files)


@dataclass(frozen=True, slots=True)
class Pace:
    """How far a lane is in its shard, and in which process."""

    lane: int
    shard: Shard
    n_rows: int
    where: str = field(default="", compare=False)


class Worker:
    """Runs in the driver or as a Ray actor; sets the stage up when its first shard comes."""

    def __init__(self, work: Work, lane: int, n_threads: int) -> None:
        self._work = work
        self._lane = lane
        self._n_threads = n_threads
        self._state: Any = None
        self._is_set_up = False
        self._n_setups = 0
        self._pace: Pace | None = None

    def run(self, shard: Shard) -> Outcome:
        """Compute and stage a shard. The one place where an exception becomes an outcome."""
        started = time.perf_counter()
        self._pace = Pace(self._lane, shard, 0, self.where())
        try:
            costs: dict[str, float] = {}
            staged = self._staged(shard, costs)
        except (Exception, SystemExit) as error:  # whatever it is, the other shards go on
            return self._failure(shard, time.perf_counter() - started, error)
        finally:
            self._pace = None
        seconds = time.perf_counter() - started
        return Outcome(shard, self._lane, seconds, staged, where=self.where(), costs=costs)

    def pace(self) -> Pace | None:
        """The shard at work and its rows done so far; asked for while ``run`` is busy."""
        return self._pace

    def where(self) -> str:
        """This process, as the journal names it: ``host:pid``."""
        return f"{platform.node()}:{os.getpid()}"

    def _failure(self, shard: Shard, seconds: float, error: BaseException) -> Outcome:
        is_final = isinstance(error, ValueError | TypeError | WriteError)
        is_useless = not self._is_set_up and (is_final or self._n_setups == MAX_SETUPS)
        kind = type(error).__name__
        first_line = (str(error).strip().splitlines() or [""])[0]
        return Outcome(
            shard,
            self._lane,
            seconds,
            error=first_line if isinstance(error, StoreError) else f"{kind}: {first_line}",
            trace=traceback.format_exc(),
            is_final=is_final,
            stops_run=is_useless or isinstance(error, WriteError),
            where=self.where(),
        )

    def _staged(self, shard: Shard, costs: dict[str, float]) -> StagedShard:
        """The shard, staged; ``costs`` gets the seconds of setup, of compute, of write."""
        stage, shard_set = self._work.stage, self._work.shard_set
        clock = _Clock(costs)
        if not self._is_set_up:
            self._n_setups += 1
            keep_freed_memory()
            self._state = stage.setup(self._n_threads)
            stage.check(shard_set.plan)  # after it: what was opened before is seen too
            self._is_set_up = True
            clock.note("setup")
        output = stage.compute(self._state, shard, self._tick)
        clock.note("compute", output.costs)
        facts = {
            **output.facts,
            "seconds": round(sum(costs.values()), 3),
            "python": platform.python_version(),
            "versions": _versions(),
        }
        staged = shard_set.stage(shard, output.files, facts)
        clock.note("write")
        return staged

    def _tick(self, n_rows: int) -> None:
        if self._pace is not None:
            self._pace = replace(self._pace, n_rows=self._pace.n_rows + n_rows)


class _Clock:
    """Notes what has passed since it was looked at last."""

    def __init__(self, costs: dict[str, float]) -> None:
        self._costs = costs
        self._then = time.perf_counter()

    def note(self, name: str, parts: Mapping[str, float] | None = None) -> None:
        """The seconds go to ``name``, but for those of its ``parts``."""
        now = time.perf_counter()
        parts = parts or {}
        self._costs.update(parts)
        self._costs[name] = now - self._then - sum(parts.values())
        self._then = now


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS_OF}
