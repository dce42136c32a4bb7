"""Batches for training heads of several seeds at once: each seed has its own rows and dropout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.introspection.first_layer import StackedGradients
from stages.introspection.fitted_scaling import FittedScaling
from stages.reflection.rank_one import RankOneGradient


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's ``inputs (K, n, in)``, ``labels (K, n)`` and dropout ``masks``.

    There is a mask ``(K, n, width)`` of 0 and 1 / (1 - p) for each hidden layer, or none.
    """

    inputs: Tensor | StackedGradients
    labels: Tensor
    masks: list[Tensor]


@dataclass(frozen=True, eq=False)
class Batches:
    """The training rows, in factored form or materialised per batch into reused memory.

    Args:
        vectors: the inputs of the rows, factored, on the device.
        labels: labels of the rows, shape ``(n,)``.
        seeds: the ``K`` seeds.
        in_factors: keep the rows factored.
        batch_rows: rows per batch; the last one of an epoch may be smaller.
        layers: widths of the hidden layers, for the masks.
        dropout: probability after each of them.
        dtype: dtype of the inputs.
        scaling: a scaling that was fitted to the rows, for materialised inputs.
        columns: further numbers of the rows, ``(n, k)``, after those of the vectors; they are
            always materialised.
    """

    vectors: RankOneGradient[Tensor]
    labels: Tensor
    seeds: tuple[int, ...]
    batch_rows: int
    in_factors: bool = False
    layers: tuple[int, ...] = ()
    dropout: float = 0.0
    dtype: torch.dtype = torch.float32
    scaling: FittedScaling | None = None
    columns: Tensor | None = None
    _memory: dict[int, Tensor] = field(default_factory=dict, init=False)

    def epoch(self, unit: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; a batch is valid until the next one is requested.

        Order and dropout of a seed only depend on ``(seed, unit)``, not on the other seeds.
        """
        n = len(self.labels)
        orders = [np.random.default_rng([seed, unit]).permutation(n) for seed in self.seeds]
        rows = torch.from_numpy(np.stack(orders)).to(self.labels.device)
        generators = [self._generator(seed, unit) for seed in self.seeds]
        for chosen in torch.split(rows, self.batch_rows, dim=1):
            flat = chosen.reshape(-1)
            labels = self.labels.index_select(0, flat).view(chosen.shape)
            inputs = self._factors(chosen) if self.in_factors else self._materialised(chosen)
            yield Batch(inputs, labels, self._masks(generators, chosen.shape[1]))

    def _factors(self, chosen: Tensor) -> StackedGradients:
        rows = self.vectors.take(chosen.reshape(-1))
        offset = None if rows.offset is None else rows.offset.view(chosen.shape).to(self.dtype)
        delta, features = (
            factor.view(*chosen.shape, -1).to(self.dtype) for factor in (rows.delta, rows.features)
        )
        return StackedGradients(delta, features, offset)

    def _materialised(self, chosen: Tensor) -> Tensor:
        """Like ``vectors.take(rows).dense()``, but three times as fast without new allocations."""
        rows = chosen.reshape(-1)
        delta, features, offset = self.vectors.delta, self.vectors.features, self.vectors.offset
        n_classes, width = delta.shape[1], features.shape[1]
        n_products = n_classes * width
        if len(rows) not in self._memory:
            n_columns = 0 if self.columns is None else self.columns.shape[1]
            self._memory[len(rows)] = delta.new_empty((len(rows), n_products + n_columns))
        dense = self._memory[len(rows)]
        products = dense[:, :n_products].view(len(rows), n_classes, width)
        own, others = delta.index_select(0, rows), features.index_select(0, rows)
        torch.mul(own[:, :, None], others[:, None, :], out=products)
        if offset is not None:
            products.add_(offset.index_select(0, rows)[:, None, None])
        if self.columns is not None:
            dense[:, n_products:] = self.columns.index_select(0, rows)
        if self.scaling is not None:
            self.scaling.apply(dense)
        return dense.view(*chosen.shape, -1).to(self.dtype)

    def _generator(self, seed: int, unit: int) -> torch.Generator:
        mixed = np.random.SeedSequence([seed, unit]).generate_state(1)
        return torch.Generator(self.labels.device).manual_seed(int(mixed[0]))

    def _masks(self, generators: list[torch.Generator], n_rows: int) -> list[Tensor]:
        if not self.dropout:
            return []
        keep, device = 1 - self.dropout, self.labels.device
        drawn = [
            [torch.rand(n_rows, width, generator=g, device=device) for g in generators]
            for width in self.layers
        ]
        return [(torch.stack(each) < keep).to(self.dtype) / keep for each in drawn]
