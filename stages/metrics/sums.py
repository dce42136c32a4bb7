"""Predictions held against labels, as sums that can be added: over batches, shards and groups.

`judge` says what each row adds to the sums, and ``+`` merges them. So any split of the rows gives
the same result (up to rounding in float64), a table over (corruption, severity) needs one pass,
and a resample is a weighted sum of the same columns. What the sums are for:
`stages.metrics.calibration`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.adaptive import N_FINE_BINS, fine_bins

N_BINS = 10
"""Bins of the paper's calibration errors (section 5)."""

LOG_LIKELIHOOD_FLOOR = 1e-12
"""Added to a probability before its logarithm in `log_likelihood`."""

NLL_FLOOR = float(np.finfo(np.float64).eps)
"""Smallest probability that `nll` takes a logarithm of, as scikit-learn's ``log_loss`` does."""

SCORES = ("squared_error", "log_loss", "log_likelihood", "entropy", "failed", "unlabelled")
"""The columns behind those of the bins: sums over rows of

- ``sum_k (p_k - onehot_k)²``, ``-log(max(p_label, 2.2e-16))``, ``log(p_label + 1e-12)`` and
  ``-sum_k p_k log p_k``;
- 1 for a row left out because its prediction is not finite, or else because its label is unknown.
"""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSums:
    """What accuracy and calibration are computed from; ``a + b`` are the sums of both row sets.

    Attributes:
        n_classes: classes of the predictions.
        columns: shape ``(..., 3 * n_bins + 6)``: rows, correct rows and summed confidence by bin
            ``(lo, hi]`` of the confidence, then ``SCORES``. Axes before the last are resamples.
        fine: rows, correct rows and summed confidence by fine bin, shape ``(3, N_FINE_BINS)``;
            ``None`` for resamples.
    """

    n_classes: int
    columns: Values
    fine: Values | None = None

    @property
    def n_bins(self) -> int:
        """How many confidence bins there are."""
        return _n_bins(self.columns)

    @property
    def n_rows(self) -> Values:
        """Rows that were counted: a whole number, but for resamples of weighted rows."""
        return scalar(self.bin_counts.sum(axis=-1))

    @property
    def bin_counts(self) -> Values:
        """Rows by bin."""
        return self.columns[..., : self.n_bins]

    @property
    def bin_correct(self) -> Values:
        """Rows by bin whose most probable class (the first of equals) is the label."""
        return self.columns[..., self.n_bins : 2 * self.n_bins]

    @property
    def bin_confidence(self) -> Values:
        """Sum of the confidences by bin."""
        return self.columns[..., 2 * self.n_bins : 3 * self.n_bins]

    @property
    def n_failed(self) -> int:
        """Rows left out because their prediction is not finite."""
        return int(self.score("failed"))

    @property
    def n_unlabelled(self) -> int:
        """Rows left out because their label is unknown (-1)."""
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
    """What each row adds to the sums; a row that is left out adds to their count alone.

    Attributes:
        n_classes: classes of the predictions.
        columns: those of ``CalibrationSums`` for each row, shape ``(n, 3 * n_bins + 6)``.
        fine_bins: fine bin of each row's confidence, shape ``(n,)``.
    """

    n_classes: int
    columns: Values
    fine_bins: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> JudgedRows:
        """Some of the rows."""
        return JudgedRows(self.n_classes, self.columns[rows], self.fine_bins[rows])

    def sums(self) -> CalibrationSums:
        """The sums over the rows."""
        n_bins = _n_bins(self.columns)
        by_row = self.columns[:, : 3 * n_bins].reshape(-1, 3, n_bins).sum(axis=2)
        fine = np.stack(
            [np.bincount(self.fine_bins, each, minlength=N_FINE_BINS) for each in by_row.T]
        ).astype(np.float64, copy=False)
        return CalibrationSums(self.n_classes, self.columns.sum(axis=0), fine)


def judge(probabilities: ArrayLike, labels: ArrayLike, *, n_bins: int = N_BINS) -> JudgedRows:
    """Hold predictions against labels, row by row, in float64.

    Args:
        probabilities: shape ``(n, N)``, rows that sum to one. Rows that are not finite are left
            out and counted as ``n_failed``.
        labels: shape ``(n,)``, integers in ``[0, N)``; -1 is unknown: left out and counted.
        n_bins: confidence bins of equal width over (0, 1].

    Raises:
        ValueError: shapes that do not fit, labels that are no integers or out of range.
    """
    p, y = _checked(probabilities, labels, n_bins)
    is_finite = np.isfinite(p).all(axis=1)
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
    """The first four of ``SCORES`` of rows that count, shape ``(n, 4)``."""
    label = (np.arange(len(y)), y)
    p_label = p[label]
    errors = p.copy()
    errors[label] -= 1.0
    scores = [
        np.square(errors).sum(axis=1),
        -np.log(np.maximum(p_label, NLL_FLOOR)),
        np.log(p_label + LOG_LIKELIHOOD_FLOOR),
        -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1),
    ]
    return np.stack(scores, axis=1)


def sums(probabilities: ArrayLike, labels: ArrayLike, *, n_bins: int = N_BINS) -> CalibrationSums:
    """Reduce predictions to what the metrics need: `judge`'s sums, without its row by row."""
    p, y = _checked(probabilities, labels, n_bins)
    is_finite = np.isfinite(p).all(axis=1)
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
    """The sums over all parts; at least one."""
    return reduce(add, parts)


def confidence_bins(confidence: Values, n_bins: int) -> NDArray[np.int64]:
    """Bin ``(lo, hi]`` of each confidence: 0 falls in the first bin, 1 (and above) in the last.

    The edges are ``k / n_bins``, each rounded once, and are compared, not multiplied: so 0.3 lies
    in (0.2, 0.3], as it is written.
    """
    edges = np.arange(1, n_bins) / n_bins
    return np.searchsorted(edges, confidence, side="left")


def scalar(value: Values) -> Values:
    """A number where there is no axis of resamples, else the array."""
    number: Values = value[()]
    return number


def _n_bins(columns: Values) -> int:
    n_columns: int = columns.shape[-1]
    return (n_columns - len(SCORES)) // 3


def _checked(
    probabilities: ArrayLike, labels: ArrayLike, n_bins: int
) -> tuple[Values, NDArray[np.int64]]:
    """Both as arrays; raises ``ValueError`` as `judge` says."""
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
