"""Estimators of the accuracy of rows without labels, as functions of sums over the rows.

Four estimate the accuracy itself, from source rows with labels; three give a number that only
ranks groups. All are computed from the input ``h`` and the output ``z`` of a last layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Values = NDArray[np.float64]

SURE = 0.5
"""Rows of GdScore that are less confident have a random pseudo-label."""

GRADIENT_NORM = 0.3
MANO_NORM = 4
MANO_CRITERION = 5.0
"""Parameters of GdScore and MaNo, those of the papers."""

COUNTS = (
    *("n_rows", "n_labelled", "n_correct", "confidence", "above_msp", "above_entropy"),
    *("log_p", "p_norm", "taylor_norm"),
)
"""Names of the sums over rows in `Sums.counts`:

- 1; 1 for a row with a label; 1 if the most probable class is it; the largest probability;
- 1 for a row whose score is at least the threshold of ATC, by confidence and by negative entropy;
- ``-Σ_c log p_c``, ``Σ_c p_c^4`` and ``Σ_c t_c^4`` with ``t`` from `taylor`.
"""


@dataclass(frozen=True, slots=True)
class Source:
    """What a predictor does on labelled source rows.

    Attributes:
        n_rows: number of rows.
        accuracy, confidence: means over the rows.
        above_msp, above_entropy: thresholds of ATC.
    """

    n_rows: int
    accuracy: float
    confidence: float
    above_msp: float
    above_entropy: float


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Sums over rows of a group; those of parts are added.

    Attributes:
        n_seen: number of rows, with those that failed.
        counts: sums by the names in `COUNTS`.
        gram: ``PᵀP`` of the probabilities, ``[N, N]``.
        gradient: sum of ``(p - e) ⊗ h`` with pseudo-labels, ``[N, d]``.
    """

    n_seen: int
    counts: Values
    gram: Values
    gradient: Values

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.n_seen + other.n_seen,
            self.counts + other.counts,
            self.gram + other.gram,
            self.gradient + other.gradient,
        )

    def mean(self, name: str) -> float:
        """Mean over the rows of one of `COUNTS`; NaN without rows."""
        n = self.counts[0]
        return float(self.counts[COUNTS.index(name)] / n) if n else math.nan

    @property
    def accuracy(self) -> float:
        """Accuracy of the rows that have a label; NaN if none has."""
        n_labelled, n_correct = self.counts[1:3]
        return float(n_correct / n_labelled) if n_labelled else math.nan


def threshold_of(scores: Values, n_below: int) -> float:
    """The score below which there are as nearly ``n_below`` of the scores as ties allow.

    Just above the largest score if all are to be below. With the number of errors, it is the
    threshold of ATC.

    >>> threshold_of(np.array([3.0, 1.0, 2.0, 2.0]), 1)
    2.0
    """
    ordered = np.sort(scores)
    above = math.nextafter(float(ordered[-1]), math.inf)  # finite, so that JSON can hold it
    if n_below >= len(scores):
        return above
    lower = float(ordered[n_below])
    ends = [int(np.searchsorted(ordered, lower, side)) for side in ("left", "right")]
    if ends[1] - n_below < n_below - ends[0]:
        return float(ordered[ends[1]]) if ends[1] < len(ordered) else above
    return lower


def taylor(logits: Values) -> Values:
    """``1 + z + z²/2`` of each class over their sum, the normalisation of MaNo; ``[n, N]``."""
    found = 1 + logits + logits**2 / 2  # at least 1/2
    shares: Values = found / found.sum(axis=1, keepdims=True)
    return shares


def pseudo_labels(p: Values, draws: Values) -> NDArray[np.int64]:
    """The most probable class of confident rows, a random one of the others; ``[n]``."""
    drawn = (draws * p.shape[1]).astype(np.int64)
    labels: NDArray[np.int64] = np.where(p.max(axis=1) > SURE, p.argmax(axis=1), drawn)
    return labels


def _confidence(sums: Sums, source: Source) -> float:
    del source
    return sums.mean("confidence")


def _difference_of_confidences(sums: Sums, source: Source) -> float:
    return source.accuracy - (source.confidence - sums.mean("confidence"))


def _gradient_norm(sums: Sums, source: Source) -> float:
    del source
    if not (n := sums.counts[0]):
        return math.nan
    values = np.abs(sums.gradient / n)
    return float((values**GRADIENT_NORM).sum() ** (1 / GRADIENT_NORM))


def _nuclear_norm(sums: Sums, source: Source) -> float:
    del source
    if not (n := sums.counts[0]):
        return math.nan
    # The singular values of P are the roots of the eigenvalues of PᵀP, which rounding makes < 0.
    eigenvalues = np.maximum(np.linalg.eigvalsh(sums.gram), 0.0)
    largest = math.sqrt(min(n, len(sums.gram)) * n)
    return float(np.sqrt(eigenvalues).sum() / largest)


def _mano(sums: Sums, source: Source) -> float:
    del source
    n_classes = len(sums.gram)
    is_calibrated = sums.mean("log_p") / n_classes > MANO_CRITERION
    mean = sums.mean("p_norm" if is_calibrated else "taylor_norm") / n_classes
    return float(mean ** (1 / MANO_NORM))


@dataclass(frozen=True)
class Estimator:
    """A way to estimate accuracy.

    Attributes:
        definition: one line, with the source.
        estimate: estimates it for a group.
        is_accuracy: whether it is an accuracy; else it only ranks groups.
        is_high_if_accurate: whether high values are accurate.
    """

    definition: str
    estimate: Callable[[Sums, Source], float]
    is_accuracy: bool = True
    is_high_if_accurate: bool = True


ESTIMATORS: dict[str, Estimator] = {
    "ac": Estimator("average confidence: the mean of the largest probability", _confidence),
    "doc": Estimator(
        "difference of confidences: source accuracy less the drop of the average confidence "
        "(Guillory et al. 2021)",
        _difference_of_confidences,
    ),
    "atc-mc": Estimator(
        "average thresholded confidence (Garg et al. 2022): share of rows above the confidence "
        "below which there are as many source rows as the source has errors",
        lambda sums, _: sums.mean("above_msp"),
    ),
    "atc-ne": Estimator(
        "the same by negative entropy",
        lambda sums, _: sums.mean("above_entropy"),
    ),
    "gdscore": Estimator(
        "norm (p = 0.3) of the mean last-layer gradient of the cross entropy with pseudo-labels, "
        "random ones below a confidence of 0.5 (Xie et al. 2025); ranks groups, low is accurate",
        _gradient_norm,
        is_accuracy=False,
        is_high_if_accurate=False,
    ),
    "nuclear": Estimator(
        "nuclear norm of the matrix of probabilities over its upper bound (Deng et al. 2023); "
        "ranks groups",
        _nuclear_norm,
        is_accuracy=False,
    ),
    "mano": Estimator(
        "norm (p = 4) of the matrix of normalised logits: softmax, or a Taylor expansion of it if "
        "the mean of -log p is at most 5 (Xie et al. 2024); ranks groups",
        _mano,
        is_accuracy=False,
    ),
}
"""Every estimator by name."""

QUALITY: dict[str, str] = {
    "mae": "mean |estimate - accuracy| over the groups, in percentage points",
    "r2": "squared correlation of estimate and accuracy over the groups",
    "spearman": (
        "rank correlation of estimate and accuracy over the groups, 1 if they agree on the order, "
        "the sign of gdscore reversed"
    ),
}


def quality_of(name: str, estimates: Values, accuracies: Values) -> dict[str, float]:
    """How well an estimator does over groups whose accuracy is known; see `QUALITY`.

    Groups with a NaN are left out. Correlations are NaN for less than three groups, or if either
    side is constant.
    """
    kept = np.isfinite(estimates) & np.isfinite(accuracies)
    kind, x, y = ESTIMATORS[name], estimates[kept], accuracies[kept]
    sign = 1 if kind.is_high_if_accurate else -1
    has_error = kind.is_accuracy and len(x) > 0
    return {
        "n_groups": len(x),
        "mae": 100 * float(np.abs(x - y).mean()) if has_error else math.nan,
        "r2": _correlation(x, y) ** 2,
        "spearman": sign * _correlation(rankdata(x), rankdata(y)),
    }


def _correlation(x: NDArray[Any], y: NDArray[Any]) -> float:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def estimates_of(sums: Sums, source: Source, names: tuple[str, ...]) -> Mapping[str, float]:
    """The estimates of a group by name."""
    return {name: ESTIMATORS[name].estimate(sums, source) for name in names}
