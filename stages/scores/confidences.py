"""Scores of a row that need nothing but its features and logits.

Whether high or low values are confident is said in `stages.scores.known_scores`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, logsumexp

from stages.reflection.losses import softmax
from stages.scores.factors import Rows

Values = NDArray[np.float64]


def confidence(features: Rows, logits: Rows) -> Values:
    """The largest probability."""
    del features
    values: Values = _probabilities(logits).max(axis=1)
    return values


def max_softmax(features: Rows, logits: Rows, temperature: float = 1.0) -> Values:
    """The logarithm of the largest softmax probability of ``z / T``.

    It orders rows as the probability does, except where the probability rounds to 1: there
    ``-log1p`` of the sum of the other classes still distinguishes them.
    """
    del features
    others = _odds_of_others(logits.astype(np.float64) / temperature).sum(axis=1)
    values: Values = -np.log1p(others)
    return values


def margin(features: Rows, logits: Rows) -> Values:
    """The difference between the two largest probabilities; a missing second one counts as 0."""
    del features
    p = _probabilities(logits)
    if p.shape[1] == 1:
        return p[:, 0]
    second, first = np.partition(p, -2, axis=1)[:, -2:].T
    gap: Values = first - second
    return gap


def entropy(features: Rows, logits: Rows) -> Values:
    """``-Σ p log p``, in nats."""
    del features
    values: Values = entr(_probabilities(logits)).sum(axis=1)
    return values


def energy(features: Rows, logits: Rows) -> Values:
    """``log Σ exp z``, the negative free energy at temperature 1."""
    values: Values = logits.max(axis=1) - max_softmax(features, logits)
    return values


def max_logit(features: Rows, logits: Rows) -> Values:
    """The largest logit."""
    del features
    values: Values = logits.max(axis=1).astype(np.float64)
    return values


def gradnorm(features: Rows, logits: Rows) -> Values:
    """L1 norm of the last layer's gradient of ``KL(uniform, softmax z)``.

    The gradient is ``(p - 1/N) ⊗ f``, so its L1 norm is the product of those of its factors.
    """
    p = _probabilities(logits)
    of_delta = np.abs(p - 1 / p.shape[1]).sum(axis=1)
    values: Values = of_delta * _l1(features)
    return values


def exgrad(features: Rows, logits: Rows) -> Values:
    """Expected L1 norm of the last layer's gradient of the cross entropy, over classes by ``p``.

    The gradient for class ``c`` is ``(p - e_c) ⊗ f`` with ``‖p - e_c‖₁ = 2 (1 - p_c)``, so the
    expectation is ``2 ‖f‖₁ Σ p_c (1 - p_c)``.
    """
    odds = _odds_of_others(logits.astype(np.float64))
    others = odds.sum(axis=1)
    p = odds / (1 + others[:, np.newaxis])
    of_largest = others / (1 + others) ** 2  # p (1 - p), where 1 - p itself may round to 0
    values: Values = 2 * _l1(features) * (of_largest + (p * (1 - p)).sum(axis=1))
    return values


def gen(features: Rows, logits: Rows, gamma: float = 0.1, n_largest: int = 100) -> Values:
    """Minus the generalised entropy ``Σ p^γ (1 - p)^γ`` of the largest probabilities.

    ``log(1 - p)`` of the largest class is computed from the others: ``1 - p`` may round to 0.
    """
    del features
    z = logits.astype(np.float64)
    log_p = z - logsumexp(z, axis=1, keepdims=True)
    at = np.arange(len(z)), z.argmax(axis=1)
    others = log_p.copy()
    others[at] = -np.inf
    log_rest = np.log1p(-np.exp(others))
    log_rest[at] = logsumexp(others, axis=1)
    terms = np.exp(gamma * (log_p + log_rest))
    if terms.shape[1] > n_largest:
        largest = np.argpartition(log_p, -n_largest, axis=1)[:, -n_largest:]
        terms = np.take_along_axis(terms, largest, axis=1)
    values: Values = -terms.sum(axis=1)
    return values


def gradtrust(features: Rows, logits: Rows) -> Values:
    """Largest over mean of ``(z_j - 1/N)⁴``, from 1 to ``N``; 1 if all are zero.

    The gradients of the published method are these times the features, whose norm cancels.
    """
    del features
    distance = np.abs(logits.astype(np.float64) - 1 / logits.shape[1])
    largest = distance.max(axis=1, keepdims=True)
    relative = np.divide(distance, largest, out=np.ones_like(distance), where=largest != 0)
    values: Values = 1 / (relative**4).mean(axis=1)
    return values


def _probabilities(logits: Rows) -> Values:
    return softmax(logits.astype(np.float64)).astype(np.float64, copy=False)


def _odds_of_others(z: Values) -> Values:
    """``p / max p`` of each class, 0 for the first largest one."""
    largest = z.max(axis=1, keepdims=True)
    others = z - largest
    others[np.arange(len(z)), z.argmax(axis=1)] = np.where(np.isnan(largest[:, 0]), np.nan, -np.inf)
    odds: Values = np.exp(others)
    return odds


def _l1(features: Rows) -> Values:
    values: Values = np.abs(features.astype(np.float64)).sum(axis=1)
    return values
