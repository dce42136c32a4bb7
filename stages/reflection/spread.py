"""Choosing gradients that lie far apart, on their factors alone: k-means++ and farthest-first.

Both choose one gradient after another by the squared distance to the nearest one that is chosen,
``‖a ⊗ b - c ⊗ d‖² = ‖a‖²‖b‖² + ‖c‖²‖d‖² - 2 (a·c)(b·d)``. Memory is a few numbers a row: neither a
dense gradient nor a matrix of distances is ever made.
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
"""Rows in the order in which they were chosen, and the squared distance that each had then."""

_BLOCK_ELEMENTS = 2**22
"""Most distances at once to the gradients that are there from the start: 32 MiB in float64."""


def k_means_plus_plus(gradients: Gradients, n: int, draws: NDArray[np.float64]) -> Chosen:
    """Rows chosen as the centres of k-means++, the longest gradient first, as BADGE does.

    Each of the others is drawn with a probability that is proportional to its squared distance to
    the nearest one before it; where all of these are zero, evenly. No row is chosen twice.

    Args:
        gradients: without an offset.
        n: how many, at most their number.
        draws: shape ``(n,)``, even in [0, 1); the first is not used.
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


def farthest_first(gradients: Gradients, n: int, there: Gradients) -> Chosen:
    """Rows chosen so that each is the one farthest from those before it, the core-set rule.

    Args:
        gradients: without an offset.
        n: how many, at most their number.
        there: what is chosen already; the first row is far from these. Without any it is the
            longest one.
    """
    nearest = _Nearest(gradients)
    if len(there):
        nearest.measure(there)
    rows = np.empty(n, np.int64)
    distances = np.empty(n)
    for at in range(n):
        weights = nearest.distances if at or len(there) else nearest.norms
        rows[at] = row = int(np.where(nearest.is_chosen, -1.0, weights).argmax())
        distances[at] = weights[row]
        nearest.choose(row)
    return rows, distances


class _Nearest:
    """How far each gradient is from the nearest one that is chosen, squared."""

    def __init__(self, gradients: Gradients) -> None:
        if gradients.offset is not None:
            raise InputError("gradients far apart: expected unscaled ones, found an offset")
        self._gradients = gradients
        self._lengths = np.sqrt(np.einsum("nd,nd->n", gradients.features, gradients.features))
        self.norms = gradients.squared_norms()
        self.distances = np.full_like(self.norms, np.inf)
        self.is_chosen = np.zeros(len(gradients), np.bool_)

    def choose(self, row: int) -> None:
        """Take a row among the chosen ones."""
        delta, features = self._gradients.delta, self._gradients.features
        alike = delta @ delta[row]
        sums = self.norms + self.norms[row]
        # |b·d| is at most ‖b‖ ‖d‖: rows that cannot have come nearer are not looked at, and their
        # features, which are most of the memory, not read. With a share of slack for rounding.
        lowest = sums - 2 * (1 + 1e-5) * np.abs(alike) * (self._lengths * self._lengths[row])
        near = np.flatnonzero(lowest < self.distances)
        products = alike[near] * _products(features, near, features[row])
        found = np.maximum(sums[near] - 2 * products, 0)
        self.distances[near] = np.minimum(self.distances[near], found)
        self.distances[row] = 0
        self.is_chosen[row] = True

    def measure(self, there: Gradients) -> None:
        """Distances to gradients that are no rows of these."""
        block_rows = max(1, _BLOCK_ELEMENTS // len(there))
        for start, block in self._gradients.squared_distance_blocks(there, block_rows=block_rows):
            rows = slice(start, start + len(block))
            self.distances[rows] = np.minimum(self.distances[rows], block.min(axis=1))


def _products(features: Numbers, rows: NDArray[np.int64], row: Numbers) -> Numbers:
    """``features[rows] @ row``, without a copy where most rows are asked for."""
    if 2 * len(rows) > len(features):
        return np.asarray((features @ row)[rows])
    return np.asarray(features[rows] @ row)


def _drawn(weights: Numbers, is_chosen: NDArray[np.bool_], draw: float) -> int:
    """The row that an even draw from [0, 1) falls on, weighted; evenly where all weights are 0."""
    sums = np.cumsum(weights, dtype=np.float64)
    if sums[-1] == 0:
        sums = np.cumsum(~is_chosen, dtype=np.float64)
    return int(np.searchsorted(sums, draw * sums[-1], side="right"))
