"""Gradients at the last layer by autograd: slow, simple, and independent of the closed forms.

Tests compare `stages.reflection.losses` with them, and benchmarks time both. The losses are torch's
own with their default reductions; nothing here uses a derivative.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.reflection.losses import checked_loss
from stages.reflection.torch_losses import objective


def serial_gradients(
    layer: nn.Linear,
    features: Tensor,
    *,
    loss: str,
    M: float | None = None,
    variant: str = "single-pass",
) -> Tensor:
    """``dJ/dW`` with one image for each backward pass, as the paper extracts it.

    Args:
        layer: the last layer, ``N`` by ``d``.
        features: its input, shape ``(n, d)``.
        loss: a name in `stages.reflection.losses.LOSSES`.
        M: target of the ``-m`` losses.
        variant: ``single-pass`` is one pass an image; ``stack`` and ``sum`` are ``N``.

    Returns:
        Shape ``(n, N * d)``, class-major.
    """
    checked_loss(loss, M=M, variant=variant)
    if variant == "single-pass":
        everyone = torch.ones(layer.out_features, device=features.device)
        rows = [_one_pass(layer, row, everyone, loss=loss, M=M) for row in features]
        return torch.stack(rows).flatten(1)
    passes = one_hot_passes(layer, features, loss=loss, M=M)
    if variant == "sum":
        return passes.sum(dim=1).flatten(1)
    own = torch.arange(layer.out_features, device=features.device)
    return passes[:, own, own].flatten(1)


def one_hot_passes(
    layer: nn.Linear, features: Tensor, *, loss: str, M: float | None = None
) -> Tensor:
    """The ``N`` gradients of each image, one backward pass for each class (Eq. 4 of the paper).

    Returns:
        Shape ``(n, N, N, d)``; ``[i, I]`` is ``dJ/dW`` of image ``i`` against class ``I`` alone.
    """
    targets = torch.eye(layer.out_features, device=features.device)
    return torch.stack(
        [
            torch.stack([_one_pass(layer, row, target, loss=loss, M=M) for target in targets])
            for row in features
        ]
    )


def vmap_gradients(
    layer: nn.Linear,
    features: Tensor,
    *,
    loss: str,
    M: float | None = None,
    variant: str = "single-pass",
) -> Tensor:
    """The same as `serial_gradients`, by ``torch.func.vmap`` over ``torch.func.grad``.

    Returns:
        Shape ``(n, N * d)``, class-major.
    """
    checked_loss(loss, M=M, variant=variant)
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()

    def loss_of(weight: Tensor, row: Tensor, classes: Tensor) -> Tensor:
        return objective(loss, functional.linear(row, weight, bias), classes, M=M)

    of_row = torch.func.grad(loss_of)
    if variant == "single-pass":
        everyone = torch.ones(layer.out_features, device=features.device)
        gradients: Tensor = torch.func.vmap(partial(of_row, weight, classes=everyone))(features)
        return gradients.flatten(1)
    # One vmap over all pairs of row and class: with the classes in a vmap of their own, torch 2.13
    # mistakes the shapes in MSELoss and SmoothL1Loss.
    n, n_classes = len(features), layer.out_features
    pairs = features.repeat_interleave(n_classes, dim=0)
    targets = torch.eye(n_classes, device=features.device).repeat(n, 1)
    of_pairs = torch.func.vmap(of_row, in_dims=(None, 0, 0))
    passes: Tensor = of_pairs(weight, pairs, targets).unflatten(0, (n, n_classes))
    if variant == "sum":
        return passes.sum(dim=1).flatten(1)
    own = torch.arange(layer.out_features, device=features.device)
    return passes[:, own, own].flatten(1)


def _one_pass(
    layer: nn.Linear, row: Tensor, classes: Tensor, *, loss: str, M: float | None
) -> Tensor:
    """One backward pass; ``(N, d)``. The layer's own ``grad`` is not changed."""
    value = objective(loss, layer(row), classes, M=M)
    (gradient,) = torch.autograd.grad(value, [layer.weight])
    return gradient
