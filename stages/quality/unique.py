"""UNIQUE and Introspective-UNIQUE: quality as the rank correlation of features of two images.

UNIQUE compares what an autoencoder activates for the reference and for the distorted image.
The introspective readings compare both images in the coordinates of a gradient: that of the
reconstruction loss on the reference with respect to a layer's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from stages.quality.autoencoder import Autoencoder
from stages.quality.patches import Floats

SUPPRESSED = 0.025
"""Activations below this are set to zero."""

POWER = 10
"""The published code raises the rank correlation to this power; it spreads values close to 1."""

_LUMA_VALUES = 64
"""Values of a patch that are its Y channel."""


def unique(model: Autoencoder, reference: Floats, distorted: Floats) -> float:
    """Absolute rank correlation of the suppressed activations of two images.

    NaN if those of one image are all equal.

    Args:
        model: the autoencoder.
        reference: whitened patches, shape ``(192, n)``.
        distorted: those of the other image, of the same shape.
    """
    return _correlation(*(_suppressed(model.hidden(each)) for each in (reference, distorted)))


def paper_w1(model: Autoencoder, reference: Floats, distorted: Floats) -> float:
    """Introspective-UNIQUE as the paper describes it: projections on the encoder's gradient.

    The gradient ``r = dJ/dw1`` of ``J = 1/(2n) sum |x' - x|^2`` on the reference, shape
    ``(n_hidden, 192)``, projects the patches of both images.
    """
    hidden = model.hidden(reference)
    error = model.decoded(hidden) - reference
    gradient = ((model.w2.T @ error) * hidden * (1 - hidden)) @ reference.T / reference.shape[1]
    return _correlation(gradient @ reference, gradient @ distorted)


def plain_w2(model: Autoencoder, reference: Floats, distorted: Floats) -> float:
    """Projections on the decoder's gradient ``dJ/dw2``, shape ``(192, n_hidden)``, transposed."""
    gradient = decoder_gradient(model, reference)
    return _correlation(gradient.T @ reference, gradient.T @ distorted)


def surprisal_w2(model: Autoencoder, reference: Floats, distorted: Floats) -> float:
    """The reading of the later official code, "stochastic surprisal".

    Projections ``y`` on the decoder's gradient go through a complex logit ``log(y / (1 - y))``,
    whose magnitudes and angles are the features. Those of units with a sharp gradient are doubled
    (`sharpness_weights`), and features below 0.025 are set to zero.

    Source: Prabhushankar & AlRegib, "Stochastic Surprisal", Frontiers in Neuroscience 2023.
    """
    gradient = decoder_gradient(model, reference)
    weights = sharpness_weights(gradient)
    features = [
        _suppressed(_weighted(gradient.T @ each, weights)) for each in (reference, distorted)
    ]
    return _correlation(*features)


def decoder_gradient(model: Autoencoder, patches: Floats) -> Floats:
    """``(x' - x) a' / n``, the gradient of half the mean squared error to ``w2``."""
    hidden = model.hidden(patches)
    gradient: Floats = (model.decoded(hidden) - patches) @ hidden.T / patches.shape[1]
    return gradient


def sharpness_weights(gradient: Floats) -> Floats:
    """2 for hidden units whose gradient over the Y channel has a kurtosis above 3, else 1.

    The kurtosis of each unit's 64 values is corrected for bias, as MATLAB's ``kurtosis(x, 0)`` is.
    The published code first shifts and scales each unit's values, which changes no kurtosis.
    """
    from scipy.stats import kurtosis

    sharp = kurtosis(gradient[:_LUMA_VALUES], axis=0, fisher=False, bias=False) > 3
    return np.where(sharp, 2.0, 1.0)


def _weighted(projections: Floats, weights: Floats) -> Floats:
    """Magnitudes and angles of the complex logit, shape ``(2 n_hidden, n)``."""
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 and 1 have infinite magnitudes
        complex_logit = np.log(projections.astype(complex) / (1 - projections))
    features = np.concatenate([np.abs(complex_logit), np.angle(complex_logit)])
    weighted: Floats = features * np.concatenate([weights, weights])[:, None]
    return weighted


def _suppressed(features: Floats) -> Floats:
    return np.where(features < SUPPRESSED, 0.0, features)


def _correlation(reference: Floats, distorted: Floats) -> float:
    """Absolute value of Spearman's rank correlation of all values; NaN if one side is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(each.ravel()) for each in (reference, distorted)]
    first, second = (each - each.mean() for each in ranks)
    scale = np.sqrt((first @ first) * (second @ second))
    return float(abs(first @ second) / scale) if scale > 0 else float("nan")


UNIQUES: Mapping[str, Callable[[Autoencoder, Floats, Floats], float]] = {
    "unique": unique,
    "paper_w1": paper_w1,
    "surprisal_w2": surprisal_w2,
    "plain_w2": plain_w2,
}
"""Feature-forward and introspective comparisons, by the name of their score."""
