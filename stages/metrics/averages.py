"""Compare predictors: means over seeds, gains over f, and intervals from paired resamples."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.metrics.bootstrap import interval
from stages.metrics.definitions import REFERENCE

"""Label of the sensing network itself, the reference for gains."""

Resampled = Mapping[str, NDArray[np.float64]]
"""Label -> metrics, averaged over seeds, in each resample: ``[n_metrics, n_resamples]``."""

_ByPredictor = dict[str, dict[str, float]]
"""Predictor -> metric -> number."""

_GAINS = ("gain", "gain_low", "gain_high")


def average_table(by_seed: pd.DataFrame, resampled: Resampled) -> pd.DataFrame:
    """One row per predictor and metric; see `stages.metrics.definitions.STATISTICS`.

    Args:
        by_seed: one row per predictor and seed (the index), and one column per metric.
        resampled: the metrics, in the order of these columns.
    """
    over_seeds = by_seed.groupby("predictor", sort=False)
    mean, std = _by_predictor(over_seeds.mean()), _by_predictor(over_seeds.std())
    n_seeds = over_seeds.size()
    rows = []
    for label in mean:
        for at, name in enumerate(by_seed.columns):
            value = mean[label][name]
            low, high = interval(value, resampled[label][at])
            row = {"predictor": label, "metric": name, "mean": value, "std": std[label][name]}
            row |= {"n_seeds": n_seeds[label], "low": low, "high": high}
            is_f = label == REFERENCE
            gain = (np.nan,) * 3 if is_f else _difference(mean, resampled, label, REFERENCE, at)
            rows.append(row | dict(zip(_GAINS, gain, strict=True)))
    return pd.DataFrame(rows)


def difference_table(by_seed: pd.DataFrame, resampled: Resampled) -> pd.DataFrame:
    """One row per pair of predictors and metric: ``predictor`` minus ``other``, paired."""
    mean = _by_predictor(by_seed.groupby("predictor", sort=False).mean())
    rows = [
        (label, other, name, *_difference(mean, resampled, label, other, at))
        for label, other in permutations(mean, 2)
        for at, name in enumerate(by_seed.columns)
    ]
    columns = ["predictor", "other", "metric", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _difference(
    mean: _ByPredictor, resampled: Resampled, label: str, other: str, at: int
) -> tuple[float, float, float]:
    """Difference of two predictors in the metric with index ``at``, and its interval."""
    name = list(mean[label])[at]
    value = mean[label][name] - mean[other][name]
    return value, *interval(value, resampled[label][at] - resampled[other][at])


def _by_predictor(frame: pd.DataFrame) -> _ByPredictor:
    found: Any = frame.to_dict(orient="index")  # Any: pandas cannot type the index as labels
    numbers: _ByPredictor = found
    return numbers
