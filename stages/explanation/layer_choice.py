"""Choose the layer that maps are made of, and the way in which they are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.errors import InputError
from stages.explanation.closed_form import activation_and_logits, pooled_maps
from stages.explanation.gradient_maps import gradients_at
from stages.explanation.maps import Combine
from stages.explanation.target_layer import TargetLayer, layers_in, named_target
from stages.sensing.model import Sensing

POOLING_TOLERANCE = 1e-5
"""Largest difference between f and the mean of A, relative to the largest feature."""


def chosen_layer(sensing: Sensing, pixels: Tensor, name: str | None = None) -> TargetLayer:
    """The layer with a name, or the default: the one in front of the global pooling.

    That is the last layer with a grid of more than one place whose places the logits depend on.
    Among layers of tokens, it is the last one as wide as the features: behind the last attention
    of a network that reads its class token alone, the logits depend on no place.

    Args:
        sensing: the network, with all its layers.
        pixels: two or more normalised images, ``[n, channels, H, W]``.
        name: name of a layer.

    Raises:
        InputError: there is no such layer, or none that fits.
    """
    layers = layers_in(sensing.network, sensing.card.last_layer, pixels)
    if name is not None:
        found = named_target(layers, name)
        _strength(sensing, found, pixels)  # raises if the logits do not depend on it
        return found
    widths = (sensing.card.feature_dim, sensing.card.feature_dim // len(sensing.taps))
    for layer in reversed(layers):
        is_wide = layer.layout != "tokens" or layer.width in widths
        if is_wide and _strength(sensing, layer, pixels) > 0:
            return layer
    raise InputError(
        f"model {sensing.card.name}: no layer's output has a place in the image; expected a "
        "convolution, or tokens of patches; name one with --layer"
    )


def _strength(sensing: Sensing, layer: TargetLayer, pixels: Tensor) -> float:
    """Largest magnitude in the maps of the sum of random logits; 0 if they depend on no place."""
    combine, logits = gradients_at(sensing.network, layer, lambda: sensing.vectors(pixels)[1])
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(logits.shape, generator=generator).to(logits)
    return float(combine(direction[:, None]).abs().max())


def is_pooled(sensing: Sensing, layer: TargetLayer, pixels: Tensor) -> bool:
    """Whether f is the mean over the image of the layer's output, so that the closed form holds."""
    activation, _ = activation_and_logits(sensing, layer, pixels)
    with torch.no_grad():
        features, _ = sensing.vectors(pixels)
    means = activation.float().mean((2, 3))
    if means.shape != features.shape:
        return False
    apart = float((means - features).abs().max())
    return apart <= POOLING_TOLERANCE * float(features.abs().max())


def combining(
    sensing: Sensing, layer: TargetLayer, pixels: Tensor, *, in_closed_form: bool
) -> tuple[Combine, Tensor]:
    """A function from directions to signed maps, and the logits ``(n, N)``; one forward pass."""
    if not in_closed_form:
        return gradients_at(sensing.network, layer, lambda: sensing.vectors(pixels)[1])
    activation, logits = activation_and_logits(sensing, layer, pixels)
    return lambda directions: pooled_maps(activation, sensing.weight, directions), logits
