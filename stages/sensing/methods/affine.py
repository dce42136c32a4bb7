"""Affine transformations of a batch of images with bilinear interpolation, as Pillow's."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

ROUNDING = 1e-3
"""Added before values are truncated, so that those that should be whole are not one too low."""


def transformed(images: Tensor, matrices: NDArray[np.float64]) -> Tensor:
    """Images whose pixel at ``(x, y)`` is that of the image at ``(a x + b y + c, d x + e y + f)``.

    Coordinates are those of pixel centres, ``.5`` first. Pixels from outside the image are black,
    the outermost pixels are repeated up to its edge, and values are truncated, as by
    ``Image.transform(size, AFFINE, matrix, BILINEAR)`` of Pillow.

    Args:
        images: ``[n, H, W, 3]`` uint8.
        matrices: ``[n, 6]``, ``(a, b, c, d, e, f)`` of each image.
    """
    n, height, width, _ = images.shape
    a, b, c, d, e, f = matrices.T
    b, d = b * height / width, d * width / height
    # The same map between coordinates from -1 to 1.
    x_row = [a, b, a + b + 2 * c / width - 1]
    y_row = [d, e, d + e + 2 * f / height - 1]
    theta = np.stack([np.stack(x_row, 1), np.stack(y_row, 1)], 1)
    on_device = torch.from_numpy(theta.astype(np.float32)).to(images.device)
    grid = functional.affine_grid(on_device, [n, 3, height, width], align_corners=False)
    pixels = functional.grid_sample(
        images.permute(0, 3, 1, 2).float(), grid, padding_mode="border", align_corners=False
    )
    is_inside = ((grid >= -1) & (grid < 1)).all(3)
    return pixels.add_(ROUNDING).mul_(is_inside[:, None]).to(torch.uint8).permute(0, 2, 3, 1)
