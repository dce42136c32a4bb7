"""The scores of a curation by name: what each is, and which of its ends comes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.reflection.losses import softmax

Rows = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """A score by which rows are ranked; ``needs_labels`` unless it is defined for all rows."""

    definition: str
    is_lowest_first: bool = True
    needs_labels: bool = True


RANKINGS: dict[str, Ranking] = {
    "self_confidence": Ranking("out-of-sample probability of the label; lowest first"),
    "normalized_margin": Ranking(
        "out-of-sample probability of the label, less that of the likeliest other class, scaled "
        "to [0, 1]; lowest first"
    ),
    "confidence_weighted_entropy": Ranking(
        "log(1 + x) / x with x the normalised entropy over the self-confidence (Kuan and Mueller "
        "2022); lowest first"
    ),
    "margin": Ranking(
        "probability that f gives to the label, less that of the likeliest other class; lowest "
        "first"
    ),
    "el2n": Ranking(
        "length of δ = p - onehot(label), the error of f's probabilities (Paul et al. 2021); "
        "highest first",
        is_lowest_first=False,
    ),
    "grand": Ranking(
        "length of the cross entropy's gradient at the last layer, that of δ times that of [f, 1] "
        "(GraNd, Paul et al. 2021); highest first",
        is_lowest_first=False,
    ),
    "similarity": Ranking(
        "cosine to the nearest row; highest first", is_lowest_first=False, needs_labels=False
    ),
}


def error_lengths(p: Rows, labels: Labels) -> Values:
    """EL2N, ``‖p - onehot(y)‖₂``, shape ``(n,)``."""
    delta = p.astype(np.float64)
    delta[np.arange(len(labels)), labels] -= 1
    lengths: Values = np.linalg.norm(delta, axis=1)
    return lengths


def last_layer_scores(features: Rows, logits: Rows, labels: Labels) -> dict[str, Values]:
    """``margin``, ``el2n`` and ``grand`` of labelled rows, from f's own logits.

    The gradient of the cross entropy to ``[W, b]`` is ``δ ⊗ [f, 1]``, of length ``‖δ‖ ‖[f, 1]‖``.
    """
    from stages.curation.confident_learning import margin

    p = softmax(logits.astype(np.float64))
    el2n = error_lengths(p, labels)
    lengths = np.sqrt((features.astype(np.float64) ** 2).sum(axis=1) + 1)
    return {"margin": margin(p, labels), "el2n": el2n, "grand": el2n * lengths}
