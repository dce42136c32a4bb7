"""Agreement of a row with what training rows of its predicted class look like."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, logsumexp

from stages.errors import InputError
from stages.scores.factors import Rows, Score, TrainingRows

Values = NDArray[np.float64]

_NEAREST = 1e-8
"""Distance to the mean of the training rows below which a row counts as being there."""


def fit_she(training: TrainingRows) -> Score:
    """Inner product with the mean features of correctly classified rows of the predicted class.

    It is 0 for classes without such rows.

    Raises:
        InputError: no training row is classified correctly.
    """
    sums: Values = np.zeros((0, 0))
    counts = np.zeros(0, np.int64)
    for block in training.blocks():
        if not len(counts):
            n_classes, width = block.logits.shape[1], block.features.shape[1]
            sums, counts = np.zeros((n_classes, width)), np.zeros(n_classes, np.int64)
        right = block.take(block.logits.argmax(axis=1) == block.labels)
        for label in np.unique(right.labels):
            rows = right.features[right.labels == label]
            sums[label] += rows.sum(axis=0, dtype=np.float64)
            counts[label] += len(rows)
    if not counts.any():
        raise InputError("she: expected training rows that are classified correctly, found none")
    return partial(_inner_product, sums / np.maximum(counts, 1)[:, np.newaxis])


def fit_fdbd(training: TrainingRows) -> Score:
    """Mean distance to the other classes' decision boundaries, over that to the training mean.

    Classes with the weights of the predicted class have no boundary with it, and are left out. A
    row without boundaries scores 0.

    Raises:
        InputError: no training rows.
    """
    total, n_rows = np.zeros(training.linear.weight.shape[1]), 0
    for block in training.blocks():
        total += block.features.sum(axis=0, dtype=np.float64)
        n_rows += len(block.features)
    if not n_rows:
        raise InputError("fdbd: expected training rows without NaN, found none")
    return partial(_boundary_distance, training.linear.weight, total / n_rows)


def fit_klm(training: TrainingRows) -> Score:
    """Minus the KL divergence to the nearest mean probabilities of rows predicted as one class.

    Labels are not used. The means are summed by their logarithms, so that none becomes 0.

    Raises:
        InputError: no training rows.
    """
    sums: dict[int, Values] = {}
    counts: dict[int, int] = {}
    for block in training.blocks():
        log_p, predicted = (
            log_softmax(block.logits.astype(np.float64), axis=1),
            block.logits.argmax(axis=1),
        )
        for label in np.unique(predicted).tolist():
            rows = log_p[predicted == label]
            counts[label] = counts.get(label, 0) + len(rows)
            found: Values = logsumexp(rows, axis=0)
            sums[label] = np.logaddexp(sums[label], found) if label in sums else found
    if not sums:
        raise InputError("klm: expected training rows without NaN, found none")
    return partial(_nearest_divergence, np.stack([sums[k] - np.log(counts[k]) for k in sums]))


def _inner_product(patterns: Values, features: Rows, logits: Rows) -> Values:
    own = patterns[logits.argmax(axis=1)]
    scores: Values = np.einsum("nd,nd->n", features.astype(np.float64), own)
    return scores


def _boundary_distance(weight: Values, mean: Values, features: Rows, logits: Rows) -> Values:
    z = logits.astype(np.float64)
    predicted, own = np.unique(z.argmax(axis=1), return_inverse=True)
    widths = cdist(weight[predicted], weight)[own]
    distances = np.divide(
        z.max(axis=1, keepdims=True) - z, widths, out=np.zeros_like(z), where=widths > 0
    )
    from_mean = np.maximum(np.linalg.norm(features - mean, axis=1), _NEAREST)
    scores: Values = distances.sum(axis=1) / np.maximum((widths > 0).sum(axis=1), 1) / from_mean
    return scores


def _nearest_divergence(log_means: Values, features: Rows, logits: Rows) -> Values:
    del features
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    divergences = (p * log_p).sum(axis=1, keepdims=True) - p @ log_means.T
    scores: Values = -divergences.min(axis=1)
    return scores
