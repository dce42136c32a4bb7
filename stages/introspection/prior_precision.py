"""The precision of the prior of a Laplace approximation: its evidence, and the best value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from stages.introspection.laplace import Posterior, Values, probit_logits

PRIORS = (1e-6, 1e6)
"""Range in which the prior precision is searched."""

_PER_DECADE = 2
_ROWS = 1024


def log_marginal_likelihood(
    eigenvalues: Values, squared_norm: float, log_likelihood: float, prior: float
) -> float:
    """Laplace's approximation of the log evidence (MacKay 1992).

    ``log p(y | W) - λ/2 ‖W, b‖² - 1/2 Σ_j log((e_j + λ) / λ)``, which differs from the log evidence
    by nothing that depends on λ.

    Args:
        eigenvalues: eigenvalues ``e_j`` of the curvature.
        squared_norm: ``‖W‖² + ‖b‖²`` of the trained layer.
        log_likelihood: sum over the training rows.
        prior: ``λ``.
    """
    volume = float(np.log1p(eigenvalues / prior).sum())
    return log_likelihood - 0.5 * (prior * squared_norm + volume)


def best_prior(loss: Callable[[float], float]) -> float:
    """The prior precision within `PRIORS` with the smallest loss.

    A grid of two per decade, then a search between the neighbours of the best one.
    """
    low, high = (math.log10(each) for each in PRIORS)
    grid = np.linspace(low, high, round(high - low) * _PER_DECADE + 1)
    best = int(np.argmin([loss(10**each) for each in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(
        lambda each: loss(10**each), bounds=ends, method="bounded", options={"xatol": 1e-3}
    )
    return float(10**found.x)


def probit_nll(
    posterior: Posterior,
    features: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
) -> float:
    """Mean negative log-likelihood of labels under the probit approximation, in nats."""
    total = 0.0
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        z = probit_logits(logits[rows].astype(np.float64), posterior.variances(features[rows]))
        total -= log_likelihood_of(z, labels[rows])
    return total / len(labels)


def log_likelihood_of(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Sum of ``log softmax(z)_label``, in float64."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    of_label = z[np.arange(len(z)), labels]
    return float((of_label - np.log(np.exp(z).sum(axis=1))).sum())
