"""How well scores separate two sets of rows; see `stages.metrics.definitions` for each metric.

A score is high for rows that resemble the in-distribution (ID) set. All metrics are computed from
one curve: the number of rows of each set that a threshold accepts, for every distinct threshold.
Rows with equal scores are accepted together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Values = NDArray[np.float64]
"""One number per resample."""

TPR = (19, 20)
"""The rate of 95 % as whole numbers, since floating-point rates near it would tie by rounding."""


@dataclass(frozen=True)
class Curve:
    """Rows that thresholds accept, from none to all; weighted if rows were resampled.

    Attributes:
        inside: number of accepted ID rows, shape ``(thresholds + 1, resamples)``.
        outside: number of accepted rows of the other set, same shape.
    """

    inside: NDArray[Any]
    outside: NDArray[Any]

    @property
    def tpr(self) -> NDArray[np.float64]:
        """Share of the ID rows that are accepted."""
        return _share(self.inside)

    @property
    def fpr(self) -> NDArray[np.float64]:
        """Share of the other rows that are accepted."""
        return _share(self.outside)

    def inverted(self) -> Curve:
        """The curve with the other set as the positive one, accepting low scores first."""
        return Curve((self.outside[-1] - self.outside)[::-1], (self.inside[-1] - self.inside)[::-1])


def _share(accepted: NDArray[Any]) -> NDArray[np.float64]:
    """Accepted share of all rows; NaN in resamples without rows."""
    rates = np.full(accepted.shape, np.nan)
    np.divide(accepted, accepted[-1], out=rates, where=accepted[-1] > 0)
    return rates


def curve_of(inside: Scores, outside: Scores, weights: NDArray[Any] | None = None) -> Curve:
    """Compute the curve of two sets of scores.

    Args:
        inside: scores of the ID rows, shape ``(n,)``.
        outside: scores of the other rows, shape ``(m,)``.
        weights: weights of all rows, ID rows first, shape ``(n + m, resamples)``; by default each
            row counts once.

    Raises:
        ValueError: a set has no rows, or a score is NaN.
    """
    check_scores(inside, outside)
    scores = np.concatenate([inside, outside])
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(scores[order[1:]] != scores[order[:-1]], True)  # infinities tie as well
    if weights is None:
        weights = np.ones((len(scores), 1), np.int64)
    is_inside = (order < len(inside))[:, np.newaxis]
    weights = weights[order].astype(np.int64)
    return Curve(*(_sums(weights * each, is_last) for each in (is_inside, ~is_inside)))


def check_scores(inside: Scores, outside: Scores) -> None:
    """Raise ``ValueError`` if a set of scores is empty, contains NaN or is not a vector."""
    for what, scores in (("in-distribution", inside), ("out-of-distribution", outside)):
        if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
            raise ValueError(
                f"detection: expected {what} scores that are numbers, at least one, found "
                f"{list(scores.shape)} with {np.isnan(scores).sum()} NaN"
            )


def _sums(weights: NDArray[Any], is_last: NDArray[np.bool_]) -> NDArray[Any]:
    """Running sums at the last row of each group of equal scores, preceded by zeros."""
    sums: NDArray[Any] = np.cumsum(weights, axis=0)[is_last]
    return np.concatenate([np.zeros_like(sums[:1]), sums])


def fpr95(curve: Curve) -> Values:
    """Share of other rows accepted by the threshold whose TPR is closest to 95 %.

    Many thresholds accept the same ID rows: the strictest of them counts, which accepts the fewest
    other rows. The paper's code base has the loosest: see `fpr95_sweep`. Of two TPRs equally close
    to 95 %, the lower one counts here, and the higher one there.
    """
    share, of = TPR
    distance = np.abs(of * curve.inside - share * curve.inside[-1])
    at = distance.argmin(axis=0)
    rates: Values = np.take_along_axis(curve.fpr, at[np.newaxis], axis=0)[0]
    return np.where(curve.inside[-1] > 0, rates, np.nan)


def fpr95_ood_pos(curve: Curve) -> Values:
    """Share of ID rows rejected by the first threshold that rejects 95 % of the other rows."""
    inverted = curve.inverted()
    share, of = TPR
    at = (of * inverted.inside >= share * inverted.inside[-1]).argmax(axis=0)
    rates: Values = np.take_along_axis(inverted.fpr, at[np.newaxis], axis=0)[0]
    return np.where(inverted.inside[-1] > 0, rates, np.nan)


def detection_error(curve: Curve) -> Values:
    """Smallest ``(1 - TPR + FPR) / 2`` of any threshold."""
    errors: Values = ((1 - curve.tpr + curve.fpr) / 2).min(axis=0)
    return errors


def auroc(curve: Curve) -> Values:
    """Area under the ROC curve: how often an ID row scores higher, ties counted as one half."""
    return _area(curve.fpr, curve.tpr)


def aupr_in(curve: Curve) -> Values:
    """Area under the precision-recall curve, with ID rows positive."""
    n_accepted = curve.inside + curve.outside
    precision = np.divide(
        curve.inside, n_accepted, out=np.ones(n_accepted.shape), where=n_accepted > 0
    )
    return _area(curve.tpr, precision)


def aupr_out(curve: Curve) -> Values:
    """Area under the precision-recall curve, with the other rows positive."""
    return aupr_in(curve.inverted())


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> Values:
    area: Values = ((x[1:] - x[:-1]) * (y[1:] + y[:-1])).sum(axis=0) / 2
    return area


CURVE_METRICS: dict[str, Callable[[Curve], Values]] = {
    "fpr95": fpr95,
    "fpr95_ood_pos": fpr95_ood_pos,
    "detection_error": detection_error,
    "auroc": auroc,
    "aupr_in": aupr_in,
    "aupr_out": aupr_out,
}
"""Metrics that are computed from the curve, for all resamples at once."""


def fpr95_sweep(inside: Scores, outside: Scores) -> float:
    """FPR at 95 % TPR in the paper's code base, by the loosest threshold that keeps that TPR.

    A sweep removes rows one by one, from the lowest score up, ID rows first among equal scores.
    It is the FPR right after removing the ID row that brings the TPR closest to 95 % for the first
    time: the other rows with its score or a higher one still remain.
    """
    check_scores(inside, outside)
    n, (share, of) = len(inside), TPR
    n_removed = int(np.abs(of * (n - np.arange(n + 1)) - share * n).argmin())
    if n_removed == 0:
        return 1.0
    return float((outside >= np.sort(inside)[n_removed - 1]).mean())


def auroc_sweep(inside: Scores, outside: Scores) -> float:
    """AUROC under that sweep: how often an ID row scores higher, ties counted as losses."""
    check_scores(inside, outside)
    n_below = np.searchsorted(np.sort(outside), inside, side="left")
    return float(n_below.mean() / len(outside))


SWEEPS: dict[str, Callable[[Scores, Scores], float]] = {
    "fpr95_sweep": fpr95_sweep,
    "auroc_sweep": auroc_sweep,
}
"""How the paper's code base treats rows with equal scores; not resampled."""


def detection_summary(inside: Scores, outside: Scores) -> dict[str, float]:
    """All metrics of two sets of scores by name, in the order of `DETECTION`."""
    curve = curve_of(inside, outside)
    found = {name: float(metric(curve)[0]) for name, metric in CURVE_METRICS.items()}
    return found | {name: sweep(inside, outside) for name, sweep in SWEEPS.items()}
