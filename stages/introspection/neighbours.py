"""k nearest neighbours on the inputs of a head: the control of Table 8 without training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.errors import InputError
from stages.introspection.reading import Reading, usable_rows
from stages.metrics.finite import finite_rows
from stages.reflection.rank_one import RankOneGradient

_QUERY_ROWS = 256
_TRAINING_ROWS = 4096
"""Rows compared at once: 4 MiB of distances in float32, which fits into the caches."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """A labelled training set, in factored form, whose ``k`` nearest rows vote.

    Args:
        k: number of votes; 10 in Table 8 of the paper.
        reading: vectors that are compared.
        vectors: the training rows, float32, on the device.
        labels: labels of the training rows, shape ``(n,)``.
        temperature: if given, vectors are compared by their cosine instead of the Euclidean
            distance, and a vote weighs ``exp(cosine / temperature)`` instead of 1.
    """

    k: int
    reading: Reading
    vectors: RankOneGradient[Tensor]
    labels: Tensor
    temperature: float | None = None

    @classmethod
    def of(
        cls,
        features: NDArray[np.floating[Any]],
        logits: NDArray[np.floating[Any]],
        labels: NDArray[np.integer[Any]],
        reading: Reading,
        *,
        k: int,
        temperature: float | None = None,
        device: str = "cpu",
    ) -> Neighbours:
        """Use the labelled rows without NaN; if ``M`` is not set, it is computed from them.

        Raises:
            InputError: fewer than ``k`` such rows.
        """
        kept = usable_rows(labels, features, logits)
        if not 1 <= k <= kept.sum():
            raise InputError(
                f"neighbours: expected k from 1 to the number of labelled rows without NaN, found "
                f"k {k} and {kept.sum()} rows of {len(labels)}"
            )
        reading = reading.measured(logits[kept])
        vectors = reading.vectors(_tensor(features[kept], device), _tensor(logits[kept], device))
        voters = torch.from_numpy(labels[kept].astype(np.int64)).to(device)
        return cls(k, reading, vectors, voters, temperature)

    def __len__(self) -> int:
        return len(self.labels)

    def probabilities(
        self, features: NDArray[np.floating[Any]], logits: NDArray[np.floating[Any]]
    ) -> NDArray[np.float32]:
        """Each class's share of the votes, shape ``(n, N)``; rows of NaN stay NaN.

        If several classes have equal shares, argmax takes the first. Which of several rows at
        exactly the same distance gets the last vote is undefined.
        """
        shares = np.empty((len(features), self.reading.n_classes), np.float32)
        device = str(self.labels.device)
        for start in range(0, len(features), _QUERY_ROWS):
            rows = slice(start, start + _QUERY_ROWS)
            f, z = _tensor(features[rows], device), _tensor(logits[rows], device)
            distances, nearest = self.nearest(self.reading.vectors(f, z))
            weights = self._weights(distances)
            counted = torch.zeros(len(f), self.reading.n_classes, device=device)
            counted.scatter_add_(1, self.labels[nearest], weights)
            counted /= weights.sum(dim=1, keepdim=True)
            counted[~finite_rows(f, z)] = torch.nan
            shares[rows] = counted.cpu().numpy()
        return shares

    def _weights(self, distances: Tensor) -> Tensor:
        """Weights of votes, up to a factor for each query."""
        if self.temperature is None:
            return torch.ones_like(distances)
        return ((distances[:, :1] - distances) / self.temperature).exp()

    def nearest(self, queries: RankOneGradient[Tensor]) -> tuple[Tensor, Tensor]:
        """Distances and rows of the ``k`` nearest vectors, nearest first, each ``(n, k)``.

        A distance is ``‖q - t‖² - ‖q‖²`` or minus the cosine.
        """
        found = []
        centre = self._centre()
        queries = _shifted(queries, centre)
        for start in range(0, len(self), _TRAINING_ROWS):
            block = _shifted(self.vectors.take(slice(start, start + _TRAINING_ROWS)), centre)
            best = self._distances(queries, block).topk(min(self.k, len(block)), largest=False)
            found.append((best.values, best.indices + start))
        values, rows = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        best = values.topk(self.k, largest=False)
        return best.values, rows.gather(1, best.indices)

    def _centre(self) -> Tensor | None:
        """The mean offset. Subtracted on both sides, it keeps Euclidean distances and reduces
        rounding errors."""
        if self.vectors.offset is None or self.temperature is not None:
            return None
        return self.vectors.offset.mean()

    def _distances(
        self, queries: RankOneGradient[Tensor], block: RankOneGradient[Tensor]
    ) -> Tensor:
        """``‖q - t‖² - ‖q‖² = ‖t‖² - 2 <q, t>`` or minus the cosine, from products of factors.

        The cosine with a vector of zeros is 0.
        """
        products = queries.inner_products(block)
        if self.temperature is None:
            return block.squared_norms() - 2 * products
        lengths = queries.norms()[:, None] * block.norms()
        return -products / torch.where(lengths == 0, 1, lengths)


def _shifted(vectors: RankOneGradient[Tensor], centre: Tensor | None) -> RankOneGradient[Tensor]:
    """Subtract a constant from every element."""
    if centre is None or vectors.offset is None:
        return vectors
    return replace(vectors, offset=vectors.offset - centre)


def _tensor(array: NDArray[np.floating[Any]], device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)
