"""Operations on the values of images as tables from 256 levels to 256: those of AugMix.

Each is that of Pillow's ``ImageOps`` on an RGB image, for a batch at once, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 256


def levels_like(images: Tensor) -> Tensor:
    """The table that changes nothing, ``[256]`` int64, on the device of the images."""
    return torch.arange(LEVELS, device=images.device)


def looked_up(images: Tensor, tables: Tensor) -> Tensor:
    """Map every value of images through a table.

    Args:
        images: ``[n, H, W, 3]`` uint8.
        tables: ``[n, 3, 256]`` uint8, one for each image and channel.
    """
    n, height, width, _ = images.shape
    values = images.permute(0, 3, 1, 2).reshape(n, 3, -1).long()
    return tables.gather(2, values).reshape(n, 3, height, width).permute(0, 2, 3, 1)


def autocontrast(images: Tensor) -> Tensor:
    """Tables that stretch the values of each channel to 0 to 255; ``[n, 3, 256]`` uint8."""
    low, high = images.amin((1, 2)).double(), images.amax((1, 2)).double()
    # Not ``255 / x``, for which torch multiplies by the reciprocal.
    scale = torch.full_like(low, 255).div((high - low).clamp(min=1))
    levels = levels_like(images)
    # Pillow truncates; the order of operations is its own, which decides about whole numbers.
    stretched = (levels * scale[..., None] - (low * scale)[..., None]).trunc().clamp(0, 255)
    return torch.where((high > low)[..., None], stretched, levels.double()).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Tables that equalise the histogram of each channel, ``[n, 3, 256]``."""
    counts = histograms(images)
    # The highest level that occurs does not count: a step is a 255th of the other pixels.
    levels = levels_like(images)
    highest = torch.where(counts > 0, levels, -1).amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // 255
    before = counts.cumsum(2) - counts
    equal = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, equal, levels).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Tables that keep the highest ``bits`` ``[n]`` of each value, ``[n, 3, 256]`` uint8."""
    step = 2 ** (8 - bits[:, None, None])
    return (levels_like(images) // step * step).expand(-1, 3, -1).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Tables that invert values from ``threshold`` ``[n]`` on, ``[n, 3, 256]`` uint8."""
    levels = levels_like(images)
    inverted = torch.where(levels < threshold[:, None, None], levels, 255 - levels)
    return inverted.expand(-1, 3, -1).to(torch.uint8)


def histograms(images: Tensor) -> Tensor:
    """Histogram of each channel of each image, ``[n, 3, 256]`` int64."""
    n = len(images)
    first = LEVELS * torch.arange(3 * n, device=images.device).reshape(n, 1, 1, 3)
    counts = torch.bincount((images + first).flatten(), minlength=3 * n * LEVELS)
    return counts.reshape(n, 3, LEVELS)
