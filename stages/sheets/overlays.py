"""Maps over images: colours, sizes, and how they are blended."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""RGB, shape ``(height, width, 3)``."""
Numbers = NDArray[np.floating[Any]]

_OPACITY = 0.62
"""Weight of the colours over the grey image, except for jet."""


def coloured(values: Numbers, colour_map: str) -> Pixels:
    """The colours of values in [0, 1], of any shape; the last axis of the result is RGB."""
    steps = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return _colours(colour_map)[steps]


def resized(values: Numbers, height: int, width: int) -> NDArray[np.float32]:
    """A map, shape ``(h, w)``, at another size, by bilinear interpolation between pixel centres.

    Equal to ``torch.nn.functional.interpolate`` with ``mode="bilinear", align_corners=False``.
    """
    wanted = values.astype(np.float32)
    return np.asarray(cv2.resize(wanted, (width, height), interpolation=cv2.INTER_LINEAR))


def overlay(image: Pixels, values: Numbers, colour_map: str = "viridis") -> Pixels:
    """An image with a map over it.

    The colours lie over the grey image, so that hues belong to the map alone. With jet it is the
    overlay of the paper's code: the sum of colours and image, divided by its largest value.

    Args:
        image: RGB, shape ``(height, width, 3)``.
        values: the map, in [0, 1], of any size ``(h, w)``.
        colour_map: a name in `stages.sheets.colour_maps`.

    Returns:
        RGB of the shape of the image.
    """
    colours = coloured(resized(values, *image.shape[:2]), colour_map).astype(np.float32)
    if colour_map == "jet":
        total = colours + image
        return _pixels(255 * total / total.max())
    return _pixels(_OPACITY * colours + (1 - _OPACITY) * _grey(image))


def dimmed(image: Pixels) -> Pixels:
    """The grey image at half its contrast, for a map that has nothing to show."""
    return _pixels(0.5 * _grey(image) + 64)


def _pixels(values: Numbers) -> Pixels:
    pixels: Pixels = np.rint(values).astype(np.uint8)
    return pixels


def _grey(image: Pixels) -> NDArray[np.float32]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.repeat(grey[..., None], 3, axis=2)


@cache
def _colours(colour_map: str) -> Pixels:
    """The 256 colours of a map, RGB, shape ``(256, 3)``."""
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    colours: Pixels = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{colour_map.upper()}"))[
        :, 0, ::-1
    ]
    return colours
