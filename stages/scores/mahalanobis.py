"""Distances to class means, measured by covariances of the training rows."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.scores.factors import Rows, Score, TrainingRows

MAX_WIDTH = 8192
"""Maximum number of features for a covariance matrix: it takes half a gigabyte."""


def fit_mahalanobis(training: TrainingRows) -> Score:
    """Minus the squared Mahalanobis distance to the nearest class mean, one covariance for all.

    Raises:
        InputError: no labelled row, or features too wide for a covariance.
    """
    blocks = [block.labelled for block in training.blocks() if (block.labels >= 0).any()]
    if not blocks:
        raise InputError("mahalanobis: expected labelled rows without NaN, found none")
    if (width := blocks[0].features.shape[1]) > MAX_WIDTH:
        raise InputError(
            f"mahalanobis: expected at most {MAX_WIDTH:,} features, whose covariance fits into "
            f"memory, found {width:,}: omit it for this head"
        )
    rows = np.concatenate([block.features for block in blocks]).astype(np.float64)
    own = np.concatenate([block.labels for block in blocks])
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
