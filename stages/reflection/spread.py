"""Select gradients that are far apart, using their factors only: k-means++ and farthest-first.

Both select one gradient after another by the squared distance to the nearest selected one,
``‖a ⊗ b - c ⊗ d‖² = ‖a‖²‖b‖² + ‖c‖²‖d‖² - 2 (a·c)(b·d)``. They need memory for a few numbers per
row; neither a dense gradient nor a distance matrix is ever made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.reflection.rank_one import RankOneGradient

Numbers = NDArray[np.floating[Any]]
Gradients = RankOneGradient[Numbers]
Chosen = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Rows in the order of selection, and the squared distance that each had at that time."""

_BLOCK_ELEMENTS = 2**22
"""Maximum number of distances to the given gradients computed at once: 32 MiB in float64."""


def k_means_plus_plus(gradients: Gradients, n: int, draws: NDArray[np.float64]) -> Chosen:
    """Select rows as k-means++ selects its centres, starting with the longest, as in BADGE.

    Each further row is drawn with a probability proportional to its squared distance to the nearest
    selected one, or uniformly if all of these are zero. No row is selected twice.

    Args:
        gradients: gradients without an offset.
        n: number of rows to select.
        draws: shape ``(n,)``, uniform in [0, 1); the first one is not used.
    """
    nearest = _Nearest(gradients)
    rows = np.empty(n, np.int64)
    distances = np.empty(n)
    for at in range(n):
        weights = nearest.distances
        row = _drawn(weights, nearest.is_chosen, draws[at]) if at else int(nearest.norms.argmax())
        rows[at], distances[at] = row, weights[row] if at else nearest.norms[row]
        nearest.choose(row)
    return rows, distances


def farthest_first(gradients: Gradients, n: int, selected: Gradients) -> Chosen:
    """Select rows so that each is the farthest from those before it, the core-set rule.

    Args:
        gradients: gradients without an offset.
        n: number of rows to select.
        selected: gradients selected before; the first row is the farthest from these, or the
            longest one if there are none.
    """
    nearest = _Nearest(gradients)
    if len(selected):
        nearest.measure(selected)
    rows = np.empty(n, np.int64)
    distances = np.empty(n)
    for at in range(n):
        weights = nearest.distances if at or len(selected) else nearest.norms
        rows[at] = row = int(np.where(nearest.is_chosen, -1.0, weights).argmax())
        distances[at] = weights[row]
        nearest.choose(row)
    return rows, distances


class _Nearest:
    """Squared distance of each gradient to the nearest selected one."""

    def __init__(self, gradients: Gradients) -> None:
        if gradients.offset is not None:
            raise InputError("gradients far apart: expected unscaled ones, found an offset")
        self._gradients = gradients
        self._lengths = np.sqrt(np.einsum("nd,nd->n", gradients.features, gradients.features))
        self.norms = gradients.squared_norms()
        self.distances = np.full_like(self.norms, np.inf)
        self.is_chosen = np.zeros(len(gradients), np.bool_)

    def choose(self, row: int) -> None:
        """Add a row to the selected ones."""
        delta, features = self._gradients.delta, self._gradients.features
        alike = delta @ delta[row]
        sums = self.norms + self.norms[row]
        # |b·d| is at most ‖b‖ ‖d‖: rows that cannot have become closer are skipped, and their
        # features, which take most of the memory, are not read. The slack covers rounding.
        lowest = sums - 2 * (1 + 1e-5) * np.abs(alike) * (self._lengths * self._lengths[row])
        near = np.flatnonzero(lowest < self.distances)
        products = alike[near] * _products(features, near, features[row])
        found = np.maximum(sums[near] - 2 * products, 0)
        self.distances[near] = np.minimum(self.distances[near], found)
        self.distances[row] = 0
        self.is_chosen[row] = True

    def measure(self, others: Gradients) -> None:
        """Update the distances with gradients that are not rows of these."""
        block_rows = max(1, _BLOCK_ELEMENTS // len(others))
        for start, block in self._gradients.squared_distance_blocks(others, block_rows=block_rows):
            rows = slice(start, start + len(block))
            self.distances[rows] = np.minimum(self.distances[rows], block.min(axis=1))


def _products(features: Numbers, rows: NDArray[np.int64], row: Numbers) -> Numbers:
    """``features[rows] @ row``, without a copy if most rows are selected."""
    if 2 * len(rows) > len(features):
        return np.asarray((features @ row)[rows])
    return np.asarray(features[rows] @ row)


def _drawn(weights: Numbers, is_chosen: NDArray[np.bool_], draw: float) -> int:
    """The row at a uniform draw from [0, 1), weighted; unweighted if all weights are 0."""
    sums = np.cumsum(weights, dtype=np.float64)
    if sums[-1] == 0:
        sums = np.cumsum(~is_chosen, dtype=np.float64)
    return int(np.searchsorted(sums, draw * sums[-1], side="right"))
