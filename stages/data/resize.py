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


def crop_rule(size: tuple[int, int]) -> str:
    """The rule of ``cropped_pixels`` in words.

    >>> crop_rule((32, 32))
    'bilinear-antialias shorter side ->32, centre 32x32'
    """
    return f"bilinear-antialias shorter side ->{max(size)}, centre {size[0]}x{size[1]}"


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
    """Pixels of an opened image file, stretched to ``uint8 [H, W, 3]``.

    Raises:
        ValueError: the file holds more than eight bits a channel.
    """
    image = _in_rgb(image)
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image)


def cropped_pixels(image: Image.Image, size: tuple[int, int]) -> NDArray[Any]:
    """The same with the shorter side resized to the longer one of ``size``, and the centre cut out.

    As torchvision's ``Resize`` and ``CenterCrop`` do one after the other. Raises ``ValueError``.
    """
    image = _in_rgb(image)
    side, (width, height) = max(size), image.size
    if min(width, height) != side:
        shorter = min(width, height)
        longer = side * max(width, height) // shorter
        across = (side, longer) if width <= height else (longer, side)
        image = image.resize(across, Image.Resampling.BILINEAR)
    left, top = (round((image.size[axis] - size[1 - axis]) / 2) for axis in (0, 1))
    return np.asarray(image.crop((left, top, left + size[1], top + size[0])))


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_MODES:
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns when a transparent palette goes straight to RGB
    return image if image.mode == "RGB" else image.convert("RGB")
