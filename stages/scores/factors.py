"""What scores are computed from: the input and the output of a last linear layer, row by row.

For f these are the stored features and logits; for a head, its last hidden layer and its own
logits. So every score works for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.finite import finite_rows

Rows = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

Score = Callable[[Rows, Rows], NDArray[np.float64]]
"""Maps features ``[n, d]`` and logits ``[n, N]`` to scores ``[n]``; rows of NaN score NaN."""

_BLOCK_ROWS = 4096


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
    """The rows that a score is fitted to.

    Attributes:
        read: starts a pass over all blocks.
    """

    read: Callable[[], Iterable[Block]]

    @classmethod
    def of(cls, features: Rows, logits: Rows, labels: Labels) -> TrainingRows:
        """Rows that are in memory."""
        starts = range(0, len(labels), _BLOCK_ROWS)
        slices = [slice(start, start + _BLOCK_ROWS) for start in starts]
        return cls(lambda: (Block(features[at], logits[at], labels[at]) for at in slices))

    def blocks(self) -> Iterator[Block]:
        """A pass over the rows without NaN or infinity, in their order; blocks are not empty."""
        for block in self.read():
            kept = finite_rows(block.features, block.logits)
            if kept.any():
                yield block if kept.all() else block.take(kept)


Fit = Callable[[TrainingRows], Score]
"""Fits a score to training rows."""
