"""Patches of an image as UNIQUE reads them: half size, YGCr, mean removed, whitened.

Source: Temel, Prabhushankar & AlRegib, "UNIQUE: Unsupervised Image Quality Estimation", IEEE Signal
Processing Letters 2016, and its published MATLAB code (olivesgatech/Stochastic-Surprisal).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PATCH = 8
"""Side of a patch, in pixels of the image at half size."""

PATCH_VALUES = PATCH * PATCH * 3
EPSILON = 0.1
"""Added to the eigenvalues of the covariance in whitening."""

FLAT = 1e-9
"""Differences of patches up to this are rounding errors."""

Floats = NDArray[np.float64]

_TAPS = np.array([-12, -36, 116, 444, 444, 116, -36, -12]) / 1024.0
"""The cubic kernel with a = -0.5, stretched to twice its width, at -3.5, -2.5, ... 3.5 pixels."""

_LUMA = np.array([65.481, 128.553, 24.966])
_RED = np.array([112.0, -93.786, -18.214])


def halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image at half its size, rounded up, as MATLAB's ``imresize(image, 0.5)`` computes it.

    Bicubic with antialiasing: eight taps per axis, rows first, mirrored at the border, rounded to
    8 bits after each axis. Pillow's bicubic filter has the same taps; it starts with the columns
    and cuts the kernel off at the border, so single pixels differ by one or two grey levels.

    Args:
        image: ``uint8 [H, W, 3]``.

    >>> halved(np.full((5, 4, 3), 7, np.uint8)).shape
    (3, 2, 3)
    """
    return _halved_rows(_halved_rows(image).swapaxes(0, 1)).swapaxes(0, 1)


def _halved_rows(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    n = -(-len(image) // 2)
    padded = np.pad(image, [(3, 4), (0, 0), (0, 0)], mode="symmetric").astype(np.float64)
    total = np.zeros((n, *image.shape[1:]))
    for at, tap in enumerate(_TAPS):
        total += tap * padded[at : at + 2 * n : 2]
    return np.clip(np.floor(total + 0.5), 0, 255).astype(np.uint8)


def ygcr(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Y and Cr of 8-bit YCbCr (BT.601, Y in 16-235, Cr in 16-240), with G between them.

    Args:
        image: ``uint8 [H, W, 3]`` RGB.

    >>> ygcr(np.array([[[255, 255, 255], [0, 0, 0]]], np.uint8)).tolist()
    [[[235, 255, 128], [16, 0, 128]]]
    """
    rgb = image.astype(np.float64) / 255
    luma, red = 16 + rgb @ _LUMA, 128 + rgb @ _RED
    rounded = np.floor(np.stack([luma, red], axis=-1) + 0.5).astype(np.uint8)
    return np.stack([rounded[..., 0], image[..., 1], rounded[..., 1]], axis=-1)


def patches_of(image: NDArray[np.uint8]) -> Floats:
    """The 8x8 patches that tile an image, one per column.

    Args:
        image: ``uint8 [H, W, 3]``; an incomplete border at the bottom and on the right is dropped.

    Returns:
        Shape ``(192, n)``, in [0, 1]. Patches follow each other row by row of the image; the values
        of a patch are in MATLAB's order: down a column, then the columns, then the channels.

    Raises:
        ValueError: the image is smaller than a patch.
    """
    n_down, n_across = image.shape[0] // PATCH, image.shape[1] // PATCH
    if n_down == 0 or n_across == 0:
        height, width = image.shape[:2]
        raise ValueError(
            f"{height}x{width} pixels at half size, expected at least {PATCH}x{PATCH} for a patch"
        )
    cut = image[: n_down * PATCH, : n_across * PATCH] / 255.0
    tiles = cut.reshape(n_down, PATCH, n_across, PATCH, 3)
    columns: Floats = tiles.transpose(4, 3, 1, 0, 2).reshape(PATCH_VALUES, n_down * n_across)
    return columns


def centred(patches: Floats) -> Floats:
    """Patches without their mean patch, shape ``(192, n)``."""
    found: Floats = patches - patches.mean(axis=1, keepdims=True)
    return found


def whitening(patches: Floats, epsilon: float = EPSILON) -> Floats:
    """The ZCA matrix ``U diag(1 / sqrt(s + epsilon)) U'`` of centred patches, shape ``(192, 192)``.

    ``U diag(s) U'`` is their covariance ``P P' / n``.
    """
    values, vectors = np.linalg.eigh(patches @ patches.T / patches.shape[1])
    scale = 1 / np.sqrt(np.maximum(values, 0) + epsilon)
    whitens: Floats = (vectors * scale) @ vectors.T
    return whitens


def whitened_patches(image: NDArray[np.uint8]) -> Floats:
    """What UNIQUE reads of an image: its patches at half size, whitened by their own covariance.

    Args:
        image: ``uint8 [H, W, 3]`` RGB.

    Returns:
        Shape ``(192, n)``.

    Raises:
        ValueError: the image is smaller than two patches, or all its patches are equal, as those of
            one colour are: there is nothing to whiten.
    """
    patches = centred(patches_of(ygcr(halved(image))))
    if not np.any(np.abs(patches) > FLAT):
        raise ValueError("all its patches are equal, expected an image with some structure")
    whitened: Floats = whitening(patches) @ patches
    return whitened
