"""How well scores of quality agree with opinions of people.

Scores are mapped to the scale of the opinions by a logistic function of five parameters (Sheikh,
Sabir & Bovik, IEEE TIP 2006) before errors and Pearson's correlation are computed; the rank
correlations need no mapping. Absolute values are returned, since some data sets rate quality and
others its loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import atanh, nan, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stages.metrics.bootstrap import Resampling, interval

Floats = NDArray[np.float64]
Start = Literal["paper", "multistart"]

N_PARAMETERS = 5
MIN_PAIRS = N_PARAMETERS + 1
"""Fewest pairs to which the mapping is fitted."""

PAPER_START = (0.0, 0.1, 0.0, 0.0, 0.0)
"""Start of the published code. The fit ends in a nearby minimum, which is often almost linear."""

MAX_STEPS = 500
"""Steps of a fit at most."""

METRICS: Mapping[str, str] = {
    "outlier_ratio": "share of pairs whose mapped score is further than 2 standard deviations of "
    "the opinions from their mean; none if the data set has no standard deviations",
    "rmse": "root mean squared difference of mapped scores and mean opinions",
    "plcc": "|Pearson's correlation| of mapped scores and mean opinions",
    "srcc": "|Spearman's rank correlation| of scores and mean opinions, ties by mean ranks",
    "krcc": "|Kendall's tau-b| of scores and mean opinions",
}
"""Metric -> its definition, in the order of tables."""

CORRELATIONS = ("plcc", "srcc", "krcc")

_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Mapping5:
    """A fitted logistic function.

    Attributes:
        parameters: ``b1`` to ``b5``; NaN if there are fewer than `MIN_PAIRS` pairs.
        start: where the fit began.
    """

    parameters: tuple[float, ...]
    start: Start

    def __call__(self, scores: Floats) -> Floats:
        """The scores on the scale of the opinions."""
        return logistic(np.asarray(self.parameters), scores)


def logistic(parameters: Floats, scores: Floats) -> Floats:
    """``b1 (1/2 - 1 / (1 + exp(b2 (q - b3)))) + b4 q + b5``.

    >>> logistic(np.array([2.0, 1.0, 0.0, 3.0, 4.0]), np.array([0.0])).tolist()
    [4.0]
    """
    from scipy.special import expit

    b1, b2, b3, b4, b5 = parameters
    mapped: Floats = b1 * (0.5 - expit(-b2 * (scores - b3))) + b4 * scores + b5
    return mapped


def jacobian(parameters: Floats, scores: Floats) -> Floats:
    """Derivatives of `logistic` to the five parameters, shape ``(n, 5)``."""
    from scipy.special import expit

    b1, b2, b3, _, _ = parameters
    falling = expit(-b2 * (scores - b3))
    slope = falling * (1 - falling)
    columns = [0.5 - falling, b1 * slope * (scores - b3), -b1 * b2 * slope]
    return np.stack([*columns, scores, np.ones_like(scores)], axis=1)


def fit_mapping(scores: Floats, opinions: Floats, start: Start = "paper") -> Mapping5:
    """Fit the logistic function by Levenberg-Marquardt.

    Args:
        scores: shape ``(n,)``, finite.
        opinions: mean opinions, shape ``(n,)``, finite.
        start: ``paper`` begins at `PAPER_START`; ``multistart`` also at several slopes and
            centres, and keeps the smallest error.
    """
    if len(scores) < MIN_PAIRS:
        return Mapping5((nan,) * N_PARAMETERS, start)
    starts = [np.array(PAPER_START)]
    if start == "multistart":
        starts += _starts(scores, opinions)
    fits = [_fitted(each, scores, opinions) for each in starts]
    best = min(fits, key=lambda each: _error(each, scores, opinions))
    return Mapping5(tuple(best.tolist()), start)


def _starts(scores: Floats, opinions: Floats) -> list[Floats]:
    """Rising and falling curves of four steepnesses around three quantiles of the scores."""
    spread = float(np.std(scores)) or 1.0
    height, middle = float(np.ptp(opinions)), float(np.mean(opinions))
    return [
        np.array([sign * height, steepness / spread, centre, 0.0, middle])
        for sign in (1, -1)
        for steepness in (0.5, 1.0, 3.0, 10.0)
        for centre in np.quantile(scores, [0.25, 0.5, 0.75]).tolist()
    ]


def _fitted(start: Floats, scores: Floats, opinions: Floats) -> Floats:
    from scipy.optimize import least_squares

    found = least_squares(
        lambda each: logistic(each, scores) - opinions,
        start,
        jac=lambda each: jacobian(each, scores),
        method="lm",
        max_nfev=MAX_STEPS,
    )
    return np.asarray(found.x if np.isfinite(found.x).all() else start, np.float64)


def _error(parameters: Floats, scores: Floats, opinions: Floats) -> float:
    error = float(np.mean((logistic(parameters, scores) - opinions) ** 2))
    return error if np.isfinite(error) else np.inf


def agreement(
    scores: Floats, mapped: Floats, opinions: Floats, std: Floats | None = None
) -> dict[str, float]:
    """The metrics of `METRICS`; NaN for those that are undefined, as for constant scores.

    Args:
        scores: shape ``(n,)``, finite.
        mapped: the scores on the scale of the opinions; NaN if there is no mapping.
        opinions: mean opinions, shape ``(n,)``, finite.
        std: standard deviations of the opinions; NaN for pairs without one, which are left out of
            the outlier ratio.
    """
    from scipy.stats import kendalltau

    is_constant = min(len(set(scores.tolist())), len(set(opinions.tolist()))) < 2
    return {
        "outlier_ratio": nan if std is None else outlier_ratio(mapped, opinions, std),
        "rmse": float(np.sqrt(np.mean((mapped - opinions) ** 2))) if len(scores) else nan,
        "plcc": abs(pearson(mapped, opinions)),
        "srcc": abs(spearman(scores, opinions)),
        "krcc": nan if is_constant else abs(float(kendalltau(scores, opinions).statistic)),
    }


def outlier_ratio(mapped: Floats, opinions: Floats, std: Floats) -> float:
    """Share of pairs with ``|mapped - opinion| > 2 std``, among those with a ``std``.

    >>> values = np.array([1.0, 2.0, 3.0])
    >>> outlier_ratio(values, np.array([1.0, 2.5, 4.0]), np.array([0.5, 0.2, np.nan]))
    0.5
    """
    known = np.isfinite(std) & np.isfinite(mapped)
    if not known.any():
        return nan
    return float(np.mean(np.abs(mapped - opinions)[known] > 2 * std[known]))


def pearson(first: Floats, second: Floats) -> float:
    """Pearson's correlation; NaN if one side is constant, empty or not finite."""
    if len(first) < 2 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return nan
    a, b = first - first.mean(), second - second.mean()
    scale = sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else nan


def spearman(first: Floats, second: Floats) -> float:
    """Spearman's rank correlation, with mean ranks for ties; NaN if one side is constant.

    >>> round(spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 3.0])), 4)
    0.866
    """
    from scipy.stats import rankdata

    return pearson(rankdata(first), rankdata(second)) if len(first) else nan


def differs(first: float, second: float, n: int) -> int:
    """1 if the first correlation is significantly higher, -1 if lower, 0 if neither.

    Fisher's z of two correlations over ``n`` pairs each, taken as independent, two-sided at 5 %.
    Both are over the same pairs, so the test is conservative.

    >>> differs(0.9, 0.8, 100), differs(0.82, 0.8, 100), differs(0.8, 0.9, 100)
    (1, 0, -1)
    """
    if n <= 3 or not (abs(first) < 1 and abs(second) < 1):
        return 0
    z = (atanh(first) - atanh(second)) / sqrt(2 / (n - 3))
    return 0 if abs(z) <= _Z_95 else (1 if z > 0 else -1)


def intervals(
    scores: Floats,
    mapped: Floats,
    opinions: Floats,
    std: Floats | None,
    groups: NDArray[np.int64],
    resampling: Resampling,
) -> dict[str, tuple[float, float]]:
    """95 % interval of each metric by the bootstrap over groups; the mapping stays as it is.

    Args:
        scores, mapped, opinions, std: as for `agreement`.
        groups: number of each pair's group, from 0. All pairs of a group are drawn together, since
            those with the same reference are not independent.
        resampling: number of resamples and their seed.
    """
    values = agreement(scores, mapped, opinions, std)
    weights = resampling.weights(np.arange(int(groups.max(initial=-1)) + 1))
    found: dict[str, list[float]] = {name: [] for name in values}
    for drawn in weights.T:
        rows = np.repeat(np.arange(len(scores)), drawn[groups])
        each = agreement(
            scores[rows], mapped[rows], opinions[rows], None if std is None else std[rows]
        )
        for name, value in each.items():
            found[name].append(value)
    return {name: interval(values[name], np.array(found[name])) for name in values}
