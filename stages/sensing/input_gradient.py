"""The gradient of a loss with respect to the pixels of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stages.sensing.model import Sensing


def input_gradient(
    sensing: Sensing, images: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Gradient of each image's loss with respect to its normalised pixels, shaped as the images.

    Its signs are those of the gradient with respect to the pixels themselves. Where it is NaN there
    is no direction: such pixels become NaN, and so the image becomes a failed row.

    Args:
        sensing: in eval mode.
        images: ``[n, H, W, 3]``, values in [0, 255].
        loss: maps features ``[n, d]`` and logits ``[n, N]`` to one number per image, ``[n]``.
    """
    pixels = ((images.to(torch.float32) - sensing.mean) * sensing.scale).permute(0, 3, 1, 2)
    with torch.enable_grad():
        pixels.requires_grad_(True)
        losses = loss(*sensing.vectors(pixels))
        (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    return gradient.permute(0, 2, 3, 1)
