"""The scores by name: what each is, what it needs, and which of its values are confident.

`Kind.certain` orients all scores alike: high for rows that are confident or in-distribution. OOD
detection and failure detection order rows by it; exported tables hold the plain values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.scores.confidences import (
    confidence,
    energy,
    entropy,
    exgrad,
    gradnorm,
    gradtrust,
    margin,
    max_logit,
    max_softmax,
)
from stages.scores.factors import Fit, Score
from stages.scores.mahalanobis import fit_mahalanobis
from stages.scores.nearest import NEIGHBOUR, fit_neighbours


@dataclass(frozen=True)
class Kind:
    """A kind of score; it has a ``score`` or is fitted.

    Attributes:
        definition: one line, with the source.
        score: score of a kind that needs no training rows.
        fit: fitting function of a kind that needs them.
        is_high_if_certain: whether high values are confident, or in-distribution.
        is_perturbed: whether it reads the features of perturbed images.
        temperature: divisor of f's logits; H's are not divided (section C.9 of the paper).
    """

    definition: str
    score: Score | None = None
    fit: Fit | None = None
    is_high_if_certain: bool = True
    is_perturbed: bool = False
    temperature: float = 1.0

    def certain(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values that are high for confident or in-distribution rows, from those of the score."""
        return values if self.is_high_if_certain else -values


SCORES: dict[str, Kind] = {
    "confidence": Kind("largest softmax probability", confidence),
    "msp": Kind(
        "largest softmax probability (Hendrycks and Gimpel 2017), compared by its logarithm",
        max_softmax,
    ),
    "odin": Kind(
        "largest softmax probability of z / T on images moved against the gradient of its loss "
        "(Liang et al. 2018); the images are moved by f alone, and H is read at T = 1",
        max_softmax,
        is_perturbed=True,
        temperature=1000.0,
    ),
    "energy": Kind("log of the sum of exp z (Liu et al. 2020)", energy),
    "max-logit": Kind("largest logit (Hendrycks et al. 2022)", max_logit),
    "gradnorm": Kind(
        "L1 norm of the last layer's gradient of KL(uniform, softmax) (Huang et al. 2021): that of "
        "f times that of p - 1/N",
        gradnorm,
    ),
    "margin": Kind("difference between the two largest probabilities", margin),
    "entropy": Kind(
        "entropy of the probabilities, in nats; low values are confident",
        entropy,
        is_high_if_certain=False,
    ),
    "exgrad": Kind(
        "L1 norm of the last layer's gradient of the cross entropy, expected over classes by their "
        "probabilities (Igoe et al. 2022); low values are confident",
        exgrad,
        is_high_if_certain=False,
    ),
    "gradtrust": Kind(
        "largest over mean of (z - 1/N)^4 (Prabhushankar and AlRegib 2024, as in their code)",
        gradtrust,
    ),
    "mahalanobis": Kind(
        "minus the squared Mahalanobis distance to the nearest class mean, one covariance from the "
        "training rows' last features (Lee et al. 2018, without its other layers)",
        fit=fit_mahalanobis,
    ),
    "knn": Kind(
        f"minus the distance to the {NEIGHBOUR}th nearest training row, features scaled to length "
        "1 (Sun et al. 2022)",
        fit=fit_neighbours,
    ),
}
"""Every score."""

DETECTORS: dict[str, Kind] = {name: kind for name, kind in SCORES.items() if name != "confidence"}
"""Those by which images are detected; `msp` orders rows as the confidence does, without ties."""

PLAIN: dict[str, Score] = {
    name: kind.score
    for name, kind in SCORES.items()
    if kind.score is not None and not kind.is_perturbed
}
"""Those that need neither training rows nor perturbed images: scores of any stored row."""


def plain_scores(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names without repetitions; raises ``InputError`` if one is not in `PLAIN`."""
    if unknown := [name for name in names if name not in PLAIN]:
        raise InputError(f"unknown score '{unknown[0]}': choose from {', '.join(PLAIN)}")
    return tuple(dict.fromkeys(names))
