"""The highest and the lowest scores of each explained row, kept while blocks of rows pass by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Strongest:
    """The training rows with the highest and with the lowest scores, of each explained row.

    Only a score above zero supports, and only one below zero opposes. Of equal scores, the rows
    that come first are kept.

    Attributes:
        k: how many training rows are kept at each end.
        values: their scores, the second end with the opposite sign, descending; -inf where fewer
            were found. Shape ``(2, n_explained, <= k)``.
        rows: their row numbers, of the same shape.
    """

    k: int
    values: Values
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Values, rows: NDArray[np.int64], k: int) -> Self:
        """Those of a block: scores ``[n, n_explained]``, NaN for pairs that are left out."""
        both = np.stack([scores.T, -scores.T])
        values = np.where(both > 0, both, -np.inf)
        return cls(k, *_best(values, np.broadcast_to(rows, values.shape), k))

    def merged(self, after: Strongest) -> Strongest:
        """Those of this block and of one with later rows."""
        values = np.concatenate([self.values, after.values], axis=2)
        rows = np.concatenate([self.rows, after.rows], axis=2)
        return Strongest(self.k, *_best(values, rows, self.k))

    def end(
        self, side: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Values]:
        """Places of explained rows, ranks from 1, training rows and scores, of equal lengths.

        Side 0 has the supporting rows, side 1 the opposing ones; the strongest come first.
        """
        kept = np.isfinite(self.values[side])
        at, rank = np.nonzero(kept)
        return at, rank + 1, self.rows[side][kept], self.values[side][kept] * (1, -1)[side]


def _best(values: Values, rows: NDArray[np.int64], k: int) -> tuple[Values, NDArray[np.int64]]:
    best = np.argsort(-values, axis=2, kind="stable")[:, :, :k]
    return np.take_along_axis(values, best, axis=2), np.take_along_axis(rows, best, axis=2)
