"""Uniform numbers that belong to rows: they do not depend on how the rows are split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS = 4096


def row_draws(seed: int, start: int, stop: int, *, stream: int = 0) -> NDArray[np.float64]:
    """A number in [0, 1) for each of the rows ``[start, stop)``, shape ``(stop - start,)``.

    Different streams of a seed are independent.

    >>> bool((row_draws(7, 5000, 5003) == row_draws(7, 0, 9000)[5000:5003]).all())
    True
    """
    first, last = start // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)
    blocks = [
        np.random.default_rng([seed, stream, at]).random(_BLOCK_ROWS) for at in range(first, last)
    ]
    return np.concatenate(blocks or [np.empty(0)])[start - first * _BLOCK_ROWS :][: stop - start]
