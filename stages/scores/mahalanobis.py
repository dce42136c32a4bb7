"""Distances to the means of the training rows, measured by their covariances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from stages.errors import InputError
from stages.scores.factors import Rows, Score, TrainingRows

Values = NDArray[np.float64]

MAX_NUMBERS = 2**27
"""Maximum size of covariance matrices together: a gigabyte, 11,585 features for one matrix."""

RIDGE = 1e-6
"""Added to the variances of `ddu`, relative to the mean variance of a feature within classes."""


class Classes(NamedTuple):
    """Labelled training rows by class; classes without rows are left out.

    Attributes:
        labels: ``[C]``, ascending.
        counts: ``[C]``.
        means: ``[C, d]``.
    """

    labels: NDArray[np.int64]
    counts: NDArray[np.int64]
    means: Values


@dataclass(frozen=True)
class Distances:
    """Squared Mahalanobis distances to several means.

    Attributes:
        origin: a point near the rows, ``[d]``; it is subtracted first, against rounding errors.
        whitening: ``[d, r]``, whose product with its transpose is the inverse of the covariance.
        means: whitened means, ``[C, r]``.
    """

    origin: Values
    whitening: Values
    means: Values

    @classmethod
    def of(cls, covariance: Values, means: Values) -> Distances:
        """By the pseudo-inverse: directions in which no training row varies are ignored."""
        variances, directions = np.linalg.eigh(covariance)
        tolerance = len(variances) * np.finfo(np.float64).eps * max(variances[-1], 0)
        kept = variances > tolerance
        whitening = directions[:, kept] / np.sqrt(variances[kept])
        origin = means.mean(axis=0)
        return cls(origin, whitening, (means - origin) @ whitening)

    def to(self, features: Rows) -> Values:
        """Distances of rows ``[n, d]`` to the means, ``[n, C]``."""
        white = (features.astype(np.float64) - self.origin) @ self.whitening
        lengths, own = (white**2).sum(axis=1), (self.means**2).sum(axis=1)
        found: Values = lengths[:, np.newaxis] - 2 * white @ self.means.T + own
        return np.maximum(found, 0, out=found)


def fit_mahalanobis(training: TrainingRows) -> Score:
    """Minus the squared Mahalanobis distance to the nearest class mean, one covariance for all.

    Raises:
        InputError: no labelled row, or features too wide for a covariance.
    """
    classes = _classes("mahalanobis", training, n_matrices=1)
    return partial(_nearest_mean, Distances.of(_within(training, classes), classes.means))


def fit_rmds(training: TrainingRows) -> Score:
    """Minus the smallest difference between the distances to a class mean and to the mean of all.

    The latter is measured by the covariance of all rows. Raises as `fit_mahalanobis`.
    """
    classes = _classes("rmds", training, n_matrices=2)
    within = _within(training, classes)
    shares = classes.counts / classes.counts.sum()
    mean = shares @ classes.means
    between = (classes.means - mean).T @ ((classes.means - mean) * shares[:, np.newaxis])
    background = Distances.of(within + between, mean[np.newaxis])
    return partial(_relative, Distances.of(within, classes.means), background)


def fit_ddu(training: TrainingRows, *, ridge: float = RIDGE) -> Score:
    """Log density of a mixture of one Gaussian per class, weighted by its share of the rows.

    A small ridge keeps covariances invertible, of classes with few rows and of constant features.

    Raises:
        InputError: no labelled row, or too many classes and features for a covariance each.
    """
    classes = _classes("ddu", training, n_matrices=1)
    width = classes.means.shape[1]
    _check_size("ddu", width, len(classes.labels))
    scatters = np.zeros((len(classes.labels), width, width))
    for block in training.blocks():
        for at, label in enumerate(classes.labels):
            rows = block.features[block.labels == label].astype(np.float64) - classes.means[at]
            scatters[at] += rows.T @ rows
    variance = np.einsum("cdd->", scatters) / classes.counts.sum() / width
    floor = ridge * (variance if variance > 0 else 1.0)
    parts, offsets = [], []
    for scatter, count, mean in zip(scatters, classes.counts, classes.means, strict=True):
        covariance = scatter / count + floor * np.eye(width)
        parts.append(Distances.of(covariance, mean[np.newaxis]))
        log_volume = np.linalg.slogdet(covariance)[1] + width * np.log(2 * np.pi)
        offsets.append(np.log(count / classes.counts.sum()) - log_volume / 2)
    return partial(_log_density, parts, np.array(offsets))


def _classes(name: str, training: TrainingRows, *, n_matrices: int) -> Classes:
    """Counts and means; raises ``InputError`` without labelled rows, or if rows are too wide."""
    counts: dict[int, int] = {}
    sums: dict[int, Values] = {}
    for block in training.blocks():
        _check_size(name, block.features.shape[1], n_matrices)
        for label in np.unique(block.labels[block.labels >= 0]).tolist():
            rows = block.features[block.labels == label]
            counts[label] = counts.get(label, 0) + len(rows)
            sums[label] = sums.get(label, 0.0) + rows.sum(axis=0, dtype=np.float64)
    if not counts:
        raise InputError(f"{name}: expected labelled rows without NaN, found none")
    labels = sorted(counts)
    n_rows = np.array([counts[label] for label in labels])
    means = np.stack([sums[label] for label in labels]) / n_rows[:, np.newaxis]
    return Classes(np.array(labels), n_rows, means)


def _within(training: TrainingRows, classes: Classes) -> Values:
    """Covariance of labelled rows around the means of their classes, ``[d, d]``."""
    width = classes.means.shape[1]
    scatter = np.zeros((width, width))
    for block in training.blocks():
        own = block.labelled
        centred = own.features - classes.means[np.searchsorted(classes.labels, own.labels)]
        scatter += centred.T @ centred
    covariance: Values = scatter / classes.counts.sum()
    return covariance


def _check_size(name: str, width: int, n_matrices: int) -> None:
    if n_matrices * width**2 > MAX_NUMBERS:
        limit = int((MAX_NUMBERS / n_matrices) ** 0.5)
        raise InputError(
            f"{name}: expected at most {limit:,} features, so that {n_matrices:,} covariances fit "
            f"into memory, found {width:,}: omit it for this predictor"
        )


def _nearest_mean(distances: Distances, features: Rows, logits: Rows) -> Values:
    del logits
    scores: Values = -distances.to(features).min(axis=1)
    return scores


def _relative(own: Distances, background: Distances, features: Rows, logits: Rows) -> Values:
    del logits
    scores: Values = -(own.to(features) - background.to(features)).min(axis=1)
    return scores


def _log_density(parts: list[Distances], offsets: Values, features: Rows, logits: Rows) -> Values:
    del logits
    distances = np.concatenate([part.to(features) for part in parts], axis=1)
    density: Values = logsumexp(offsets - distances / 2, axis=1)
    return density
