"""The scores by name: what each is, what it needs, and which of its values are confident.

`Kind.certain` orients all scores alike: high for rows that are confident or in-distribution. OOD
detection and failure detection order rows by it; exported tables hold the plain values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.scores.confidences import (
    confidence,
    energy,
    entropy,
    exgrad,
    gen,
    gradnorm,
    gradtrust,
    margin,
    max_logit,
    max_softmax,
)
from stages.scores.factors import Fit, Linear, OfLayer, Score, TrainingRows
from stages.scores.mahalanobis import fit_ddu, fit_mahalanobis, fit_rmds
from stages.scores.nearest import N_GUIDES, NEIGHBOUR, fit_neighbours, fit_nnguide
from stages.scores.patterns import fit_fdbd, fit_klm, fit_she
from stages.scores.shaping import (
    ASH_PERCENTILE,
    DICE_PERCENTILE,
    REACT_PERCENTILE,
    SCALE_PERCENTILE,
    ash_b,
    ash_p,
    ash_s,
    fit_dice,
    fit_react,
    scale,
)
from stages.scores.subspace import fit_residual, fit_vim


@dataclass(frozen=True)
class Kind:
    """A kind of score, by one of three functions.

    Attributes:
        definition: one line, with the source.
        score: scores rows by their factors alone.
        of_layer: makes a score from the weights of the last layer.
        fit: makes a score from training rows and the last layer.
        is_high_if_certain: whether high values are confident, or in-distribution.
        reads_logits: whether it depends on more than features and labels.
        fits_weights: whether ``fit`` reads the weights of the last layer.
        is_perturbed: whether it reads the features of perturbed images.
        temperature: divisor of f's logits; H's are not divided (section C.9 of the paper).
    """

    definition: str
    score: Score | None = None
    of_layer: OfLayer | None = None
    fit: Fit | None = None
    is_high_if_certain: bool = True
    reads_logits: bool = True
    fits_weights: bool = False
    is_perturbed: bool = False
    temperature: float = 1.0

    def certain(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values that are high for confident or in-distribution rows, from those of the score."""
        return values if self.is_high_if_certain else -values

    def fitted(
        self, training: Callable[[], TrainingRows], load_linear: Callable[[], Linear]
    ) -> Score:
        """The score of a predictor, from what it needs of training rows and last layer."""
        if self.fit is not None:
            return self.fit(training())
        if self.of_layer is not None:
            return self.of_layer(load_linear())
        assert self.score is not None  # one of the three is given
        return self.score


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
    "gen": Kind(
        "minus the sum of (p (1 - p))^0.1 over the 100 largest probabilities, generalised entropy "
        "(Liu et al. 2023)",
        gen,
    ),
    "gradtrust": Kind(
        "largest over mean of (z - 1/N)^4 (Prabhushankar and AlRegib 2024, as in their code)",
        gradtrust,
    ),
    "mahalanobis": Kind(
        "minus the squared Mahalanobis distance to the nearest class mean, one covariance from the "
        "training rows' last features (Lee et al. 2018, without its other layers)",
        fit=fit_mahalanobis,
        reads_logits=False,
    ),
    "knn": Kind(
        f"minus the distance to the {NEIGHBOUR}th nearest training row, features scaled to length "
        "1 (Sun et al. 2022)",
        fit=fit_neighbours,
        reads_logits=False,
    ),
    "rmds": Kind(
        "minus the smallest difference between the squared Mahalanobis distances to a class mean "
        "and to the mean of all training rows, each by its own covariance (Ren et al. 2021)",
        fit=fit_rmds,
        reads_logits=False,
    ),
    "ddu": Kind(
        "log density of the features in a mixture of one Gaussian per class (Mukhoti et al. 2023)",
        fit=fit_ddu,
        reads_logits=False,
    ),
    "residual": Kind(
        "minus the distance to the principal subspace of the training rows' features, of half "
        "their width, 512 from a width of 768, 1000 from 2048 (Wang et al. 2022)",
        fit=fit_residual,
        fits_weights=True,
    ),
    "vim": Kind(
        "energy minus the distance of residual in units of logits: virtual-logit matching (Wang "
        "et al. 2022)",
        fit=fit_vim,
        fits_weights=True,
    ),
    "react": Kind(
        f"energy with features clipped at percentile {REACT_PERCENTILE:g} of all training features "
        "(Sun et al. 2021)",
        fit=fit_react,
        fits_weights=True,
    ),
    "dice": Kind(
        f"energy with those weights of the last layer whose mean contribution on training rows is "
        f"above percentile {DICE_PERCENTILE:g} (Sun and Li 2022)",
        fit=fit_dice,
        fits_weights=True,
    ),
    "ash-p": Kind(
        f"energy with the features of a row below its percentile {ASH_PERCENTILE:g} set to 0 "
        "(Djurisic et al. 2023)",
        of_layer=ash_p,
    ),
    "ash-b": Kind(
        "as ash-p, with the other features set to the row's sum over their number (Djurisic et al. "
        "2023)",
        of_layer=ash_b,
    ),
    "ash-s": Kind(
        "as ash-p, with the other features multiplied by exp of the row's sum over their sum "
        "(Djurisic et al. 2023)",
        of_layer=ash_s,
    ),
    "scale": Kind(
        "energy with all features multiplied by exp of the row's sum over the sum of those above "
        f"its percentile {SCALE_PERCENTILE:g} (Xu et al. 2024)",
        of_layer=scale,
    ),
    "she": Kind(
        "inner product with the mean features of correctly classified training rows of the "
        "predicted class (Zhang et al. 2023)",
        fit=fit_she,
    ),
    "fdbd": Kind(
        "mean distance to the decision boundaries with the other classes, over the distance to the "
        "training mean (Liu and Qin 2024)",
        fit=fit_fdbd,
        fits_weights=True,
    ),
    "nnguide": Kind(
        f"energy times the mean of the {N_GUIDES} largest products of cosine and energy over 1 % "
        "of the training rows, at least 500 (Park et al. 2023)",
        fit=fit_nnguide,
    ),
    "klm": Kind(
        "minus the KL divergence to the nearest mean probabilities of training rows predicted as "
        "one class (Hendrycks et al. 2022)",
        fit=fit_klm,
    ),
}
"""Every score."""

OF_WEIGHTS = tuple(
    name for name, kind in SCORES.items() if kind.of_layer is not None or kind.fits_weights
)
"""Those that read the weights of the last layer."""

DETECTORS: dict[str, Kind] = {name: kind for name, kind in SCORES.items() if name != "confidence"}
"""Those by which images are detected; `msp` orders rows as the confidence does, without ties."""

BASELINE = "msp"
"""The confidence of f to which gains of others are relative."""

PLAIN: dict[str, Score] = {
    name: kind.score
    for name, kind in SCORES.items()
    if kind.score is not None and not kind.is_perturbed
}
"""Those that need neither training rows nor perturbed images: scores of any stored row."""
