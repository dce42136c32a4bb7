"""Convert between bytes and the unit range as CIFAR-10-C and ImageNet-C do."""

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
"""A block of RGB images, ``[n, H, W, 3]``."""

SIDE = 32
"""Height and width in pixels for which the constants of CIFAR-10-C were chosen."""


def unit_from_bytes(images: Images) -> NDArray[np.float64]:
    """Convert bytes to values in ``[0, 1]``."""
    return np.divide(images, 255.0, dtype=np.float64)


def bytes_from_unit(values: NDArray[np.floating]) -> Images:
    """Clip values to ``[0, 1]`` and convert them to bytes.

    Values are truncated, not rounded, because the released data were made by a plain cast. This
    loses half a grey level on average, which a re-implementation with rounding would not.
    """
    truncated: Images = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return truncated
