"""Accuracy and calibration from sums that can be added: over batches, shards and groups.

`sums` reduces predictions to a few numbers; ``+`` merges them; the metrics are functions of the
merged sums. So any split of the rows gives the same result (up to rounding in float64), and a
table over (corruption, severity) needs one pass. What each metric is: `stages.metrics.definitions`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

N_BINS = 10
"""Bins of the paper's calibration errors (section 5)."""

LOG_LIKELIHOOD_FLOOR = 1e-12
"""Added to a probability before its logarithm in `log_likelihood`."""

NLL_FLOOR = float(np.finfo(np.float64).eps)
"""Smallest probability that `nll` takes a logarithm of, as scikit-learn's ``log_loss`` does."""


@dataclass(frozen=True, slots=True)
class CalibrationSums:
    """What accuracy and calibration are computed from; ``a + b`` are the sums of both row sets.

    Attributes:
        n_classes: classes of the predictions.
        n_rows: rows that were counted.
        n_failed: rows left out because their prediction is not finite.
        n_unlabelled: rows left out because their label is unknown (-1).
        n_correct: rows whose most probable class (the first of equals) is the label.
        bin_counts, bin_correct: rows, and correct rows, by confidence bin ``(lo, hi]``.
        bin_confidence: sum of the confidences by bin.
        squared_error: sum over rows and classes of ``(p - onehot)²``.
        log_loss: sum of ``-log(max(p_label, 2.2e-16))``.
        log_likelihood: sum of ``log(p_label + 1e-12)``.
    """

    n_classes: int
    n_rows: int
    n_failed: int
    n_unlabelled: int
    n_correct: int
    bin_counts: tuple[int, ...]
    bin_correct: tuple[int, ...]
    bin_confidence: tuple[float, ...]
    squared_error: float
    log_loss: float
    log_likelihood: float

    def __post_init__(self) -> None:
        lengths = {len(self.bin_counts), len(self.bin_correct), len(self.bin_confidence)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"calibration sums: expected bins of one length, found {lengths}")

    @property
    def n_bins(self) -> int:
        """How many confidence bins there are."""
        return len(self.bin_counts)

    def __add__(self, other: CalibrationSums) -> CalibrationSums:
        if (self.n_classes, self.n_bins) != (other.n_classes, other.n_bins):
            raise ValueError(
                f"calibration sums: cannot add {other.n_classes} classes in {other.n_bins} bins "
                f"to {self.n_classes} classes in {self.n_bins} bins"
            )
        return CalibrationSums(
            n_classes=self.n_classes,
            n_rows=self.n_rows + other.n_rows,
            n_failed=self.n_failed + other.n_failed,
            n_unlabelled=self.n_unlabelled + other.n_unlabelled,
            n_correct=self.n_correct + other.n_correct,
            bin_counts=tuple(map(add, self.bin_counts, other.bin_counts)),
            bin_correct=tuple(map(add, self.bin_correct, other.bin_correct)),
            bin_confidence=tuple(map(add, self.bin_confidence, other.bin_confidence)),
            squared_error=self.squared_error + other.squared_error,
            log_loss=self.log_loss + other.log_loss,
            log_likelihood=self.log_likelihood + other.log_likelihood,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON and Parquet."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CalibrationSums:
        """The sums that `to_dict` gave."""
        values: dict[str, Any] = {
            name: tuple(value) if name.startswith("bin_") else value
            for name, value in plain.items()
        }
        return cls(**values)


def sums(probabilities: ArrayLike, labels: ArrayLike, *, n_bins: int = N_BINS) -> CalibrationSums:
    """Reduce predictions to what the metrics need, in float64.

    Args:
        probabilities: shape ``(n, N)``, rows that sum to one. Rows that are not finite are left
            out and counted in ``n_failed``.
        labels: shape ``(n,)``, integers in ``[0, N)``; -1 is unknown: left out and counted.
        n_bins: confidence bins of equal width over (0, 1].

    Raises:
        ValueError: shapes that do not fit, labels that are no integers or out of range.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(labels)
    _check(p, y, n_bins)
    is_finite = np.isfinite(p).all(axis=1)
    is_counted = is_finite & (y >= 0)
    p, y, n_unlabelled = p[is_counted], y[is_counted], int((is_finite & (y < 0)).sum())
    confidence = p.max(axis=1)
    is_correct = p.argmax(axis=1) == y
    p_label = p[np.arange(len(y)), y]
    bins = confidence_bins(confidence, n_bins)
    counts = np.bincount(bins, minlength=n_bins)
    errors = p.copy()
    errors[np.arange(len(y)), y] -= 1.0
    return CalibrationSums(
        n_classes=p.shape[1],
        n_rows=len(y),
        n_failed=int((~is_finite).sum()),
        n_unlabelled=n_unlabelled,
        n_correct=int(is_correct.sum()),
        bin_counts=tuple(counts.tolist()),
        bin_correct=tuple(np.bincount(bins[is_correct], minlength=n_bins).tolist()),
        bin_confidence=tuple(np.bincount(bins, confidence, minlength=n_bins).tolist()),
        squared_error=float(np.square(errors).sum()),
        log_loss=float(-np.log(np.maximum(p_label, NLL_FLOOR)).sum()),
        log_likelihood=float(np.log(p_label + LOG_LIKELIHOOD_FLOOR).sum()),
    )


def sums_by_group(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[Hashable] | NDArray[Any],  # Any: strings or numbers
    *,
    n_bins: int = N_BINS,
) -> dict[Hashable, CalibrationSums]:
    """`sums` of each group of rows, in the order in which the groups first appear.

    Args:
        probabilities: shape ``(n, N)``.
        labels: shape ``(n,)``.
        groups: a key for each row: strings, numbers or tuples of them.
        n_bins: confidence bins.
    """
    p, y = np.asarray(probabilities), np.asarray(labels)
    keys = groups.tolist() if isinstance(groups, np.ndarray) else groups
    if not len(keys) == len(p) == len(y):
        raise ValueError(
            f"groups: expected one for each row of {len(p)} probabilities and {len(y)} labels, "
            f"found {len(keys)}"
        )
    codes: dict[Hashable, int] = {}
    code_of_row = np.fromiter((codes.setdefault(key, len(codes)) for key in keys), np.int64)
    order = np.argsort(code_of_row, kind="stable")
    ends = np.cumsum(np.bincount(code_of_row, minlength=len(codes)))
    rows_of = np.split(order, ends[:-1]) if codes else []
    return {
        key: sums(p[rows], y[rows], n_bins=n_bins) for key, rows in zip(codes, rows_of, strict=True)
    }


def merged(parts: Iterable[CalibrationSums]) -> CalibrationSums:
    """The sums over all parts; at least one."""
    return reduce(add, parts)


def confidence_bins(confidence: NDArray[np.float64], n_bins: int) -> NDArray[np.int64]:
    """Bin ``(lo, hi]`` of each confidence: 0 falls in the first bin, 1 (and above) in the last.

    The edges are ``k / n_bins``, each rounded once, and are compared, not multiplied: so 0.3 lies
    in (0.2, 0.3], as it is written.
    """
    edges = np.arange(1, n_bins) / n_bins
    return np.searchsorted(edges, confidence, side="left")


def accuracy(total: CalibrationSums) -> float:
    """Share of the rows whose most probable class is the label."""
    return _ratio(total.n_correct, total.n_rows)


def ece(total: CalibrationSums) -> float:
    """Expected calibration error against the mean confidence of each bin.

    ``Σ_b (n_b / n) |accuracy_b - confidence_b|`` (Guo et al. 2017).
    """
    correct, confidence = np.array(total.bin_correct), np.array(total.bin_confidence)
    return _ratio(float(np.abs(correct - confidence).sum()), total.n_rows)


def ece_midpoint(total: CalibrationSums) -> float:
    """Expected calibration error against the middle of each bin, as the paper's section 5 words it.

    It has a floor for a good, confident network: a bin's middle is never 1.
    """
    counts, correct = np.array(total.bin_counts), np.array(total.bin_correct)
    middles = (np.arange(total.n_bins) + 0.5) / total.n_bins
    return _ratio(float(np.abs(correct - counts * middles).sum()), total.n_rows)


def mce(total: CalibrationSums) -> float:
    """Largest calibration error of a bin; empty bins contribute nothing.

    A bin of one row can decide it: read it beside ``bin_counts``.
    """
    if total.n_rows == 0:
        return float("nan")
    counts = np.maximum(np.array(total.bin_counts), 1)
    gaps = np.abs(np.array(total.bin_correct) - np.array(total.bin_confidence))
    return float((gaps / counts).max())


def brier(total: CalibrationSums) -> float:
    """Brier score as the mean over rows and classes, the reading that fits the paper's Table 5."""
    return _ratio(total.squared_error, total.n_rows * total.n_classes)


def brier_sum(total: CalibrationSums) -> float:
    """Brier score as the mean over rows of the sum over classes (Brier 1950)."""
    return _ratio(total.squared_error, total.n_rows)


def nll(total: CalibrationSums) -> float:
    """Negative log-likelihood in nats, the mean of ``-log p_label``."""
    return _ratio(total.log_loss, total.n_rows)


def log_likelihood(total: CalibrationSums) -> float:
    """Mean of ``log(p_label + 1e-12)``, in nats."""
    return _ratio(total.log_likelihood, total.n_rows)


METRICS: dict[str, Callable[[CalibrationSums], float]] = {
    "accuracy": accuracy,
    "ece": ece,
    "ece_midpoint": ece_midpoint,
    "mce": mce,
    "brier": brier,
    "brier_sum": brier_sum,
    "nll": nll,
    "log_likelihood": log_likelihood,
}
"""Every metric by the name that results, commands and `stages.metrics.definitions` use."""


def summary(total: CalibrationSums) -> dict[str, float]:
    """All metrics by name; NaN for each where no row was counted."""
    return {name: metric(total) for name, metric in METRICS.items()}


def _ratio(numerator: float, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")


def _check(p: NDArray[np.float64], y: NDArray[Any], n_bins: int) -> None:  # Any: caller's dtype
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
