"""Sums of many groups of rows at once: every sum is one weighted histogram over all rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stages.metrics.adaptive import N_FINE_BINS, fine_bins
from stages.metrics.sums import N_BINS, SCORES, CalibrationSums, Values, confidence_bins


@dataclass(frozen=True, slots=True)
class Answers:
    """Predictions of rows, as far as some metrics need them.

    Attributes:
        n_classes: number of classes of the predictions.
        labels: shape ``(n,)``; -1 for an unknown label.
        prediction: most probable class of each row, shape ``(n,)``.
        confidence: largest probability of each row, shape ``(n,)``; not finite for a row that
            failed.
        scores: some of ``stages.metrics.sums.SCORES`` of each row, shape ``(n,)``. The sums of
            the others are NaN.
    """

    n_classes: int
    labels: NDArray[np.integer]
    prediction: NDArray[np.integer]
    confidence: Values
    scores: Mapping[str, Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        y = self.labels
        if y.size and (y.min() < -1 or y.max() >= self.n_classes):
            raise ValueError(
                f"labels: expected -1 (unknown) or a class below {self.n_classes}, "
                f"found values from {y.min()} to {y.max()}"
            )

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Flags the rows without a prediction."""
        return ~np.isfinite(self.confidence) | (self.prediction < 0)


def group_sums(
    rows: Answers, codes: NDArray[np.int64], n_groups: int, *, has_fine: bool = True
) -> list[CalibrationSums]:
    """The sums of each group of rows, as `stages.metrics.sums.sums` computes them.

    Args:
        rows: the predictions.
        codes: group of each row, below ``n_groups``, shape ``(n,)``.
        n_groups: number of groups.
        has_fine: whether to count fine bins too, for `stages.metrics.calibration.ece_adaptive`.
    """
    failed = rows.failed
    unlabelled = ~failed & (rows.labels < 0)
    counts = ~failed & ~unlabelled
    left_out = [np.bincount(codes[each], minlength=n_groups) for each in (failed, unlabelled)]
    kept = slice(None) if counts.all() else counts
    codes, confidence = codes[kept], rows.confidence[kept]
    of_row = (None, rows.prediction[kept] == rows.labels[kept], confidence)
    by_bin = _histograms(of_row, codes, confidence_bins(confidence, N_BINS), n_groups, N_BINS)
    none = np.full(n_groups, np.nan)
    scores = [
        np.bincount(codes, rows.scores[name][kept], n_groups) if name in rows.scores else none
        for name in SCORES[:-2]
    ]
    columns = np.concatenate([by_bin.reshape(n_groups, -1), np.stack([*scores, *left_out], 1)], 1)
    if not has_fine:
        return [CalibrationSums(rows.n_classes, each) for each in columns]
    fine = _histograms(of_row, codes, fine_bins(confidence), n_groups, N_FINE_BINS)
    return [CalibrationSums(rows.n_classes, *each) for each in zip(columns, fine, strict=True)]


def _histograms(
    of_row: tuple[NDArray[np.generic] | None, ...],
    codes: NDArray[np.int64],
    bins: NDArray[np.int64],
    n_groups: int,
    n_bins: int,
) -> Values:
    """Sums by group and bin, ``[groups, values, bins]``; ``None`` counts the rows."""
    places = codes * n_bins + bins
    found = [np.bincount(places, each, minlength=n_groups * n_bins) for each in of_row]
    return np.stack([each.reshape(n_groups, n_bins) for each in found], axis=1).astype(np.float64)
