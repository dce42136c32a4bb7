"""Scores of predictions: functions of the input and the output of a network's last layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from stages.errors import InputError
from stages.ood.detectors import DETECTORS, Rows, Score
from stages.reflection.losses import softmax


def confidence(features: Rows, logits: Rows) -> NDArray[np.float64]:
    """The largest probability."""
    del features
    scores: NDArray[np.float64] = _probabilities(logits).max(axis=1)
    return scores


def entropy(features: Rows, logits: Rows) -> NDArray[np.float64]:
    """``-Σ p log p``, in nats."""
    del features
    scores: NDArray[np.float64] = entr(_probabilities(logits)).sum(axis=1)
    return scores


def margin(features: Rows, logits: Rows) -> NDArray[np.float64]:
    """The difference between the two largest probabilities."""
    del features
    second, first = np.partition(_probabilities(logits), -2, axis=1)[:, -2:].T
    gap: NDArray[np.float64] = first - second
    return gap


SCORES: dict[str, Score] = {"confidence": confidence, "entropy": entropy, "margin": margin} | {
    name: each.score
    for name, each in DETECTORS.items()
    if each.score is not None and not each.is_perturbed
}
"""Scores by name; those of `DETECTORS` that need neither training rows nor other images."""


def checked_scores(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names without repetitions, the confidence first; raises ``InputError`` if unknown."""
    if unknown := [name for name in names if name not in SCORES]:
        raise InputError(f"unknown score '{unknown[0]}': choose from {', '.join(SCORES)}")
    return tuple(dict.fromkeys(("confidence", *names)))


def _probabilities(logits: Rows) -> NDArray[np.float64]:
    return softmax(logits.astype(np.float64)).astype(np.float64, copy=False)
