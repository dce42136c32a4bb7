"""The layer whose output maps are made of, and how that output lies in the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isqrt
from typing import Literal

import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.sensing.logit_layers import TOGETHER

Layout = Literal["channels-first", "channels-last", "tokens"]

MAX_EXTRA_TOKENS = 16
"""Class, distillation and register tokens, which precede those of the image."""

N_LISTED = 12
"""Layers that a message lists."""


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """A layer with values at each place of a grid over the image.

    Attributes:
        name: as in ``network.named_modules()``.
        grid: ``(h, w)`` of its output.
        layout: ``channels-first`` ``[n, k, h, w]``, ``channels-last`` ``[n, h, w, k]``, or
            ``tokens`` ``[n, t, k]``, of which the last ``h * w`` are the image row by row.
        width: number of channels ``k``.
    """

    name: str
    grid: tuple[int, int]
    layout: Layout = "channels-first"
    width: int = 0

    def spatial(self, output: Tensor) -> Tensor:
        """The output as ``[n, k, h, w]``, without class and register tokens."""
        if self.layout == "channels-first":
            return output
        if self.layout == "channels-last":
            return output.permute(0, 3, 1, 2)
        height, width = self.grid
        places = output[:, -height * width :]
        return places.reshape(len(places), height, width, -1).permute(0, 3, 1, 2)

    def first(self, output: object) -> Tensor:
        """The output itself, or the first of several; raises ``InputError`` for no tensor."""
        found = output[0] if isinstance(output, tuple) else output
        if not isinstance(found, Tensor):
            raise InputError(f"--layer {self.name}: returns {type(found).__name__}, not a tensor")
        return found


def layers_in(network: nn.Module, last_layer: str, pixels: Tensor) -> list[TargetLayer]:
    """The layers with a grid of more than one place in front of the last layer, in call order.

    Pooling, dropout and identities are left out, and so are modules that return what such a layer
    returned: maps are made of what goes into the pooling.

    Args:
        network: in eval mode.
        last_layer: name of the layer that gives the logits.
        pixels: normalised images ``[n, channels, H, W]``; two or more, to tell the batch from
            other axes.
    """
    return [each for each in _called(network, last_layer, pixels) if each is not None]


def _called(network: nn.Module, last_layer: str, pixels: Tensor) -> Iterator[TargetLayer | None]:
    outputs: list[tuple[str, nn.Module, Tensor]] = []
    is_over: list[bool] = []

    def stop(*_: object) -> None:
        is_over.append(True)

    def note(name: str) -> object:
        def hook(module: nn.Module, _: object, output: object) -> None:
            found = output[0] if isinstance(output, tuple) and output else output
            if isinstance(found, Tensor) and not is_over:
                outputs.append((name, module, found))

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in network.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(note(name)).remove)
        for name in last_layer.split(TOGETHER):
            layer = network.get_submodule(name)
            hooks.callback(layer.register_forward_pre_hook(stop).remove)
        network(pixels)
    pooled = {id(found) for _, module, found in outputs if _is_pooling(module)}
    grids = [
        (found.shape[2], found.shape[3])
        for _, module, found in outputs
        if isinstance(module, nn.Conv2d) and found.ndim == 4
    ]
    last = {name: at for at, (name, _, _) in enumerate(outputs)}
    for at, (name, module, found) in enumerate(outputs):
        is_last, is_map = last[name] == at, not isinstance(module, nn.Identity | nn.Dropout)
        if is_last and is_map and id(found) not in pooled and len(found) == len(pixels):
            yield _laid_out(name, tuple(found.shape), grids)


def _is_pooling(module: nn.Module) -> bool:
    return "Pool" in type(module).__name__


def _laid_out(
    name: str, shape: tuple[int, ...], grids: Sequence[tuple[int, int]]
) -> TargetLayer | None:
    """A layer with an output of this shape; None if the output has no grid."""
    if len(shape) == 4:
        _, first, second, third = shape
        if first == second != third and first > 1:  # images are square, so the grid is
            return TargetLayer(name, (first, second), "channels-last", third)
        is_grid = second * third > 1
        return TargetLayer(name, (second, third), "channels-first", first) if is_grid else None
    if len(shape) == 3 and (grid := _grid_of(shape[1], grids)):
        return TargetLayer(name, grid, "tokens", shape[2])
    return None


def _grid_of(n_tokens: int, grids: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The grid of the tokens: that of the convolution that cut the patches, or the largest square.

    >>> _grid_of(197, []), _grid_of(201, [(14, 14)]), _grid_of(2, [])
    ((14, 14), (14, 14), None)
    """
    for height, width in reversed(grids):
        if height * width > 1 and 0 <= n_tokens - height * width <= MAX_EXTRA_TOKENS:
            return height, width
    side = isqrt(n_tokens)
    is_grid = side > 1 and n_tokens - side * side <= MAX_EXTRA_TOKENS
    return (side, side) if is_grid else None


def named_target(layers: Sequence[TargetLayer], name: str) -> TargetLayer:
    """The layer with a name; raises ``InputError``, which lists the last layers."""
    for each in layers:
        if each.name == name:
            return each
    listed = ", ".join(each.name for each in layers[-N_LISTED:])
    more = f"{len(layers) - N_LISTED:,} others, " if len(layers) > N_LISTED else ""
    raise InputError(
        f"--layer {name}: expected a layer whose output has a place in the image, in front of the "
        f"last layer: {more}{listed}"
    )
