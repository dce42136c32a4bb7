"""Scores of split conformal prediction, and the thresholds below which a class is in the set.

Split conformal prediction (Vovk et al. 2005; Papadopoulos et al. 2002) scores how badly each class
fits a row. The threshold is a quantile of the scores of the labels of calibration rows, and the
prediction set of another row holds the classes that score no more. If its row is exchangeable with
the calibration rows, the set holds the label with a probability of at least ``1 - alpha``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

Values = NDArray[np.float64]
Classes = NDArray[np.int64]

METHODS: dict[str, str] = {
    "lac": "1 - p of the class (Sadinle et al. 2019): the smallest sets on average",
    "aps": (
        "probability of the class and of all more probable ones (Romano et al. 2020), less a "
        "uniform share of its own"
    ),
    "raps": (
        "aps with a penalty for each rank beyond some free ones (Angelopoulos et al. 2021), which "
        "keeps large sets out"
    ),
    "saps": (
        "aps with the largest probability, and one weight in place of each other (Huang et al. "
        "2024)"
    ),
}
"""Score -> its definition. Classes of equal probability rank by their number."""


@dataclass(frozen=True)
class Shape:
    """Parameters of the scores.

    Attributes:
        penalty: penalty of `raps` for each rank beyond ``free_ranks``.
        free_ranks: ranks without a penalty.
        rank_weight: weight of each rank after the first in `saps`.
    """

    penalty: float = 0.01
    free_ranks: int = 5
    rank_weight: float = 0.2


def class_scores(name: str, p: Values, draws: Values, shape: Shape) -> Values:
    """The score of every class of every row, ``[n, N]``; NaN in rows of NaN.

    Args:
        name: a key of `METHODS`.
        p: probabilities, ``[n, N]``.
        draws: uniform numbers, ``[n]``; zeros for scores without randomisation, whose sets cover
            more than asked for. `lac` ignores them.
        shape: parameters.
    """
    if name == "lac":
        plain: Values = 1.0 - p
        return plain
    order = np.argsort(-p, axis=1, kind="stable")
    weights = np.take_along_axis(p, order, axis=1)
    if name == "saps":
        weights[:, 1:] = np.where(np.isnan(weights[:, 1:]), np.nan, shape.rank_weight)
    ranked = np.cumsum(weights, axis=1)
    if name != "saps":  # rounding must not decide whether the last class is in the set
        ranked = np.minimum(ranked, 1.0)
        ranked[:, -1] = np.where(np.isnan(ranked[:, -1]), np.nan, 1.0)
    ranked -= draws[:, np.newaxis] * weights
    if name == "raps":
        ranks = np.arange(1, p.shape[1] + 1)
        ranked += shape.penalty * np.maximum(ranks - shape.free_ranks, 0)
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, ranked, axis=1)
    return scores


def rank_of_threshold(n_rows: int, alpha: float) -> int:
    """``⌈(n + 1)(1 - alpha)⌉``: the rank of the threshold among ``n`` scores, from 1.

    It is computed exactly, because a rounding error would move the rank.

    >>> rank_of_threshold(9, 0.1), rank_of_threshold(8, 0.1), rank_of_threshold(19, 0.05)
    (9, 9, 19)
    """
    return math.ceil((n_rows + 1) * (1 - Fraction(repr(float(alpha)))))


def threshold_of(scores: Values, alpha: float) -> float:
    """The smallest score that is enough: a class is in the set if its score is at most this.

    Infinite if there are too few rows to say anything: then every class is in the set.
    """
    rank = rank_of_threshold(len(scores), alpha)
    if rank > len(scores):
        return math.inf
    return float(np.partition(scores, rank - 1)[rank - 1])


def class_thresholds(scores: Values, labels: Classes, n_classes: int, alpha: float) -> Values:
    """A threshold for each class from the rows with that label (Vovk 2012), shape ``(N,)``."""
    return np.array([threshold_of(scores[labels == each], alpha) for each in range(n_classes)])


@lru_cache
def expected_coverage(n_calibrated: int, n_rows: int, alpha: float) -> tuple[float, float]:
    """The central 95 % interval of the coverage of ``n_rows`` exchangeable rows.

    Given ``n`` calibration rows and scores without ties, the probability that another label is
    covered is ``Beta(k, n + 1 - k)``, with `rank_of_threshold` as ``k`` (Vovk 2012), so the number
    of covered rows is beta-binomial. ``(nan, nan)`` without rows.
    """
    rank = rank_of_threshold(n_calibrated, alpha)
    if n_rows == 0:
        return math.nan, math.nan
    if rank > n_calibrated:
        return 1.0, 1.0
    # One sum over the support: scipy's own quantiles add it up again for each step of a search.
    counts = np.arange(n_rows + 1)
    below = np.cumsum(betabinom.pmf(counts, n_rows, rank, n_calibrated + 1 - rank))
    low, high = np.searchsorted(below, [0.025, 0.975]) / n_rows
    return float(low), float(high)
