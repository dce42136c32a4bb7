"""Plasma fractals: height maps that look like clouds."""

import numpy as np
from numpy.typing import NDArray

from stages.data.corruptions.draws import Generators, uniforms


def plasma_fractal(
    generators: Generators, decay: float, size: tuple[int, int]
) -> NDArray[np.float64]:
    """Height maps in ``[0, 1]``, ``[n, *size]``, by the diamond-square algorithm on a torus.

    A new point is the mean of its four neighbours plus ``U(-w, w) * w``; ``w`` is 100, and is
    divided by ``decay`` at every halving of the grid. Source: Fournier, Fussell & Carpenter,
    1982. As in CIFAR-10-C and ImageNet-C, the displacement is square in ``w``, and the side of a
    map is a power of two before it is cut to size.
    """
    side = 1 << (max(size) - 1).bit_length()
    # Every point except the first corner is displaced once.
    draws = uniforms(generators, (side * side - 1,), -1, 1)
    n_used = 0
    heights = np.zeros((len(draws), side, side))
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2
        n_cells = side // step
        # Three points of every cell are new: its centre, and the middle of two of its sides.
        n_new = n_cells * n_cells
        shifts = draws[:, n_used : n_used + 3 * n_new].reshape(-1, 3, n_cells, n_cells) * wibble**2
        n_used += 3 * n_new
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
    return heights[:, : size[0], : size[1]]


def _next(grid: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.roll(grid, -1, axis=axis)


def _previous(grid: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.roll(grid, 1, axis=axis)
