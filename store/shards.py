"""Shards: the unit of computing, writing, committing and resuming."""

from dataclasses import dataclass

DEFAULT_SHARD_ROWS = 10_000
"""Rows of one (corruption, severity) cell of CIFAR-10-C."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The ``index``-th shard of a set: the half-open row range ``[start, stop)``."""

    index: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.index < 0 or not 0 <= self.start < self.stop:
            raise ValueError(f"not a shard: index {self.index}, rows [{self.start}, {self.stop})")

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def shards_of(n_rows: int, shard_rows: int) -> tuple[Shard, ...]:
    """Split ``[0, n_rows)`` into shards of ``shard_rows`` rows; the last one may be shorter."""
    if n_rows < 0 or shard_rows < 1:
        raise ValueError(f"cannot split {n_rows} rows into shards of {shard_rows}")
    starts = range(0, n_rows, shard_rows)
    return tuple(
        Shard(index, start, min(start + shard_rows, n_rows)) for index, start in enumerate(starts)
    )
