"""Distance to the subspace in which training features vary most: residual and ViM."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.scores.confidences import energy
from stages.scores.factors import Rows, Score, TrainingRows

Values = NDArray[np.float64]

MAX_WIDTH = 8192
_IN_SUBSPACE = 1e-6
"""Training rows whose distance is a smaller share of their length lie in the subspace."""


def n_principal(width: int) -> int:
    """Dimensions of the subspace, by the width of the features, as OpenOOD and ViM choose them.

    >>> [n_principal(width) for width in (64, 512, 768, 2048)]
    [32, 256, 512, 1000]
    """
    if width >= 2048:
        return 1000
    return 512 if width >= 768 else width // 2


@dataclass(frozen=True)
class Complement:
    """What is orthogonal to the principal subspace through ``origin``.

    Attributes:
        origin: ``u = -W⁺ b``, the shortest vector among those with the smallest logits.
        basis: ``R``, ``[d, d - D]``: eigenvectors of ``Σ (f - u)(f - u)ᵀ`` with the smallest
            eigenvalues.
    """

    origin: Values
    basis: Values

    def distance(self, features: Rows) -> Values:
        """``‖Rᵀ (f - u)‖`` of each row."""
        found: Values = np.linalg.norm(self.projected(features), axis=1)
        return found

    def projected(self, features: Rows) -> Values:
        """``Rᵀ (f - u)``, ``[n, d - D]``."""
        inside: Values = (features.astype(np.float64) - self.origin) @ self.basis
        return inside


def complement(name: str, training: TrainingRows, n_kept: int | None = None) -> Complement:
    """Fit the subspace in one pass.

    Raises:
        InputError: no training rows, or features too wide for a matrix of products.
    """
    weight, bias = training.linear
    width = weight.shape[1]
    if width > MAX_WIDTH:
        raise InputError(
            f"{name}: expected at most {MAX_WIDTH:,} features, found {width:,}: omit it for this "
            "predictor"
        )
    origin = -np.linalg.pinv(weight) @ bias
    products, n_rows = np.zeros((width, width)), 0
    for block in training.blocks():
        centred = block.features - origin
        products += centred.T @ centred
        n_rows += len(centred)
    if not n_rows:
        raise InputError(f"{name}: expected training rows without NaN, found none")
    kept = n_principal(width) if n_kept is None else n_kept
    return Complement(origin, np.linalg.eigh(products)[1][:, : width - kept])


def fit_residual(training: TrainingRows) -> Score:
    """Minus the distance of a row to the principal subspace. Raises as `complement`."""
    return partial(_residual, complement("residual", training))


def fit_vim(training: TrainingRows, *, n_kept: int | None = None) -> Score:
    """The energy, minus the distance to the subspace in units of logits (virtual logit).

    A unit is the mean largest logit of the training rows over their mean distance; distances count
    nothing if all training rows lie in the subspace. Raises as `complement`.
    """
    found = complement("vim", training, n_kept)
    logits = distances = lengths = 0.0
    for block in training.blocks():
        logits += float(block.logits.max(axis=1).sum(dtype=np.float64))
        distances += float(found.distance(block.features).sum())
        lengths += float(np.linalg.norm(block.features - found.origin, axis=1).sum())
    alpha = logits / distances if distances > _IN_SUBSPACE * lengths else 0.0
    return partial(_virtual, found, alpha)


def _residual(found: Complement, features: Rows, logits: Rows) -> Values:
    del logits
    return -found.distance(features)


def _virtual(found: Complement, alpha: float, features: Rows, logits: Rows) -> Values:
    return energy(features, logits) - alpha * found.distance(features)
