"""Out-of-sample probabilities: the last layer is refitted to the stored features, fold by fold."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.reflection.reduction import in_threads

Rows = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

MAX_STEPS = 500
"""Steps of L-BFGS. A refit that has not converged by then is used as it is."""


def refitted_probabilities(
    features: Rows,
    labels: Labels,
    n_classes: int,
    *,
    n_folds: int,
    seed: int,
    tick: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float32]:
    """Probabilities of each row by a last layer that was fitted without its fold, ``[n, N]``.

    Multinomial logistic regression on features with mean 0 and variance 1, with scikit-learn's
    default L2 penalty (C = 1). A class that the other folds lack has the probability 0.

    Args:
        features: finite rows, shape ``(n, d)``.
        labels: label of each row, shape ``(n,)``.
        n_classes: ``N``.
        n_folds: number of refits, at most ``n``.
        seed: seed of the folds; see `stratified_folds`.
        tick: called with the number of rows of each finished fold.
    """
    from threadpoolctl import threadpool_limits

    folds = stratified_folds(labels, n_folds, seed)
    p = np.zeros((len(labels), n_classes), np.float32)

    def refit(fold: int) -> int:
        held_out = folds == fold
        classes, found = _fitted(features[~held_out], labels[~held_out], features[held_out])
        p[np.ix_(held_out, classes)] = found
        return int(held_out.sum())

    with threadpool_limits(1):  # folds are fitted side by side, each on one core
        for n_rows in in_threads(refit, range(n_folds)):
            tick(n_rows)
    return p


def stratified_folds(labels: Labels, n_folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row: sizes differ by at most one, in all and within each class."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % n_folds
    return folds


def _fitted(features: Rows, labels: Labels, queries: Rows) -> tuple[Labels, Rows]:
    """The classes of the labels, and their probabilities for the queries."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = np.unique(labels)
    if len(classes) == 1:
        return classes, np.ones((len(queries), 1), np.float32)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[features.min(axis=0) == features.max(axis=0)] = 1  # rounding may leave some
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        layer = LogisticRegression(max_iter=MAX_STEPS).fit((features - mean) / deviation, labels)
    return classes, layer.predict_proba((queries - mean) / deviation)
