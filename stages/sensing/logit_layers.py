"""The layers that give a network's logits, as one linear map ``z = W f + b``.

Most networks end in one ``nn.Linear``: ``f`` is its input. There are two other kinds.

- A 1x1 convolution whose output is averaged over the image. The average of ``W x + b`` is ``W`` of
  the average plus ``b``, so ``f`` is its input, averaged over the image.
- The mean of ``k`` layers, as in DeiT with a distillation token. ``W`` has their weights side by
  side, and ``f`` their inputs divided by ``k``, so that ``dJ/dW`` is that of the layers themselves.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.errors import InputError

LogitLayer = nn.Linear | nn.Conv2d

TOGETHER = "+"
"""Joins the names of layers whose mean is the logits: ``head+head_dist``."""


def is_logit_layer(layer: nn.Module) -> bool:
    """Whether a layer is linear in the features: ``nn.Linear``, or a 1x1 convolution of all."""
    if isinstance(layer, nn.Linear):
        return True
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
    )


def logit_layers(network: nn.Module, names: str) -> list[LogitLayer]:
    """The layers of a network with these names, in this order.

    Args:
        network: the network.
        names: name of a layer, or several with ``+`` between them.

    Raises:
        InputError: there is no such layer, or it is of another kind.
    """
    found: list[LogitLayer] = []
    for name in names.split(TOGETHER):
        try:
            layer = network.get_submodule(name)
        except AttributeError as error:
            raise InputError(f"the network has no layer {name!r}") from error
        if not is_logit_layer(layer):
            kind = type(layer).__name__
            raise InputError(
                f"expected layer {name!r} to be linear or a 1x1 convolution, found {kind}"
            )
        assert isinstance(layer, nn.Linear | nn.Conv2d)  # for the type checker
        found.append(layer)
    return found


def averaged(values: Tensor) -> Tensor:
    """``[n, d]`` as it is; ``[n, d, h, w]`` averaged over the image."""
    return values.mean((2, 3)) if values.ndim == 4 else values


def side_by_side(inputs: Sequence[Tensor]) -> Tensor:
    """``f``, ``[n, d]``, of the averaged inputs of the layers."""
    return inputs[0] if len(inputs) == 1 else torch.cat([*inputs], dim=1) / len(inputs)


def joint_weight(weights: Sequence[Tensor]) -> Tensor:
    """``W``, ``[n_classes, d]``, of the weights of the layers."""
    flat = [weight.flatten(1) for weight in weights]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def joint_bias(biases: Sequence[Tensor | None]) -> Tensor | None:
    """``b``, ``[n_classes]``, of the biases of the layers; None if none has a bias."""
    given = [bias for bias in biases if bias is not None]
    if len(biases) == 1 or not given:
        return biases[0]
    return torch.stack(given).sum(0) / len(biases)


def linear_map(layers: Sequence[LogitLayer]) -> tuple[Tensor, Tensor]:
    """``W`` and ``b`` in float32, detached, with parametrisations applied."""
    weight = joint_weight([layer.weight.detach().float() for layer in layers])
    bias = joint_bias(
        [None if each.bias is None else each.bias.detach().float() for each in layers]
    )
    return weight, weight.new_zeros(len(weight)) if bias is None else bias
