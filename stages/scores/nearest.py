"""Distance to the nearest training rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.scores.factors import Rows, Score, TrainingRows

if TYPE_CHECKING:
    import torch

NEIGHBOUR = 50
"""The neighbour whose distance is the score: 50 on CIFAR-10 (Sun et al. 2022)."""

_QUERY_ROWS = 1024
_TRAINING_ROWS = 4096


def fit_neighbours(training: TrainingRows, *, k: int = NEIGHBOUR) -> Score:
    """Minus the distance to the ``k``-th nearest training row, all features of length 1.

    Raises:
        InputError: fewer than ``k`` rows without NaN.
    """
    blocks = [block.features for block in training.blocks()]
    if (n_rows := sum(map(len, blocks))) < k:
        raise InputError(f"knn: expected at least {k} training rows, found {n_rows}")
    return partial(_neighbour_distance, _unit(np.concatenate(blocks)), k)


def _neighbour_distance(
    training: torch.Tensor, k: int, features: Rows, logits: Rows
) -> NDArray[np.float64]:
    """``‖q - t‖² = 2 - 2 <q, t>`` for rows of length 1, computed in blocks of both sides."""
    import torch

    del logits
    queries, found = _unit(features), []
    for start in range(0, len(queries), _QUERY_ROWS):
        block, nearest = queries[start : start + _QUERY_ROWS], []
        for first in range(0, len(training), _TRAINING_ROWS):
            products = block @ training[first : first + _TRAINING_ROWS].T
            nearest.append(products.topk(min(k, products.shape[1])).values)
        product = torch.cat(nearest, dim=1).topk(k).values[:, -1]
        found.append((2 - 2 * product).clamp(min=0).sqrt())
    return -torch.cat(found).numpy()


def _unit(rows: Rows) -> torch.Tensor:
    """Rows divided by their lengths; a row of zeros stays zero."""
    import torch

    return torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float64)))
