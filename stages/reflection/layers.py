"""Per-sample gradients of any named layer other than the last one.

The last layer needs no backward pass (`stages.reflection.rank_one`). Other layers do: gradients are
computed in batches by ``torch.func.vmap`` over ``torch.func.grad``, dense or randomly projected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.reflection.losses import DEFAULT_LOSS, checked_loss
from stages.reflection.torch_losses import objective

_BLOCK_COLUMNS = 65_536
_KEEP_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Projection:
    """A random projection of gradients to ``size`` numbers, determined by ``seed``.

    Entries have variance ``1 / size``, so inner products and squared distances are preserved in
    expectation (Johnson and Lindenstrauss; with signs: Achlioptas 2003).
    """

    size: int
    kind: Literal["gaussian", "rademacher"] = "gaussian"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.seed < 0 or self.kind not in ("gaussian", "rademacher"):
            raise InputError(
                "projection: expected size >= 1, seed >= 0 and kind gaussian or rademacher, "
                f"found {self.size}, {self.seed} and {self.kind!r}"
            )

    def blocks(self, n_columns: int) -> Iterator[Tensor]:
        """The matrix ``(size, n_columns)`` in float32, as blocks of columns from left to right.

        Each block is generated on the CPU with its own seed, so it is the same on every device.
        """
        for index, start in enumerate(range(0, n_columns, _BLOCK_COLUMNS)):
            shape = (self.size, min(_BLOCK_COLUMNS, n_columns - start))
            # Mixed with the index, so that other uses of the same seed have other streams.
            seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
            generator = torch.Generator().manual_seed(seed)
            if self.kind == "gaussian":
                block = torch.randn(shape, generator=generator)
            else:
                block = torch.randint(0, 2, shape, generator=generator).float() * 2 - 1
            yield block / math.sqrt(self.size)


def layer_gradients(
    network: nn.Module,
    layer: str,
    inputs: Tensor,
    *,
    loss: str = DEFAULT_LOSS,
    M: float | None = None,
    projection: Projection | None = None,
    chunk_rows: int = 32,
) -> Tensor:
    """``dJ/dW`` of one named layer for each sample, against every class in a single pass (Eq. 6).

    Args:
        network: in eval mode; returns logits ``(n, N)``, or a tuple whose last item they are.
        layer: name of a layer with a weight, as in ``network.named_modules()``.
        inputs: shape ``(n, ...)``, on the network's device.
        loss: a name in `stages.reflection.losses.LOSSES`.
        M: target of the ``-m`` losses.
        projection: if given, gradients are projected before they are stored.
        chunk_rows: samples per chunk; memory is ``chunk_rows`` times the size of the weight.

    Returns:
        Shape ``(n, size)``: the weight's elements in torch's order, or the projection's ``size``.

    Raises:
        InputError: no such layer, or the network is in training mode, where batch norm would
            make the samples of a batch depend on each other.
    """
    chunks = layer_gradient_chunks(
        network, layer, inputs, loss=loss, M=M, projection=projection, chunk_rows=chunk_rows
    )
    return torch.cat(list(chunks))


def layer_gradient_chunks(
    network: nn.Module,
    layer: str,
    inputs: Tensor,
    *,
    loss: str = DEFAULT_LOSS,
    M: float | None = None,
    projection: Projection | None = None,
    chunk_rows: int = 32,
) -> Iterator[Tensor]:
    """Like `layer_gradients`, in chunks of rows, for gradients that are written as they come."""
    checked_loss(loss, M=M, variant="single-pass")
    weight = weight_of(network, layer)
    blocks = None if projection is None else _Blocks(projection, weight)
    others = {
        name: value.detach()
        for name, value in [*network.named_parameters(), *network.named_buffers()]
        if name != f"{layer}.weight"
    }

    def loss_of(weight: Tensor, sample: Tensor) -> Tensor:
        state = {**others, f"{layer}.weight": weight}
        output = torch.func.functional_call(network, state, (sample[None],))
        logits: Tensor = (output[-1] if isinstance(output, tuple) else output)[0]
        return objective(loss, logits, torch.ones_like(logits), M=M)

    per_sample = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0))
    for start in range(0, len(inputs), chunk_rows):
        gradients: Tensor = per_sample(weight, inputs[start : start + chunk_rows]).flatten(1)
        yield gradients if blocks is None else blocks.project(gradients)


class _Blocks:
    """A projection matrix for one weight: cached if small, else generated for each use."""

    def __init__(self, projection: Projection, weight: Tensor) -> None:
        self._projection = projection
        self._n_columns = weight.numel()
        is_small = projection.size * self._n_columns * 4 <= _KEEP_BYTES
        self._kept = list(self._made(weight)) if is_small else None

    def project(self, gradients: Tensor) -> Tensor:
        """Project rows ``(n, n_columns)`` to ``(n, size)``."""
        projected = gradients.new_zeros(len(gradients), self._projection.size)
        start = 0
        for block in self._kept or self._made(gradients):
            stop = start + block.shape[1]
            projected += gradients[:, start:stop] @ block.T
            start = stop
        return projected

    def _made(self, like: Tensor) -> Iterator[Tensor]:
        return (block.to(like) for block in self._projection.blocks(self._n_columns))


def weight_of(network: nn.Module, layer: str) -> Tensor:
    """The layer's weight, detached.

    Raises:
        InputError: no such layer (the message lists them), or a network in training mode.
    """
    if any(module.training for module in network.modules()):
        raise InputError(
            "network: expected eval mode for per-sample gradients, found training mode; "
            "call network.eval()"
        )
    weights = {
        name.removesuffix(".weight"): value.detach()
        for name, value in network.named_parameters()
        if name.endswith(".weight")
    }
    if layer not in weights:
        raise InputError(
            f"layer: expected one with a weight ({', '.join(weights)}), found {layer!r}"
        )
    return weights[layer]
