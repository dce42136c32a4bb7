"""Apply a corruption at one of its severities to a block of images."""

import math
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.data.corruptions.draws import generators_of
from stages.data.corruptions.levels import COLLECTIONS
from stages.data.corruptions.names import SIDES, Collection
from stages.data.corruptions.pixels import Images

BLOCK_PIXELS = 128 * 32 * 32
"""Pixels processed at once: few enough for their floats to fit into a core's cache."""


def corrupt(
    images: Images,
    name: str,
    severity: int,
    rows: NDArray[np.integer],
    seed: int,
    *,
    collection: Collection = "cifar10c",
) -> Images:
    """Corrupt images, ``uint8 [n, H, W, 3]``, and return a new array.

    Image ``i`` only depends on ``default_rng([seed, crc32(name), severity, rows[i]])``, so neither
    the split into calls nor the order of the images changes a byte.

    Args:
        images: ``uint8 [n, H, W, 3]`` RGB; of any size for ``imagenetc``, else of that for which
            the constants were chosen (``SIDES``).
        name: one of ``names_of(collection)``.
        severity: 1 to the number of levels.
        rows: ``[n]``, the position of each image in its data set.
        seed: zero or more.
        collection: collection that defines the levels.

    Raises:
        ValueError: an unknown name or severity, or arrays of another shape or type.
    """
    known = COLLECTIONS[collection]
    if name not in known:
        raise ValueError(f"corruption {name!r} is unknown; {collection} has {', '.join(known)}")
    corruption, out = known[name], np.empty_like(images)
    n_levels = len(corruption.levels)
    if not 1 <= severity <= n_levels:
        raise ValueError(f"severity of {name} must be 1 to {n_levels}, got {severity}")
    _use_one_thread()
    _check(images, name, len(rows), collection)
    level = corruption.levels[severity - 1]
    block_rows = max(1, BLOCK_PIXELS // math.prod(images.shape[1:3]))
    for start in range(0, len(images), block_rows):
        block = slice(start, start + block_rows)
        if corruption.is_random:
            generators = generators_of(name, severity, rows[block], seed)
            out[block] = corruption.function(images[block], generators, *level)
        else:
            out[block] = corruption.function(images[block], *level)
    return out


def _check(images: Images, name: str, n_rows: int, collection: Collection) -> None:
    size = images.shape[1:3]
    if collection != "imagenetc" or images.ndim != 4:
        size = (SIDES[collection],) * 2
    if images.dtype != np.uint8 or images.shape != (n_rows, *size, 3):
        raise ValueError(
            f"{name} takes uint8 images of shape {(n_rows, *size, 3)}, one for each row, got "
            f"{images.dtype} {images.shape}"
        )


@cache
def _use_one_thread() -> None:
    """Keep OpenCV to one thread: the images are small, and workers fill the cores."""
    cv2.setNumThreads(1)
