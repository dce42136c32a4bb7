"""What scores are computed from: the input and the output of a last linear layer, row by row.

For f these are the stored features and logits; for a head, its last hidden layer and its own
logits. So every score works for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.finite import finite_rows

Rows = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

Score = Callable[[Rows, Rows], NDArray[np.float64]]
"""Maps features ``[n, d]`` and logits ``[n, N]`` to scores ``[n]``; rows of NaN score NaN."""

BLOCK_ROWS = 4096
"""Rows whose scores are computed at once."""


class Linear(NamedTuple):
    """The last layer, ``z = W f + b``: weight ``[N, d]`` and bias ``[N]``, both float64."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, features: Rows) -> NDArray[np.float64]:
        """``W f + b`` of each row, ``[n, N]``."""
        z: NDArray[np.float64] = features.astype(np.float64) @ self.weight.T + self.bias
        return z


class Block(NamedTuple):
    """Rows without NaN or infinity: features ``[n, d]``, logits ``[n, N]``, labels ``[n]``."""

    features: Rows
    logits: Rows
    labels: Labels

    @property
    def labelled(self) -> Block:
        """The rows with a label; that of the others is -1."""
        kept = self.labels >= 0
        return self if kept.all() else self.take(kept)

    def take(self, kept: NDArray[np.bool_]) -> Block:
        """Select rows."""
        return Block(self.features[kept], self.logits[kept], self.labels[kept])


@dataclass(frozen=True)
class TrainingRows:
    """The rows that a score is fitted to, and the last layer that they went through.

    Attributes:
        read: starts a pass over all blocks.
        load_linear: loads the last layer, which only some scores need.
        n_rows: number of rows, with those that are left out.
    """

    read: Callable[[], Iterable[Block]]
    load_linear: Callable[[], Linear] = field(repr=False)
    n_rows: int

    @classmethod
    def of(cls, features: Rows, logits: Rows, labels: Labels, linear: Linear) -> TrainingRows:
        """Rows that are in memory."""
        slices = row_blocks(len(labels))

        def read() -> Iterator[Block]:
            return (Block(features[at], logits[at], labels[at]) for at in slices)

        return cls(read, lambda: linear, len(labels))

    @cached_property
    def linear(self) -> Linear:
        """The last layer."""
        return self.load_linear()

    def blocks(self) -> Iterator[Block]:
        """A pass over the rows without NaN or infinity, in their order; blocks are not empty."""
        for block in self.read():
            kept = finite_rows(block.features, block.logits)
            if kept.any():
                yield block if kept.all() else block.take(kept)


Fit = Callable[[TrainingRows], Score]
"""Fits a score to training rows."""

OfLayer = Callable[[Linear], Score]
"""Makes a score that needs the last layer, but no training rows."""


def as_it_is(features: Rows, logits: Rows) -> tuple[Rows, Rows]:
    """Input and output of the last layer of f, from its features and logits."""
    return features, logits


def row_blocks(n_rows: int) -> list[slice]:
    """Slices of at most `BLOCK_ROWS` rows that cover all rows."""
    return [slice(start, start + BLOCK_ROWS) for start in range(0, n_rows, BLOCK_ROWS)]
