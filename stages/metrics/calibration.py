"""Accuracy and calibration metrics as functions of sums; see `stages.metrics.definitions`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stages.metrics.adaptive import equal_mass_bins
from stages.metrics.sums import CalibrationSums, Values, scalar


def accuracy(total: CalibrationSums) -> Values:
    """Share of the rows whose most probable class is the label."""
    return _ratio(total.bin_correct.sum(axis=-1), total.n_rows)


def ece(total: CalibrationSums) -> Values:
    """Expected calibration error against the mean confidence of each bin.

    ``Σ_b (n_b / n) |accuracy_b - confidence_b|`` (Guo et al. 2017).
    """
    gaps = np.abs(total.bin_correct - total.bin_confidence)
    return _ratio(gaps.sum(axis=-1), total.n_rows)


def ece_midpoint(total: CalibrationSums) -> Values:
    """Expected calibration error against the middle of each bin, as in section 5 of the paper.

    Even a perfect network has a positive value, because a bin's middle is never 1.
    """
    middles = (np.arange(total.n_bins) + 0.5) / total.n_bins
    gaps = np.abs(total.bin_correct - total.bin_counts * middles)
    return _ratio(gaps.sum(axis=-1), total.n_rows)


def ece_adaptive(total: CalibrationSums) -> Values:
    """Expected calibration error over bins with equal numbers of rows (Nguyen & O'Connor 2015).

    It uses as many bins as `ece`, from `equal_mass_bins`, each against its mean confidence. NaN for
    resamples, which have no fine bins.
    """
    if total.fine is None:
        return np.full(total.columns.shape[:-1], np.nan)
    _, correct, confidence = equal_mass_bins(total.fine, total.n_bins)
    return _ratio(np.abs(correct - confidence).sum(), total.n_rows)


def mce(total: CalibrationSums) -> Values:
    """Largest calibration error of any bin; empty bins are ignored.

    A bin with a single row can determine it: compare ``bin_counts``.
    """
    gaps = np.abs(total.bin_correct - total.bin_confidence)
    # Weights are whole numbers, so a resampled bin holds no row or at least one.
    largest = (gaps / np.maximum(total.bin_counts, 1)).max(axis=-1)
    return scalar(np.where(total.n_rows > 0, largest, np.nan))


def brier(total: CalibrationSums) -> Values:
    """Brier score averaged over rows and classes, the definition that fits the paper's Table 5."""
    return _ratio(total.score("squared_error"), total.n_rows * total.n_classes)


def brier_sum(total: CalibrationSums) -> Values:
    """Brier score averaged over rows and summed over classes (Brier 1950)."""
    return _ratio(total.score("squared_error"), total.n_rows)


def nll(total: CalibrationSums) -> Values:
    """Negative log-likelihood in nats, the mean of ``-log p_label``."""
    return _ratio(total.score("log_loss"), total.n_rows)


def log_likelihood(total: CalibrationSums) -> Values:
    """Mean of ``log(p_label + 1e-12)``, in nats."""
    return _ratio(total.score("log_likelihood"), total.n_rows)


def entropy(total: CalibrationSums) -> Values:
    """Predictive entropy in nats, the mean of ``-Σ_k p_k log p_k`` with ``0 log 0 = 0``."""
    return _ratio(total.score("entropy"), total.n_rows)


METRICS: dict[str, Callable[[CalibrationSums], Values]] = {
    "accuracy": accuracy,
    "ece": ece,
    "ece_midpoint": ece_midpoint,
    "ece_adaptive": ece_adaptive,
    "mce": mce,
    "brier": brier,
    "brier_sum": brier_sum,
    "nll": nll,
    "log_likelihood": log_likelihood,
    "entropy": entropy,
}
"""Metrics by the name used in results, commands and `stages.metrics.definitions`.

Each returns one number, or one number per resample if the sums have an axis of resamples.
"""


NEEDS: dict[str, str] = {
    "brier": "squared_error",
    "brier_sum": "squared_error",
    "nll": "log_loss",
    "log_likelihood": "log_likelihood",
    "entropy": "entropy",
}
"""Metric -> the one of `stages.metrics.sums.SCORES` that it needs.

The others need prediction, confidence and label alone.
"""


def summary(total: CalibrationSums) -> dict[str, float]:
    """All metrics by name; NaN if no rows were counted."""
    return {name: float(metric(total)) for name, metric in METRICS.items()}


def _ratio(numerator: Values, denominator: Values) -> Values:
    """The quotient, or NaN where the denominator is 0."""
    empty = np.full(np.shape(numerator), np.nan)
    return scalar(np.divide(numerator, denominator, out=empty, where=denominator > 0))
