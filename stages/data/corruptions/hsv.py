"""Hue, saturation and value, with the arithmetic of scikit-image, on one plane per quantity.

The bytes of `brightness` and `saturate` are those that scikit-image's ``rgb2hsv`` and ``hsv2rgb``
give. Planes make it several times as fast as pixels of three interleaved values.
"""

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]
"""One number per pixel, ``[n, H, W]``, in ``[0, 1]``."""


def hsv_from_unit(x: NDArray[np.float64]) -> tuple[Plane, Plane, Plane]:
    """Hue, saturation and value of RGB values in ``[0, 1]``, ``[n, H, W, 3]``; grey has hue 0."""
    red, green, blue = (np.ascontiguousarray(x[..., channel]) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    is_grey = spread == 0
    divisor = np.where(is_grey, 1, spread)
    hue = np.where(green == value, 2 + (blue - red) / divisor, (green - blue) / divisor)
    hue = np.where(blue == value, 4 + (red - green) / divisor, hue) / 6
    hue = np.where(is_grey, 0, np.where(hue < 0, hue + 1, hue))
    return hue, np.where(is_grey, 0, spread / np.where(is_grey, 1, value)), value


def unit_from_hsv(hue: Plane, saturation: Plane, value: Plane) -> NDArray[np.float64]:
    """RGB values, ``[n, H, W, 3]``."""
    sector = np.floor(hue * 6)
    fraction = hue * 6 - sector
    low = value * (1 - saturation)
    falling = value * (1 - fraction * saturation)
    rising = value * (1 - (1 - fraction) * saturation)
    at = sector.astype(np.intp) % 6
    x = np.empty((*value.shape, 3))
    x[..., 0] = np.choose(at, (value, falling, low, low, rising, value))
    x[..., 1] = np.choose(at, (rising, value, value, falling, low, low))
    x[..., 2] = np.choose(at, (low, low, rising, value, value, falling))
    return x
