"""From bytes to the unit range and back, the way CIFAR-10-C does it."""

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
"""A block of RGB images, ``[n, 32, 32, 3]``."""

SIDE = 32
"""Height and width, in pixels, for which every constant here was chosen."""


def unit_from_bytes(images: Images) -> NDArray[np.float64]:
    """The images in ``[0, 1]``."""
    return np.divide(images, 255.0, dtype=np.float64)


def bytes_from_unit(values: NDArray[np.floating]) -> Images:
    """The values, clipped to ``[0, 1]``, as bytes.

    They are truncated, not rounded: the released arrays were made by a plain cast. Half a grey
    level is lost on average, which a rounding re-implementation would not show.
    """
    truncated: Images = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return truncated
