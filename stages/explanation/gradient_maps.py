"""Maps of any layer by backward passes: one for each map of a whole batch of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.explanation.maps import Combine
from stages.explanation.target_layer import TargetLayer


@contextmanager
def recorded(network: nn.Module, layer: TargetLayer) -> Iterator[list[Tensor]]:
    """Record the output of a layer as a leaf of the graph, of each call of the layer.

    The layers behind it get a copy: one of them may be a ReLU that overwrites its input, which
    breaks the hooks of ``register_full_backward_hook``, and the recorded values.
    """
    seen: list[Tensor] = []

    def replace(_: nn.Module, __: object, output: object) -> object:
        leaf = layer.first(output).detach().clone().requires_grad_(True)
        seen.append(leaf)
        copy = leaf.clone()
        return (copy, *output[1:]) if isinstance(output, tuple) else copy

    handle = network.get_submodule(layer.name).register_forward_hook(replace)
    try:
        yield seen
    finally:
        handle.remove()


def gradients_at(
    network: nn.Module, layer: TargetLayer, logits_of: Callable[[], Tensor]
) -> tuple[Combine, Tensor]:
    """A function from directions to signed maps, and the logits; runs one forward pass.

    Args:
        network: in eval mode; its parameters need no gradients.
        layer: a layer of it.
        logits_of: sends the images through the network and returns the logits, ``(n, N)``.

    Raises:
        InputError: the logits do not depend on the layer.
    """
    with torch.enable_grad(), recorded(network, layer) as seen:
        logits = logits_of()
    if not seen:
        raise InputError(f"--layer {layer.name}: the network does not call it")
    leaf = seen[-1]  # of a module that is called several times, the last call
    activation = layer.spatial(leaf.detach())

    def combine(directions: Tensor) -> Tensor:
        return torch.stack(
            [
                weighted(activation, layer.spatial(_gradient(logits, leaf, each, layer.name)))
                for each in directions.unbind(dim=1)
            ],
            dim=1,
        )

    return combine, logits.detach()


def weighted(activation: Tensor, gradient: Tensor) -> Tensor:
    """Channels weighted by their mean gradient, ``Σ_k α_k A_k``, shape ``(n, h, w)``."""
    return torch.einsum("nk,nkhw->nhw", gradient.mean((2, 3)), activation)


def _gradient(logits: Tensor, leaf: Tensor, direction: Tensor, name: str) -> Tensor:
    found = None
    if logits.requires_grad:
        (found,) = torch.autograd.grad(
            logits, leaf, direction.to(logits.dtype), retain_graph=True, allow_unused=True
        )
    if found is None:
        raise InputError(f"--layer {name}: the logits do not depend on its output")
    return found
