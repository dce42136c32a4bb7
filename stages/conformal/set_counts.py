"""Counts of prediction sets: how often they hold the label, and how large they are.

Counts of shards are added, so nothing grows with the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan

import numpy as np
from numpy.typing import NDArray

from stages.reflection.reduction import Group

Values = NDArray[np.float64]

SIZES = ((0, 1), (2, 3), (4, 10), (11, 100), (101, None))
"""Sizes of sets that are counted together, as in Angelopoulos et al. (2021)."""

N_ROWS, N_COVERED, SIZE, N_EMPTY = range(4)
_N_COUNTS = 4


@dataclass
class Counts:
    """Counts of the sets of one predictor and score.

    Attributes:
        by_group: group -> number of rows, of covered rows, of classes in all sets, of empty sets.
        by_class: the same by label, ``[N, 4]``.
        by_size: the same by the sizes in `SIZES`.
    """

    n_classes: int
    by_group: dict[Group, Values] = field(default_factory=dict)
    by_class: Values = field(init=False)
    by_size: Values = field(init=False)

    def __post_init__(self) -> None:
        self.by_class = np.zeros((self.n_classes, _N_COUNTS))
        self.by_size = np.zeros((len(SIZES), _N_COUNTS))

    def add(
        self,
        sets: NDArray[np.bool_],
        labels: NDArray[np.int64],
        codes: NDArray[np.int64],
        groups: Sequence[Group],
    ) -> None:
        """Count the sets ``[n, N]`` of rows with labels and groups ``[n]``."""
        size = sets.sum(axis=1)
        columns = (np.ones(len(size)), sets[np.arange(len(size)), labels], size, size == 0)
        found = _sums_by(codes, columns, len(groups))
        for group, counts in zip(groups, found, strict=True):
            self.by_group[group] = self.by_group.get(group, 0.0) + counts
        self.by_class += _sums_by(labels, columns, self.n_classes)
        bins = np.searchsorted([low for low, _ in SIZES[1:]], size, side="right")
        self.by_size += _sums_by(bins, columns, len(SIZES))

    def merge(self, other: Counts) -> None:
        """Add the counts of other rows."""
        for group, counts in other.by_group.items():
            self.by_group[group] = self.by_group.get(group, 0.0) + counts
        self.by_class += other.by_class
        self.by_size += other.by_size

    @property
    def total(self) -> Values:
        """The counts of all rows, ``[4]``."""
        total: Values = self.by_class.sum(axis=0)
        return total

    def worst_class(self) -> float:
        """The lowest coverage of a class that has rows."""
        shares = ratio(self.by_class[:, N_COVERED], self.by_class[:, N_ROWS])
        return nan if np.isnan(shares).all() else float(np.nanmin(shares))

    def size_gap(self, alpha: float) -> float:
        """Largest distance of the coverage from ``1 - alpha`` over `SIZES` that occur.

        The size-stratified coverage violation of Angelopoulos et al. (2021).
        """
        shares = ratio(self.by_size[:, N_COVERED], self.by_size[:, N_ROWS])
        gaps = np.abs(shares - (1 - alpha))
        return nan if np.isnan(gaps).all() else float(np.nanmax(gaps))


def facts_of(counts: Values) -> dict[str, float]:
    """Rows, coverage, mean size and share of empty sets, from the counts of a group."""
    n = counts[N_ROWS]
    shares = [float(ratio(counts[at], n)) for at in (N_COVERED, SIZE, N_EMPTY)]
    return {"n_rows": int(n), **dict(zip(("coverage", "size", "empty"), shares, strict=True))}


def size_name(low: int, high: int | None) -> str:
    """``2-3``, or ``101+``."""
    return f"{low}+" if high is None else f"{low}-{high}"


def ratio(numerator: Values, denominator: Values) -> Values:
    """The quotient; NaN where the denominator is 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(numerator / denominator)


def _sums_by(
    codes: NDArray[np.int64], columns: Sequence[NDArray[np.generic]], n_codes: int
) -> Values:
    """Sums of the columns by code, ``[n_codes, columns]``."""
    return np.stack([np.bincount(codes, each, minlength=n_codes) for each in columns], axis=1)
