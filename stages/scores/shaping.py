"""Energies of logits that are computed again, from features or weights that were reshaped.

Large features are clipped (ReAct), small ones pruned (ASH) or only used to scale the row (SCALE),
or small contributions of weights are left out (DICE). The logits are ``W g(f) + b``.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.scores.confidences import energy
from stages.scores.factors import Linear, Rows, Score, TrainingRows
from stages.scores.percentile import percentile

Values = NDArray[np.float64]

REACT_PERCENTILE = 90.0
DICE_PERCENTILE = 90.0
ASH_PERCENTILE = 90.0
SCALE_PERCENTILE = 85.0
"""Those of OpenOOD and of the papers; OpenOOD tunes those of ASH and SCALE on validation sets."""


def fit_react(training: TrainingRows, *, percent: float = REACT_PERCENTILE) -> Score:
    """Energy with features clipped at a percentile of all features of all training rows.

    Raises:
        InputError: no training rows.
    """
    if not sum(len(block.labels) for block in training.blocks()):
        raise InputError("react: expected training rows without NaN, found none")
    limit = percentile(lambda: (block.features for block in training.blocks()), percent)
    return partial(_clipped, training.linear, limit)


def fit_dice(training: TrainingRows, *, percent: float = DICE_PERCENTILE) -> Score:
    """Energy with those weights alone whose mean contribution ``W f`` exceeds a percentile.

    Raises:
        InputError: no training rows.
    """
    weight, bias = training.linear
    total, n_rows = np.zeros(weight.shape[1]), 0
    for block in training.blocks():
        total += block.features.sum(axis=0, dtype=np.float64)
        n_rows += len(block.features)
    if not n_rows:
        raise InputError("dice: expected training rows without NaN, found none")
    contributions = weight * (total / n_rows)
    kept = np.where(contributions > np.percentile(contributions, percent), weight, 0.0)
    return partial(_linear_energy, Linear(kept, bias))


def ash_p(linear: Linear, *, percent: float = ASH_PERCENTILE) -> Score:
    """Energy with all but the largest features of a row set to 0."""
    return partial(_pruned, linear, percent)


def ash_b(linear: Linear, *, percent: float = ASH_PERCENTILE) -> Score:
    """As `ash_p`, with the kept features replaced by their number's share of the row's sum."""
    return partial(_binarised, linear, percent)


def ash_s(linear: Linear, *, percent: float = ASH_PERCENTILE) -> Score:
    """As `ash_p`, with kept features multiplied by ``exp`` of the row's sum over their sum."""
    return partial(_sharpened, linear, percent)


def scale(linear: Linear, *, percent: float = SCALE_PERCENTILE) -> Score:
    """Energy with all features multiplied by ``exp`` of the row's sum over that of the largest."""
    return partial(_scaled, linear, percent)


def largest(features: Rows, percent: float) -> NDArray[np.bool_]:
    """Flags of the ``d - round(d percent / 100)`` largest features of each row, ``[n, d]``.

    Of equal features, the first ones are kept.
    """
    width = features.shape[1]
    n_kept = width - round(width * percent / 100)
    if n_kept == 0:
        return np.zeros(features.shape, dtype=bool)
    limit = np.partition(features, width - n_kept, axis=1)[:, width - n_kept, np.newaxis]
    above, equal = features > limit, features == limit
    n_left = n_kept - above.sum(axis=1, keepdims=True)
    flags: NDArray[np.bool_] = above | (equal & (equal.cumsum(axis=1) <= n_left))
    return flags


def _linear_energy(linear: Linear, features: Rows, logits: Rows) -> Values:
    del logits
    return energy(features, linear.logits(features))


def _clipped(linear: Linear, limit: float, features: Rows, logits: Rows) -> Values:
    return _linear_energy(linear, np.minimum(features, limit), logits)


def _pruned(linear: Linear, percent: float, features: Rows, logits: Rows) -> Values:
    kept = np.where(largest(features, percent) | np.isnan(features), features, 0)
    return _linear_energy(linear, kept, logits)


def _binarised(linear: Linear, percent: float, features: Rows, logits: Rows) -> Values:
    flags = largest(features, percent)
    value = features.sum(axis=1, dtype=np.float64) / np.maximum(flags.sum(axis=1), 1)
    kept = np.where(flags | np.isnan(features), value[:, np.newaxis], 0)
    return _linear_energy(linear, kept, logits)


def _sharpened(linear: Linear, percent: float, features: Rows, logits: Rows) -> Values:
    kept = np.where(largest(features, percent) | np.isnan(features), features, 0)
    return _linear_energy(linear, kept * _factor(features, percent), logits)


def _scaled(linear: Linear, percent: float, features: Rows, logits: Rows) -> Values:
    return _linear_energy(linear, features * _factor(features, percent), logits)


def _factor(features: Rows, percent: float) -> Values:
    """``exp(Σf / Σ of the largest f)`` of each row, ``[n, 1]``.

    Sums are those of the positive parts, which are all of them after a ReLU: the quotient is then
    at least 1 and bounded. It is 1 for rows without positive features.
    """
    positive = np.maximum(features.astype(np.float64), 0)
    of_all = positive.sum(axis=1, keepdims=True)
    of_largest = np.where(largest(features, percent), positive, 0).sum(axis=1, keepdims=True)
    quotient = np.divide(of_all, of_largest, out=np.ones_like(of_all), where=of_largest != 0)
    factor: Values = np.exp(quotient)
    return factor
