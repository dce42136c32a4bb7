"""Detectors of out-of-distribution images, computed from the two stored factors of each image.

A detector scores a row by the input and output of a network's last linear layer; the score is high
for rows that resemble the training images. For f these are the stored features and logits, for H
its last hidden layer and its own logits, so every detector works for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.introspection.reading import usable_rows
from stages.reflection.losses import softmax

if TYPE_CHECKING:
    import torch

Rows = NDArray[np.floating[Any]]
Score = Callable[[Rows, Rows], NDArray[np.float64]]
"""Maps features ``[n, d]`` and logits ``[n, N]`` to scores ``[n]``."""

Fit = Callable[[Rows, Rows, NDArray[np.integer[Any]]], Score]
"""Fits a score to features, logits and labels of training rows."""

NEIGHBOUR = 50
"""The neighbour whose distance is the score: 50 on CIFAR-10 (Sun et al. 2022)."""

MAX_WIDTH = 8192
"""Maximum number of features for a covariance matrix: it takes half a gigabyte."""

_QUERY_ROWS = 1024
_TRAINING_ROWS = 4096


def max_softmax(features: Rows, logits: Rows, temperature: float = 1.0) -> NDArray[np.float64]:
    """The logarithm of the largest softmax probability of ``z / T``.

    It orders rows as the probability does, except where the probability rounds to 1: there
    ``-log1p`` of the sum of the other classes still distinguishes them.
    """
    del features
    z = logits.astype(np.float64) / temperature
    others = z - z.max(axis=1, keepdims=True)
    others[np.arange(len(z)), z.argmax(axis=1)] = -np.inf
    scores: NDArray[np.float64] = -np.log1p(np.exp(others).sum(axis=1))
    return scores


def energy(features: Rows, logits: Rows) -> NDArray[np.float64]:
    """``log Σ exp z``, the negative free energy at temperature 1."""
    scores: NDArray[np.float64] = logits.max(axis=1) - max_softmax(features, logits)
    return scores


def max_logit(features: Rows, logits: Rows) -> NDArray[np.float64]:
    """The largest logit."""
    del features
    scores: NDArray[np.float64] = logits.max(axis=1).astype(np.float64)
    return scores


def gradnorm(features: Rows, logits: Rows) -> NDArray[np.float64]:
    """L1 norm of the last layer's gradient of ``KL(uniform, softmax z)``.

    The gradient is ``(p - 1/N) ⊗ f``, so its L1 norm is the product of those of its factors.
    """
    p = softmax(logits.astype(np.float64))
    of_delta = np.abs(p - 1 / p.shape[1]).sum(axis=1)
    scores: NDArray[np.float64] = of_delta * np.abs(features.astype(np.float64)).sum(axis=1)
    return scores


def fit_mahalanobis(features: Rows, logits: Rows, labels: NDArray[np.integer[Any]]) -> Score:
    """Minus the squared Mahalanobis distance to the nearest class mean, one covariance for all.

    Raises:
        InputError: no labelled row, or features too wide for a covariance.
    """
    if features.shape[1] > MAX_WIDTH:
        raise InputError(
            f"mahalanobis: expected at most {MAX_WIDTH:,} features, whose covariance fits into "
            f"memory, found {features.shape[1]:,}: omit it for this head"
        )
    kept = usable_rows(labels, features, logits)
    if not kept.any():
        raise InputError(
            f"mahalanobis: expected labelled rows without NaN, found none among {len(labels)}"
        )
    rows, own = features[kept].astype(np.float64), labels[kept]
    classes = np.unique(own)
    means = np.stack([rows[own == label].mean(axis=0) for label in classes])
    centred = rows - means[np.searchsorted(classes, own)]
    # Features that never vary make the covariance singular; the pseudo-inverse ignores them.
    precision = np.linalg.pinv(centred.T @ centred / len(rows), hermitian=True)
    return partial(_nearest_mean, means, precision)


def _nearest_mean(
    means: NDArray[np.float64], precision: NDArray[np.float64], features: Rows, logits: Rows
) -> NDArray[np.float64]:
    del logits
    f = features.astype(np.float64)
    distances = [np.einsum("nd,nd->n", (f - mean) @ precision, f - mean) for mean in means]
    scores: NDArray[np.float64] = -np.min(distances, axis=0)
    return scores


def fit_neighbours(
    features: Rows, logits: Rows, labels: NDArray[np.integer[Any]], *, k: int = NEIGHBOUR
) -> Score:
    """Minus the distance to the ``k``-th nearest training row, all features of length 1.

    Raises:
        InputError: fewer than ``k`` rows without NaN.
    """
    kept = usable_rows(np.zeros_like(labels), features, logits)
    if kept.sum() < k:
        raise InputError(f"knn: expected at least {k} training rows, found {kept.sum()}")
    return partial(_neighbour_distance, _unit(features[kept]), k)


def _neighbour_distance(
    training: torch.Tensor, k: int, features: Rows, logits: Rows
) -> NDArray[np.float64]:
    """``‖q - t‖² = 2 - 2 <q, t>`` for rows of length 1, computed in blocks of both sides."""
    import torch

    del logits
    queries, found = _unit(features), []
    for start in range(0, len(queries), _QUERY_ROWS):
        block, nearest = queries[start : start + _QUERY_ROWS], []
        for first in range(0, len(training), _TRAINING_ROWS):
            products = block @ training[first : first + _TRAINING_ROWS].T
            nearest.append(products.topk(min(k, products.shape[1])).values)
        product = torch.cat(nearest, dim=1).topk(k).values[:, -1]
        found.append((2 - 2 * product).clamp(min=0).sqrt())
    return -torch.cat(found).numpy()


def _unit(rows: Rows) -> torch.Tensor:
    """Rows divided by their lengths; a row of zeros stays zero."""
    import torch

    return torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float64)))


@dataclass(frozen=True)
class Detector:
    """A way to score rows.

    Attributes:
        definition: one line.
        score: score of a detector that needs no training rows.
        fit: fitting function of a detector that needs them.
        is_perturbed: whether it reads the features of perturbed images.
        temperature: divisor of f's logits; H's are not divided (section C.9 of the paper).
    """

    definition: str
    score: Score | None = None
    fit: Fit | None = None
    is_perturbed: bool = False
    temperature: float = 1.0


DETECTORS: dict[str, Detector] = {
    "msp": Detector(
        "largest softmax probability (Hendrycks and Gimpel 2017), compared by its logarithm",
        max_softmax,
    ),
    "odin": Detector(
        "largest softmax probability of z / T on images moved against the gradient of its loss "
        "(Liang et al. 2018); the images are moved by f alone, and H is read at T = 1",
        max_softmax,
        is_perturbed=True,
        temperature=1000.0,
    ),
    "energy": Detector("log of the sum of exp z (Liu et al. 2020)", energy),
    "max-logit": Detector("largest logit (Hendrycks et al. 2022)", max_logit),
    "gradnorm": Detector(
        "L1 norm of the last layer's gradient of KL(uniform, softmax) (Huang et al. 2021): that of "
        "f times that of p - 1/N",
        gradnorm,
    ),
    "mahalanobis": Detector(
        "minus the squared Mahalanobis distance to the nearest class mean, one covariance from the "
        "training rows' last features (Lee et al. 2018, without its other layers)",
        fit=fit_mahalanobis,
    ),
    "knn": Detector(
        f"minus the distance to the {NEIGHBOUR}th nearest training row, features scaled to length "
        "1 (Sun et al. 2022)",
        fit=fit_neighbours,
    ),
}
