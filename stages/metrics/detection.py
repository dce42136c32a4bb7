"""How well scores tell two sets of rows apart; what each is: `stages.metrics.definitions`.

A score is high for what looks like the in-distribution set. Everything is read off one curve: how
many rows of each set a threshold accepts, for every threshold that accepts other rows than the one
before. Rows with equal scores pass together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Values = NDArray[np.float64]
"""A number for each resample."""

TPR = (19, 20)
"""The share of 95 %, as whole numbers: near it rates would tie by rounding."""


@dataclass(frozen=True)
class Curve:
    """What thresholds accept, from none to all rows; weighted where rows were resampled.

    Attributes:
        inside: in-distribution rows accepted, shape ``(thresholds + 1, resamples)``.
        outside: the same of the other set.
    """

    inside: NDArray[Any]
    outside: NDArray[Any]

    @property
    def tpr(self) -> NDArray[np.float64]:
        """Share of the in-distribution rows that is accepted."""
        return _share(self.inside)

    @property
    def fpr(self) -> NDArray[np.float64]:
        """Share of the other rows that is accepted."""
        return _share(self.outside)

    def turned(self) -> Curve:
        """The curve with the other set as the positive one, and low scores accepted first."""
        return Curve((self.outside[-1] - self.outside)[::-1], (self.inside[-1] - self.inside)[::-1])


def _share(accepted: NDArray[Any]) -> NDArray[np.float64]:
    """Of all rows; NaN in resamples without any."""
    rates = np.full(accepted.shape, np.nan)
    np.divide(accepted, accepted[-1], out=rates, where=accepted[-1] > 0)
    return rates


def curve_of(inside: Scores, outside: Scores, weights: NDArray[Any] | None = None) -> Curve:
    """The curve of two sets of scores.

    Args:
        inside: of the in-distribution rows, shape ``(n,)``.
        outside: of the other rows, shape ``(m,)``.
        weights: of all these rows, the in-distribution ones first, shape ``(n + m, resamples)``;
            each row counts once where there are none.

    Raises:
        ValueError: a set without rows, or a score that is NaN.
    """
    check_scores(inside, outside)
    scores = np.concatenate([inside, outside])
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(np.diff(scores[order]) != 0, True)
    if weights is None:
        weights = np.ones((len(scores), 1), np.int64)
    is_inside = (order < len(inside))[:, np.newaxis]
    weights = weights[order].astype(np.int64)
    return Curve(*(_sums(weights * each, is_last) for each in (is_inside, ~is_inside)))


def check_scores(inside: Scores, outside: Scores) -> None:
    """Raise ``ValueError`` where two sets of scores cannot be told apart at all."""
    for what, scores in (("in-distribution", inside), ("out-of-distribution", outside)):
        if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
            raise ValueError(
                f"detection: expected {what} scores that are numbers, at least one, found "
                f"{list(scores.shape)} with {np.isnan(scores).sum()} NaN"
            )


def _sums(weights: NDArray[Any], is_last: NDArray[np.bool_]) -> NDArray[Any]:
    """Running sums at the last row of each group of equal scores, after those of no row."""
    sums: NDArray[Any] = np.cumsum(weights, axis=0)[is_last]
    return np.concatenate([np.zeros_like(sums[:1]), sums])


def fpr95(curve: Curve) -> Values:
    """Share of other rows accepted by the threshold that accepts nearest to 95 % of the inside."""
    share, of = TPR
    distance = np.abs(of * curve.inside - share * curve.inside[-1])
    at = distance.argmin(axis=0)  # the first: of thresholds with one TPR the strictest
    rates: Values = np.take_along_axis(curve.fpr, at[np.newaxis], axis=0)[0]
    return np.where(curve.inside[-1] > 0, rates, np.nan)


def fpr95_ood_pos(curve: Curve) -> Values:
    """Share of in-distribution rows rejected by the first threshold that rejects 95 % of others."""
    turned = curve.turned()
    share, of = TPR
    at = (of * turned.inside >= share * turned.inside[-1]).argmax(axis=0)
    rates: Values = np.take_along_axis(turned.fpr, at[np.newaxis], axis=0)[0]
    return np.where(turned.inside[-1] > 0, rates, np.nan)


def detection_error(curve: Curve) -> Values:
    """Smallest ``(1 - TPR + FPR) / 2`` of any threshold."""
    errors: Values = ((1 - curve.tpr + curve.fpr) / 2).min(axis=0)
    return errors


def auroc(curve: Curve) -> Values:
    """Area under the ROC curve: how often an inside row scores higher, ties counted half."""
    return _area(curve.fpr, curve.tpr)


def aupr_in(curve: Curve) -> Values:
    """Area under precision against recall, in-distribution rows positive."""
    n_accepted = curve.inside + curve.outside
    precision = np.divide(
        curve.inside, n_accepted, out=np.ones(n_accepted.shape), where=n_accepted > 0
    )
    return _area(curve.tpr, precision)


def aupr_out(curve: Curve) -> Values:
    """Area under precision against recall, the other rows positive."""
    return aupr_in(curve.turned())


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
"""What is read off the curve, for each resample at once."""


def fpr95_sweep(inside: Scores, outside: Scores) -> float:
    """FPR at 95 % TPR where a sweep takes rows away one by one, inside rows first among equals.

    The state right after the inside row is gone that brings the TPR nearest to 95 % for the first
    time: every other row with its score, or a higher one, is still there.
    """
    check_scores(inside, outside)
    n, (share, of) = len(inside), TPR
    n_gone = int(np.abs(of * (n - np.arange(n + 1)) - share * n).argmin())
    if n_gone == 0:
        return 1.0
    return float((outside >= np.sort(inside)[n_gone - 1]).mean())


def auroc_sweep(inside: Scores, outside: Scores) -> float:
    """AUROC under that sweep: how often an inside row scores higher, ties counted as lost."""
    check_scores(inside, outside)
    n_below = np.searchsorted(np.sort(outside), inside, side="left")
    return float(n_below.mean() / len(outside))


SWEEPS: dict[str, Callable[[Scores, Scores], float]] = {
    "fpr95_sweep": fpr95_sweep,
    "auroc_sweep": auroc_sweep,
}
"""The paper's code base on rows with equal scores; not resampled."""


def detection_summary(inside: Scores, outside: Scores) -> dict[str, float]:
    """All metrics of two sets of scores by name, those of `DETECTION` in its order."""
    curve = curve_of(inside, outside)
    found = {name: float(metric(curve)[0]) for name, metric in CURVE_METRICS.items()}
    return found | {name: sweep(inside, outside) for name, sweep in SWEEPS.items()}
