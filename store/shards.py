"""Shards: the unit of work, of writing, of committing and of resuming."""

from dataclasses import dataclass

DEFAULT_SHARD_ROWS = 10_000
"""One (corruption, severity) cell of CIFAR-10-C."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A half-open row range ``[start, stop)``, the ``index``-th of its data set."""

    index: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.index < 0 or not 0 <= self.start < self.stop:
            raise ValueError(f"not a shard: index {self.index}, rows [{self.start}, {self.stop})")

    @property
    def n_rows(self) -> int:
        """How many rows the shard covers."""
        return self.stop - self.start


def shards_of(n_rows: int, shard_rows: int) -> tuple[Shard, ...]:
    """Cover ``[0, n_rows)`` with shards of ``shard_rows``; the last one may be shorter."""
    if n_rows < 0 or shard_rows < 1:
        raise ValueError(f"cannot split {n_rows} rows into shards of {shard_rows}")
    starts = range(0, n_rows, shard_rows)
    return tuple(
        Shard(index, start, min(start + shard_rows, n_rows)) for index, start in enumerate(starts)
    )
