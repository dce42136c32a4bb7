"""How well a confidence ranks the errors of a classifier below its correct rows.

A selective classifier keeps the most confident rows and rejects the others (Geifman & El-Yaniv
2017). All metrics are computed from one curve: the number of correct and of wrong rows that each
distinct threshold keeps. Where rows of equal confidence are kept in part, as at a given coverage,
the number of errors among them is its mean over all orders of these rows, so no metric depends on
the order of the file. See `stages.metrics.definitions.SELECTIVE` for each metric.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.metrics.detection import Curve, auroc

Values = NDArray[np.float64]
"""One number per resample."""

COVERAGES = (0.5, 0.8, 0.9)
"""Coverages at which the risk is reported."""

RISKS = (0.01, 0.05)
"""Risks at which the coverage is reported."""

_ROUNDING = 1e-9
"""Rows by which a coverage times a number of rows may exceed a whole number through rounding."""


def risk_curve(
    confidence: NDArray[np.float64],
    is_correct: NDArray[np.bool_],
    weights: NDArray[np.uint8] | None = None,
) -> Curve:
    """Correct rows (``inside``) and wrong rows (``outside``) that each distinct threshold keeps.

    Args:
        confidence: shape ``(n,)``, high for rows that are probably correct; not NaN.
        is_correct: shape ``(n,)``.
        weights: number of times that each row counts in each resample, shape ``(n, resamples)``;
            by default each row counts once.

    Returns:
        Arrays of shape ``(thresholds + 1, resamples)``, from no row to all.

    Raises:
        ValueError: shapes differ, or a confidence is NaN.
    """
    if confidence.ndim != 1 or confidence.shape != is_correct.shape or np.isnan(confidence).any():
        raise ValueError(
            f"selective classification: expected a confidence for each row, not NaN, found "
            f"{list(confidence.shape)} for {list(is_correct.shape)} rows with "
            f"{np.isnan(confidence).sum()} NaN"
        )
    order = np.argsort(-confidence, kind="stable")
    ordered, correct = confidence[order], is_correct[order, np.newaxis]
    is_last = np.append(ordered[1:] != ordered[:-1], True)[: len(order)]
    counted = np.ones((len(order), 1), np.int64) if weights is None else weights[order]
    counted = counted.astype(np.int64)
    return Curve(*(_kept(counted * each, is_last) for each in (correct, ~correct)))


def _kept(counts: NDArray[np.int64], is_last: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Cumulated counts at the last row of each group of equal confidence, after a row of zeros."""
    ends = np.cumsum(counts, axis=0)[is_last]
    return np.concatenate([np.zeros((1, counts.shape[1]), np.int64), ends])


def error_rate(curve: Curve) -> Values:
    """Share of all rows that are wrong: the risk at full coverage."""
    return _ratio(curve.outside[-1], _n_kept(curve)[-1])


def aurc(curve: Curve) -> Values:
    """Area under the risk-coverage curve: the mean over k = 1..n of the risk of k rows.

    A group of ``m`` rows of equal confidence with ``e`` errors, behind ``a`` rows with ``E``
    errors, adds its mean over all orders, ``Σ_j (E + j e/m) / (a + j)`` for j = 1..m, which is
    ``e + (E - a e/m) (H(a + m) - H(a))`` with the harmonic numbers H.
    """
    kept, errors = _n_kept(curve), curve.outside
    harmonic = _harmonic(int(kept[-1].max(initial=0)))
    before, n_before = errors[:-1], kept[:-1]
    in_group, n_group = np.diff(errors, axis=0), np.diff(kept, axis=0)
    rate = in_group / np.maximum(n_group, 1)
    risks = in_group + (before - n_before * rate) * (harmonic[kept[1:]] - harmonic[n_before])
    return _ratio(risks.sum(axis=0), kept[-1])


def augrc(curve: Curve) -> Values:
    """Area under the generalised risk-coverage curve (Traub et al. 2024).

    The mean over k = 1..n of the errors among k rows divided by n: the chance that a row is both
    kept and wrong. A group of equal confidence adds ``m E + e (m + 1) / 2``.
    """
    kept, errors = _n_kept(curve), curve.outside
    in_group, n_group = np.diff(errors, axis=0), np.diff(kept, axis=0)
    risks = (n_group * errors[:-1] + in_group * (n_group + 1) / 2).sum(axis=0)
    return _ratio(risks, kept[-1].astype(np.float64) ** 2)


def e_aurc(curve: Curve) -> Values:
    """AURC less that of the best order, which rejects all errors first (Geifman et al. 2019).

    With E errors in n rows the best order has ``(E - (n - E) (H(n) - H(n - E))) / n``.
    """
    n, errors = _n_kept(curve)[-1], curve.outside[-1]
    harmonic = _harmonic(int(n.max(initial=0)))
    best = errors - (n - errors) * (harmonic[n] - harmonic[n - errors])
    return aurc(curve) - _ratio(best, n)


def auroc_f(curve: Curve) -> Values:
    """Chance that a correct row has a higher confidence than a wrong one, ties counted half.

    NaN without errors, or without correct rows.
    """
    has_both = (curve.inside[-1] > 0) & (curve.outside[-1] > 0)
    return np.where(has_both, auroc(curve), np.nan)


def risk_at(coverage: float, curve: Curve) -> Values:
    """Risk of the ``ceil(coverage * n)`` most confident rows, at least one."""
    kept, errors = _n_kept(curve), curve.outside
    n = kept[-1]
    n_wanted = np.maximum(np.ceil(coverage * n - _ROUNDING), 1)
    at = (kept >= n_wanted).argmax(axis=0)[np.newaxis]
    low = np.maximum(at - 1, 0)
    n_low, n_high = (np.take_along_axis(kept, each, axis=0)[0] for each in (low, at))
    e_low, e_high = (np.take_along_axis(errors, each, axis=0)[0] for each in (low, at))
    rate = (e_high - e_low) / np.maximum(n_high - n_low, 1)
    risk: Values = (e_low + (n_wanted - n_low) * rate) / n_wanted
    return np.where(n > 0, risk, np.nan)


def coverage_at(risk: float, curve: Curve) -> Values:
    """Largest share of rows that a threshold keeps with at most this risk; 0 if none does.

    A threshold keeps all rows of equal confidence, or none.
    """
    kept = _n_kept(curve)
    is_allowed = curve.outside <= risk * kept + _ROUNDING
    return _ratio(np.where(is_allowed, kept, 0).max(axis=0), kept[-1])


def risks_at(coverages: NDArray[np.float64], curve: Curve) -> NDArray[np.float64]:
    """The risk-coverage curve at these coverages, shape ``(len(coverages), resamples)``."""
    return np.stack([risk_at(float(each), curve) for each in coverages])


SELECTIVE_METRICS: dict[str, Callable[[Curve], Values]] = {
    "error_rate": error_rate,
    "aurc": aurc,
    "augrc": augrc,
    "e_aurc": e_aurc,
    "auroc_f": auroc_f,
    **{f"risk_at_{100 * each:.0f}": partial(risk_at, each) for each in COVERAGES},
    **{f"coverage_at_{100 * each:.0f}": partial(coverage_at, each) for each in RISKS},
}
"""Metrics by name, for all resamples of a curve at once; NaN without rows."""


def _n_kept(curve: Curve) -> NDArray[np.int64]:
    kept: NDArray[np.int64] = curve.inside + curve.outside
    return kept


def _harmonic(n: int) -> NDArray[np.float64]:
    """``H(k) = 1 + 1/2 + ... + 1/k`` for k = 0..n."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Values:
    """The quotient, or NaN where the denominator is 0."""
    empty = np.full(np.shape(numerator), np.nan)
    quotient: Values = np.divide(numerator, denominator, out=empty, where=denominator > 0)
    return quotient
