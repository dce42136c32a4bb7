"""Scores of training rows by f's error on them, from stored features and logits.

Higher is harder: rows with large errors, or near a decision boundary or beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.reflection.losses import softmax

Rows = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Values = NDArray[np.float64]


def el2n(features: Rows, logits: Rows, labels: Labels) -> Values:
    """``‖p - onehot(y)‖₂`` (Paul, Ganguli & Dziugaite, "Deep learning on a data diet", 2021)."""
    del features
    delta = softmax(logits.astype(np.float64)).astype(np.float64)
    delta[np.arange(len(labels)), labels] -= 1
    lengths: Values = np.linalg.norm(delta, axis=1)
    return lengths


def grand(features: Rows, logits: Rows, labels: Labels) -> Values:
    """``‖δ‖₂ ‖(f, 1)‖₂``, the length of the cross entropy's gradient at the last layer.

    GraNd (Paul et al. 2021) for the last layer alone, at one state of the network.
    """
    lengths: Values = np.sqrt((features.astype(np.float64) ** 2).sum(axis=1) + 1)
    return el2n(features, logits, labels) * lengths


def margin(features: Rows, logits: Rows, labels: Labels) -> Values:
    """Probability of the likeliest other class less that of the label; -1 if there is one class."""
    del features
    return excess(softmax(logits.astype(np.float64)), labels)


def excess(p: Rows, labels: Labels) -> Values:
    """``max_{k≠y} p_k - p_y`` of probabilities ``[n, N]``; -1 if there is one class."""
    others = p.astype(np.float64)
    at = np.arange(len(labels)), labels
    own = others[at]
    others[at] = -np.inf if p.shape[1] > 1 else 0.0
    found: Values = others.max(axis=1) - own
    return found


TrainingValue = Callable[[Rows, Rows, Labels], Values]
"""Scores rows ``[n]`` by features ``[n, d]``, logits ``[n, N]`` and labels ``[n]``."""


class Kind(NamedTuple):
    """A score and its definition."""

    score: TrainingValue
    definition: str


TRAINING_VALUES: Mapping[str, Kind] = {
    "el2n": Kind(el2n, "length of δ = p - onehot(label), the error of f's probabilities"),
    "grand": Kind(grand, "length of the cross entropy's gradient at the last layer"),
    "margin": Kind(margin, "probability of the likeliest other class less that of the label"),
}
