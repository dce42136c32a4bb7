"""Bringing images of any size and mode to ``uint8 [H, W, 3]``: the one rule for every source."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Wider than eight bits: converting these to RGB clips their values without a word.
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def resize_rule(native: tuple[int, int] | None, size: tuple[int, int]) -> str:
    """The rule in words, as a plan records it.

    Args:
        native: ``(H, W)`` as stored; ``None`` where every image may have its own.
        size: ``(H, W)`` wanted.

    >>> resize_rule((8, 8), (32, 32))
    'bilinear-antialias 8x8->32x32'
    """
    wanted = f"->{size[0]}x{size[1]}"
    if native is None:
        return f"bilinear-antialias {wanted} (stretched)"
    return "none" if native == size else f"bilinear-antialias {native[0]}x{native[1]}{wanted}"


def rgb_array(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A writable copy as ``uint8 [n, H, W, 3]``; grey becomes three equal channels.

    Args:
        images: ``uint8 [n, h, w]``, ``[n, h, w, 1]`` or ``[n, h, w, 3]``; may be memory-mapped.
        size: ``(H, W)``; other sizes are resized by PIL's bilinear filter, which averages over all
            pixels under the kernel when it shrinks.
    """
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.shape[1:3] != size:
        images = _resized(images, size)
    if images.ndim == 3:
        return np.repeat(images[..., np.newaxis], 3, axis=3)
    return np.array(images, dtype=np.uint8, copy=True, order="C", subok=False)


def _resized(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    resized = np.empty((len(images), *size, *images.shape[3:]), dtype=np.uint8)
    for row, image in enumerate(images):
        pixels = Image.fromarray(np.ascontiguousarray(image))
        resized[row] = np.asarray(pixels.resize(size[::-1], Image.Resampling.BILINEAR))
    return resized


def rgb_pixels(image: Image.Image, size: tuple[int, int]) -> NDArray[Any]:
    """Pixels of an opened image file as ``uint8 [H, W, 3]``.

    Raises:
        ValueError: the file holds more than eight bits a channel.
    """
    if image.mode in _WIDE_MODES:
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns when a transparent palette goes straight to RGB
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image)
