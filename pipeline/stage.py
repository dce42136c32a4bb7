"""A stage is a value that says what is computed; the runner says how and where."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from store.plan import Plan
from store.shards import Shard

Tick = Callable[[int], None]
"""Reports the rows done since the last call."""


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


class MapStage(Protocol):
    """A function over shards: frozen, picklable, holding paths and numbers only."""

    @property
    def name(self) -> str:
        """Part of the fingerprint, and what progress calls it."""

    @property
    def version(self) -> int:
        """Raised whenever the results change."""

    def check(self, plan: Plan) -> None:
        """Raise ``ValueError`` where the inputs are no longer those that the plan names.

        Asked by every worker before its first shard, and by the driver when the run ends.
        """

    def setup(self, n_threads: int) -> Any:  # Any: each stage has its own state
        """Load what is slow to load, once for each worker, which may use ``n_threads`` cores."""

    def compute(self, state: Any, shard: Shard, tick: Tick) -> ShardOutput:
        """Compute one shard: pure, given its arguments."""
