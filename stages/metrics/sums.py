"""Additive sums from which accuracy and calibration are computed.

`judge` computes what each row adds to the sums, and ``+`` merges sums of batches, shards or groups.
So every split of the rows gives the same result (up to rounding in float64), a table over
(corruption, severity) needs one pass, and a resample is a weighted sum of the same columns. The
metrics are in `stages.metrics.calibration`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.adaptive import N_FINE_BINS, fine_bins
from stages.metrics.finite import finite_rows

N_BINS = 10
"""Number of bins of the paper's calibration errors (section 5)."""

LOG_LIKELIHOOD_FLOOR = 1e-12
"""Added to a probability before its logarithm in `log_likelihood`."""

NLL_FLOOR = float(np.finfo(np.float64).eps)
"""Smallest probability of which `nll` takes the logarithm, as scikit-learn's ``log_loss`` does."""

SCORES = ("squared_error", "log_loss", "log_likelihood", "entropy", "failed", "unlabelled")
"""Names of the columns after those of the bins, which are sums over rows of:

- ``sum_k (p_k - onehot_k)²``, ``-log(max(p_label, 2.2e-16))``, ``log(p_label + 1e-12)`` and
  ``-sum_k p_k log p_k``;
- 1 for a row excluded because its prediction is not finite, or else because its label is unknown.
"""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSums:
    """Sums of a set of rows; ``a + b`` are the sums of both sets.

    Attributes:
        n_classes: number of classes of the predictions.
        columns: shape ``(..., 3 * n_bins + 6)``: rows, correct rows and summed confidence by bin
            ``(lo, hi]`` of the confidence, then ``SCORES``. Leading axes are resamples.
        fine: rows, correct rows and summed confidence by fine bin, shape ``(3, N_FINE_BINS)``;
            ``None`` for resamples.
    """

    n_classes: int
    columns: Values
    fine: Values | None = None

    @property
    def n_bins(self) -> int:
        """Number of confidence bins."""
        return _n_bins(self.columns)

    @property
    def n_rows(self) -> Values:
        """Number of rows counted; a whole number unless rows are weighted."""
        return scalar(self.bin_counts.sum(axis=-1))

    @property
    def bin_counts(self) -> Values:
        """Number of rows in each bin."""
        return self.columns[..., : self.n_bins]

    @property
    def bin_correct(self) -> Values:
        """Number of correct rows in each bin: the most probable class (the first) is the label."""
        return self.columns[..., self.n_bins : 2 * self.n_bins]

    @property
    def bin_confidence(self) -> Values:
        """Sum of the confidences in each bin."""
        return self.columns[..., 2 * self.n_bins : 3 * self.n_bins]

    @property
    def n_failed(self) -> int:
        """Number of rows excluded because their prediction is not finite."""
        return int(self.score("failed"))

    @property
    def n_unlabelled(self) -> int:
        """Number of rows excluded because their label is unknown (-1)."""
        return int(self.score("unlabelled"))

    def score(self, name: str) -> Values:
        """The sum of one of ``SCORES``."""
        return self.columns[..., 3 * self.n_bins + SCORES.index(name)]

    def __add__(self, other: CalibrationSums) -> CalibrationSums:
        if (self.n_classes, self.n_bins) != (other.n_classes, other.n_bins):
            raise ValueError(
                f"calibration sums: cannot add {other.n_classes} classes in {other.n_bins} bins "
                f"to {self.n_classes} classes in {self.n_bins} bins"
            )
        fine = None if self.fine is None or other.fine is None else self.fine + other.fine
        return CalibrationSums(self.n_classes, self.columns + other.columns, fine)


@dataclass(frozen=True, slots=True, eq=False)
class JudgedRows:
    """What each row adds to the sums; an excluded row only adds to the number excluded.

    Attributes:
        n_classes: number of classes of the predictions.
        columns: columns of ``CalibrationSums`` for each row, shape ``(n, 3 * n_bins + 6)``.
        fine_bins: fine bin of each row's confidence, shape ``(n,)``.
    """

    n_classes: int
    columns: Values
    fine_bins: NDArray[np.int64]

    @property
    def is_counted(self) -> NDArray[np.bool_]:
        """Flags the rows that have a prediction and a label, shape ``(n,)``."""
        flags: NDArray[np.bool_] = self.columns[:, -2:].sum(axis=1) == 0
        return flags

    def take(self, rows: NDArray[np.int64]) -> JudgedRows:
        """Select rows."""
        return JudgedRows(self.n_classes, self.columns[rows], self.fine_bins[rows])

    def sums(self) -> CalibrationSums:
        """Sum over the rows."""
        n_bins = _n_bins(self.columns)
        by_row = self.columns[:, : 3 * n_bins].reshape(-1, 3, n_bins).sum(axis=2)
        fine = np.stack(
            [np.bincount(self.fine_bins, each, minlength=N_FINE_BINS) for each in by_row.T]
        ).astype(np.float64, copy=False)
        return CalibrationSums(self.n_classes, self.columns.sum(axis=0), fine)


def judge(probabilities: ArrayLike, labels: ArrayLike, *, n_bins: int = N_BINS) -> JudgedRows:
    """Compare predictions with labels row by row, in float64.

    Args:
        probabilities: shape ``(n, N)``, rows that sum to one. Rows that are not finite are
            excluded and counted as ``n_failed``.
        labels: shape ``(n,)``, integers in ``[0, N)``; rows with -1 (unknown) are excluded and
            counted as ``n_unlabelled``.
        n_bins: number of confidence bins of equal width over (0, 1].

    Raises:
        ValueError: shapes do not match, or labels are not integers or out of range.
    """
    p, y = _checked(probabilities, labels, n_bins)
    is_finite = finite_rows(p)
    rows = np.flatnonzero(is_finite & (y >= 0))
    columns = np.zeros((len(p), 3 * n_bins + len(SCORES)))
    columns[:, -2], columns[:, -1] = ~is_finite, is_finite & (y < 0)
    fine = np.zeros(len(p), np.int64)
    n_classes, p, y = p.shape[1], p[rows], y[rows]
    confidence = p.max(axis=1)
    bins = confidence_bins(confidence, n_bins)
    columns[rows, bins] = 1.0
    columns[rows, n_bins + bins] = p.argmax(axis=1) == y
    columns[rows, 2 * n_bins + bins] = confidence
    columns[rows, 3 * n_bins : -2] = _scores(p, y)
    fine[rows] = fine_bins(confidence)
    return JudgedRows(n_classes, columns, fine)


def _scores(p: Values, y: NDArray[np.int64]) -> Values:
    """The first four of ``SCORES`` for the rows that count, shape ``(n, 4)``."""
    return np.stack([score(p, y) for score in SCORE_OF.values()], axis=1)


def _of_label(p: Values, y: NDArray[np.int64]) -> Values:
    found: Values = p[np.arange(len(y)), y]
    return found


def _squared_error(p: Values, y: NDArray[np.int64]) -> Values:
    errors = p.copy()
    errors[np.arange(len(y)), y] -= 1.0
    found: Values = np.square(errors, out=errors).sum(axis=1)
    return found


def _log_loss(p: Values, y: NDArray[np.int64]) -> Values:
    return -np.log(np.maximum(_of_label(p, y), NLL_FLOOR))


def _log_likelihood(p: Values, y: NDArray[np.int64]) -> Values:
    found: Values = np.log(_of_label(p, y) + LOG_LIKELIHOOD_FLOOR)
    return found


def _entropy(p: Values, _: NDArray[np.int64]) -> Values:
    found: Values = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    return found


SCORE_OF = {
    "squared_error": _squared_error,
    "log_loss": _log_loss,
    "log_likelihood": _log_likelihood,
    "entropy": _entropy,
}
"""The first four of ``SCORES`` as functions of probabilities ``(n, N)`` and labels ``(n,)``.

A label of -1 gives a number without meaning.
"""


def sums(probabilities: ArrayLike, labels: ArrayLike, *, n_bins: int = N_BINS) -> CalibrationSums:
    """Sums over all rows: faster than summing the rows of `judge`."""
    p, y = _checked(probabilities, labels, n_bins)
    is_finite = finite_rows(p)
    counts = is_finite & (y >= 0)
    left_out = [np.sum(~is_finite), np.sum(is_finite & (y < 0))]
    if not counts.all():
        p, y = p[counts], y[counts]
    confidence = p.max(axis=1)
    of_row = (np.ones(len(p)), p.argmax(axis=1) == y, confidence)
    bins, fine = confidence_bins(confidence, n_bins), fine_bins(confidence)
    by_bin = [np.bincount(bins, each, minlength=n_bins) for each in of_row]
    by_fine_bin = [np.bincount(fine, each, minlength=N_FINE_BINS) for each in of_row]
    columns = np.concatenate([*by_bin, _scores(p, y).sum(axis=0), left_out])
    return CalibrationSums(p.shape[1], columns, np.stack(by_fine_bin))


def merged(parts: Iterable[CalibrationSums]) -> CalibrationSums:
    """Add up at least one part."""
    return reduce(add, parts)


def confidence_bins(confidence: Values, n_bins: int) -> NDArray[np.int64]:
    """Index of the bin ``(lo, hi]`` of each confidence; 0 is in the first bin, >= 1 in the last.

    The edges ``k / n_bins`` are rounded once and then compared, so 0.3 is in (0.2, 0.3].
    """
    edges = np.arange(1, n_bins) / n_bins
    return np.searchsorted(edges, confidence, side="left")


def scalar(value: Values) -> Values:
    """Convert a zero-dimensional array to a number; other arrays are returned unchanged."""
    number: Values = value[()]
    return number


def _n_bins(columns: Values) -> int:
    n_columns: int = columns.shape[-1]
    return (n_columns - len(SCORES)) // 3


def _checked(
    probabilities: ArrayLike, labels: ArrayLike, n_bins: int
) -> tuple[Values, NDArray[np.int64]]:
    """Convert both to arrays; raises ``ValueError`` as `judge` does."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or p.shape[1] < 1 or y.shape != p.shape[:1]:
        raise ValueError(
            f"expected probabilities [n, N] and labels [n], found {p.shape}, {y.shape}"
        )
    if y.size and not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels: expected integers, found {y.dtype}")
    if y.size and (y.min() < -1 or y.max() >= p.shape[1]):
        raise ValueError(
            f"labels: expected -1 (unknown) or a class below {p.shape[1]}, "
            f"found values from {y.min()} to {y.max()}"
        )
    if n_bins < 1:
        raise ValueError(f"n_bins: expected at least 1, found {n_bins}")
    return p, y
