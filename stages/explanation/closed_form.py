"""Maps without a backward pass, for networks that end in global average pooling and a linear layer.

There ``z = W mean(A) + b``, so ``∂z_c/∂A_k = W_ck / hw`` at every place, and all class maps of an
image are one matrix product of its A (method notes, section 19.9).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.explanation.target_layer import TargetLayer
from stages.sensing.model import Sensing


def pooled_maps(activation: Tensor, weight: Tensor, directions: Tensor) -> Tensor:
    """Signed maps of directions in the space of logits, shape ``(n, M, h, w)``.

    Args:
        activation: output of the layer in front of the pooling, ``(n, d, h, w)``.
        weight: W of the last layer, ``(N, d)``.
        directions: shape ``(n, M, N)``.
    """
    n_places = activation.shape[2] * activation.shape[3]
    return torch.einsum("nmd,ndhw->nmhw", directions @ (weight / n_places), activation)


def activation_and_logits(
    sensing: Sensing, layer: TargetLayer, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Output ``(n, d, h, w)`` of a layer, and logits ``(n, N)``, in one forward pass."""
    seen: list[Tensor] = []

    def note(_: nn.Module, __: object, output: object) -> None:
        seen.append(layer.first(output).detach().clone())  # it may be overwritten in place

    handle = sensing.network.get_submodule(layer.name).register_forward_hook(note)
    try:
        with torch.no_grad():
            _, logits = sensing.vectors(pixels)
    finally:
        handle.remove()
    return layer.spatial(seen[-1]), logits
