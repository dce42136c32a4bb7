"""Plasma fractals: height maps that look like clouds."""

import numpy as np
from numpy.typing import NDArray

from stages.data.corruptions.draws import Generators, uniforms
from stages.data.corruptions.pixels import SIDE

N_DRAWS = SIDE * SIDE - 1
"""Random numbers per map: every point except the first corner is displaced once."""


def plasma_fractal(generators: Generators, decay: float) -> NDArray[np.float64]:
    """Height maps in ``[0, 1]``, ``[n, 32, 32]``, by the diamond-square algorithm on a torus.

    A new point is the mean of its four neighbours plus ``U(-w, w) * w``; ``w`` is 100, and is
    divided by ``decay`` at every halving of the grid. Source: Fournier, Fussell & Carpenter,
    1982; the displacement, which is square in ``w``, is CIFAR-10-C's.
    """
    draws = uniforms(generators, (N_DRAWS,), -1, 1)
    n_used = 0
    heights = np.zeros((len(draws), SIDE, SIDE))
    step, wibble = SIDE, 100.0
    while step >= 2:
        half = step // 2
        n_cells = SIDE // step
        # Three points of every cell are new: its centre, and the middle of two of its sides.
        size = n_cells * n_cells
        shifts = draws[:, n_used : n_used + 3 * size].reshape(-1, 3, n_cells, n_cells) * wibble**2
        n_used += 3 * size
        corner = heights[:, ::step, ::step]
        corner_pairs = corner + _next(corner, axis=1)
        centre = (corner_pairs + _next(corner_pairs, axis=2)) / 4 + shifts[:, 0]
        heights[:, half::step, half::step] = centre
        beside = centre + _previous(centre, axis=1) + corner + _next(corner, axis=2)
        heights[:, ::step, half::step] = beside / 4 + shifts[:, 1]
        below = centre + _previous(centre, axis=2) + corner + _next(corner, axis=1)
        heights[:, half::step, ::step] = below / 4 + shifts[:, 2]
        step, wibble = half, wibble / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    heights /= heights.max(axis=(1, 2), keepdims=True)
    return heights


def _next(grid: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.roll(grid, -1, axis=axis)


def _previous(grid: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.roll(grid, 1, axis=axis)
