"""Work for workers: tasks that are independent of each other, such as the shards of a set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from store.plan import Plan
from store.shards import Shard
from store.shardset import StagedShard

Tick = Callable[[int], None]
"""Reports the rows done since the last call; 0 only says that the work goes on."""


class Task(Protocol):
    """What a worker computes at a time, such as a shard."""

    @property
    def index(self) -> int:
        """Its number."""

    @property
    def n_rows(self) -> int:
        """Number of its rows, or of the other units that progress counts."""


class Clock(Protocol):
    """Records the seconds that a task takes."""

    @property
    def costs(self) -> Mapping[str, float]:
        """Seconds by kind of work."""

    def note(self, name: str, parts: Mapping[str, float] | None = None) -> None:
        """Add the time since the last record to ``name``, except for that of its ``parts``."""


class Work(Protocol):
    """What workers do: frozen, picklable, holding paths and numbers only."""

    def setup(self, n_threads: int) -> Any:  # Any: each work has its own state
        """Load what is slow to load, and check the inputs, once for each worker."""

    def compute(self, state: Any, task: Any, tick: Tick, clock: Clock) -> StagedShard | None:
        """Compute a task of this work. A shard is staged, and returned for the driver to publish.

        Args:
            state: what ``setup`` returned.
            task: one of the tasks that the driver hands out; Any: each work has its own.
            tick: called as the work goes on.
            clock: records what the time is spent on.
        """


@dataclass(frozen=True, slots=True)
class ShardOutput:
    """What a shard came to: whole files, and facts for its receipt.

    Attributes:
        files: path, relative to the set's folder -> the whole content.
        facts: for the receipt.
        costs: seconds that went into parts of the work, such as waiting for what was read.
    """

    files: Mapping[str, bytes]
    facts: Mapping[str, Any]
    costs: Mapping[str, float] = field(default_factory=dict)


class ShardWork(Protocol):
    """The function of a stage over shards: frozen, picklable, holding paths and numbers only."""

    @property
    def name(self) -> str:
        """Part of the fingerprint, and what progress calls it."""

    @property
    def version(self) -> int:
        """Raised whenever the results change."""

    @property
    def rows(self) -> str:
        """Name of the rows in progress output, in the plural."""

    def check(self, plan: Plan) -> None:
        """Raise ``ValueError`` where the inputs are no longer those that the plan names.

        Asked by every worker before its first shard, and by the driver when the run ends.
        """

    def setup(self, n_threads: int) -> Any:  # Any: each stage has its own state
        """Load what is slow to load, once for each worker, which may use ``n_threads`` cores."""

    def compute(self, state: Any, shard: Shard, tick: Tick) -> ShardOutput:
        """Compute one shard: pure, given its arguments."""
