"""Find rows of a network's output that are finite; only these are predicted, selected or counted.

A single NaN or infinity makes a row unusable. NaN compares as false, and ``argmax`` treats it as
the largest value, so such a row would silently become class 0 or whichever comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_ROWS = 1024
"""Rows per block: their flags may need a quarter of the memory of the rows themselves."""


@overload
def finite_rows(*arrays: NDArray[np.floating[Any]]) -> NDArray[np.bool_]: ...


@overload
def finite_rows(*arrays: Tensor) -> Tensor: ...


def finite_rows(*arrays: Any) -> Any:  # Any: numpy or torch, as the overloads say
    """Flag the rows that are finite in all arrays.

    Args:
        arrays: shape ``(n, ...)`` each, all from numpy or all from torch.

    Returns:
        Booleans, shape ``(n,)``.
    """
    xp = array_namespace(*arrays)
    n_rows = arrays[0].shape[0]
    blocks = [slice(at, at + _BLOCK_ROWS) for at in range(0, max(n_rows, 1), _BLOCK_ROWS)]
    masks = [xp.concat([_finite(xp, array[block]) for block in blocks]) for array in arrays]
    mask = masks[0]
    for other in masks[1:]:
        mask = mask & other
    return mask


def why_not_finite(
    arrays: Mapping[str, NDArray[np.floating[Any]]], of: str = "network"
) -> dict[int, str]:
    """Why rows cannot be used, for rows that are not finite in at least one array.

    Args:
        arrays: outputs of a network by name, shape ``(n, ...)`` each.
        of: what computed them, for the message.

    Returns:
        Row -> reason.
    """
    reasons: dict[int, str] = {}
    for name, values in arrays.items():
        for row in np.flatnonzero(~finite_rows(values)).tolist():
            reasons.setdefault(row, f"the {of}'s {name} are not finite")
    return reasons


def _finite(xp: Any, block: Any) -> Any:
    flat = xp.reshape(block, (block.shape[0], math.prod(block.shape[1:])))
    return xp.all(xp.isfinite(flat), axis=1)
