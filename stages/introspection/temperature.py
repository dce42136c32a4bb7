"""Temperature scaling (Guo et al., ICML 2017): a number by which logits are divided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from stages.errors import InputError
from stages.introspection.reading import usable_rows
from stages.reflection.losses import softmax

BOUNDS = (1e-3, 1e3)
"""Range in which the temperature is searched."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """A fitted temperature, and the mean negative log-likelihood without and with it."""

    value: float
    nll_before: float
    nll_after: float
    n_rows: int


def tempered(logits: NDArray[np.floating[Any]], temperature: float) -> NDArray[np.float64]:
    """``softmax(z / T)`` of logits ``(n, N)``; rows of NaN stay NaN."""
    return softmax(logits.astype(np.float64) / temperature).astype(np.float64, copy=False)


def fit(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], predictor: str = "f"
) -> Temperature:
    """The temperature that minimises the negative log-likelihood of the labels.

    Args:
        logits: shape ``(n, N)``; rows with a NaN are excluded.
        labels: shape ``(n,)``; rows with -1 are excluded.
        predictor: whose logits they are, for messages.

    Raises:
        InputError: no labelled row, or no minimum: the predictor is right on every row, or worse
            than chance.
    """
    kept = usable_rows(labels, logits)
    z, y = logits[kept].astype(np.float64), labels[kept]
    if not len(y):
        raise InputError(
            f"temperature: expected labelled rows without NaN, found none among {len(labels)}; "
            "use a split that has labels"
        )
    z -= z.max(axis=1, keepdims=True)
    of_label = z[np.arange(len(z)), y]

    def nll(log_temperature: float) -> float:
        scaled = z * math.exp(-log_temperature)
        normaliser = np.log(np.exp(scaled).sum(axis=1))
        return float(np.mean(normaliser - of_label * math.exp(-log_temperature)))

    low, high = math.log(BOUNDS[0]), math.log(BOUNDS[1])
    options = {"xatol": 1e-10}
    found = minimize_scalar(nll, bounds=(low, high), method="bounded", options=options)
    if min(found.x - low, high - found.x) < 1e-2:
        raise InputError(
            f"temperature: the likelihood of these {len(y)} rows has no maximum in {BOUNDS}: "
            f"{predictor} is right on every one of them, or worse than chance; use rows that it "
            "was not trained on"
        )
    return Temperature(math.exp(found.x), nll(0.0), float(found.fun), len(y))
