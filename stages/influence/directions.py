"""The influence of training rows on predictions, from the gradients of a last linear layer.

The gradient of the cross entropy of a row to ``[W, b]`` is ``g = δ ⊗ f̃``, with ``δ = p - e_y`` and
``f̃ = (f, 1)``. Every method here scores a training row by a bilinear form of its factors with a
matrix that belongs to the explained row, its *direction* ``V``: the score is ``δᵀ V f̃``.

A positive score supports the explained class: without the training row, the loss of that class
would be higher, to first order. A negative score opposes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.introspection.laplace import (
    Block,
    Full,
    FullPosterior,
    Kronecker,
    KroneckerPosterior,
    extended,
)
from stages.reflection.losses import softmax

Values = NDArray[np.float64]
Numbers = NDArray[np.floating[Any]]
Classes = NDArray[np.integer[Any]]


def gradient_factors(
    features: Numbers, logits: Numbers, classes: Classes, *, has_bias: bool
) -> tuple[Values, Values]:
    """``δ`` of the cross entropy to a class of each row, ``[n, N]``, and ``f̃``, ``[n, d + 1]``."""
    delta = softmax(logits.astype(np.float64)).astype(np.float64)
    delta[np.arange(len(delta)), classes] -= 1
    return delta, extended(features, has_bias=has_bias)


def curved_directions(
    posterior: FullPosterior | KroneckerPosterior, delta: Values, f: Values
) -> Values:
    """``(H + λ I)⁻¹ g`` of each row as a matrix, ``[n, N, d + 1]``.

    With ``H`` the sum of the Hessians of all training rows, ``g'ᵀ (H + λ I)⁻¹ g`` is by how much
    the loss of the explained row rises, to first order, if a training row is left out and the last
    layer is trained to its optimum again (Koh & Liang, "Understanding black-box predictions via
    influence functions", ICML 2017). For softmax regression, ``H`` is the Gauss-Newton matrix of
    `stages.introspection.laplace`, so `Full` is exact.
    """
    if isinstance(posterior, KroneckerPosterior):
        turned = np.einsum(
            "nd,nc->ndc", f @ posterior.input_vectors, delta @ posterior.class_vectors
        )
        turned *= posterior.shrinkage
        back = posterior.input_vectors @ turned @ posterior.class_vectors.T
        directions: Values = back.transpose(0, 2, 1)
        return directions
    gradients = np.einsum("nc,nd->ncd", delta, f)
    size = gradients[0].size
    found: Values = gradients.reshape(-1, size) @ posterior.covariance.reshape(size, size)
    return found.reshape(gradients.shape)


def plain_directions(delta: Values, f: Values, rate: float) -> Values:
    """``η g`` of each row as a matrix, ``[n, N, d + 1]``: a term of TracIn.

    TracInCP is the sum over snapshots ``t`` of ``η_t g_tᵀ g'_t``, in factors ``η_t (f̃_t · f̃'_t)
    (δ_t · δ'_t)``: by how much steps of gradient descent on the training row lowered the loss of
    the explained one (Pruthi et al., "Estimating training data influence by tracing gradient
    descent", NeurIPS 2020).
    """
    found: Values = rate * np.einsum("nc,nd->ncd", delta, f)
    return found


def scores_of(directions: Values, delta: Values, f: Values) -> Values:
    """``δᵀ V f̃`` of every training row with every direction, ``[n, n_directions]``."""
    n_directions, n_classes, width = directions.shape
    along = (f @ directions.reshape(-1, width).T).reshape(len(f), n_directions, n_classes)
    scores: Values = np.einsum("nqc,nc->nq", along, delta, optimize=True)
    return scores


def damped(
    structure: type[Full] | type[Kronecker],
    blocks: Iterable[Block],
    damping: float,
    *,
    has_bias: bool,
) -> tuple[FullPosterior | KroneckerPosterior, float]:
    """The inverse of ``H + λ I``, and λ, the damping times the mean eigenvalue of ``H``.

    λ relative to the eigenvalues suits networks and sets of any size; Grosse et al. ("Studying
    large language model generalization with influence functions", 2023) use 0.1 of their mean.
    """
    curvature = structure.of(blocks, has_bias=has_bias)
    prior = damping * float(curvature.eigenvalues.mean())
    return curvature.posterior(prior or damping), prior or damping
