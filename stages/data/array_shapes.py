"""Common shapes of image arrays that cannot be read as they are, and how to convert them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError


def how_to_convert(images: NDArray[Any]) -> str:
    """How to convert an array of a common shape or dtype; empty for any other."""
    if np.issubdtype(images.dtype, np.floating):
        return "convert values in [0, 1] first with (255 * array).round().astype('uint8')"
    if images.dtype != np.uint8:
        return ""
    if images.ndim == 2:
        return "if it is one grey image, save array[None]"
    if images.ndim == 4 and images.shape[3] == 4:
        return "if the last of 4 channels is alpha, save array[..., :3]"
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return "if the channels come first, save array.transpose(0, 2, 3, 1)"
    if images.ndim == 4 and images.shape[1] == 4:
        return (
            "if channels come first and the last is alpha, save array[:, :3].transpose(0, 2, 3, 1)"
        )
    return ""


def check_unambiguous(images: NDArray[np.uint8], where: str) -> None:
    """Refuse ``[a, b, c]`` that may be a single image; call it only if there are no row labels.

    Raises:
        InputError: the message says how to save one image, and how to save several.
    """
    if images.ndim != 3:
        return
    n, height, width = images.shape
    if width in (1, 3, 4) and height > width:
        one = "array[None, ..., :3]" if width == 4 else "array[None]"
    elif n == 3:
        one = "array.transpose(1, 2, 0)[None]"
    else:
        return
    raise InputError(
        f"{where}: {list(images.shape)} may be one image or {n} grey ones of {height}x{width}, "
        f"expected [n, H, W, C]; save {one} for one image, array[..., None] for {n} grey ones"
    )
