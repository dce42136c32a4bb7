"""k nearest neighbours on the inputs of a head: the control of Table 8 without training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

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
        reading: vectors that are compared by Euclidean distance.
        vectors: the training rows, float32, on the device.
        labels: labels of the training rows, shape ``(n,)``.
    """

    k: int
    reading: Reading
    vectors: RankOneGradient[Tensor]
    labels: Tensor

    @classmethod
    def of(
        cls,
        features: NDArray[np.floating[Any]],
        logits: NDArray[np.floating[Any]],
        labels: NDArray[np.integer[Any]],
        reading: Reading,
        *,
        k: int,
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
        return cls(k, reading, vectors, torch.from_numpy(labels[kept].astype(np.int64)).to(device))

    def __len__(self) -> int:
        return len(self.labels)

    def probabilities(
        self, features: NDArray[np.floating[Any]], logits: NDArray[np.floating[Any]]
    ) -> NDArray[np.float32]:
        """Each class's share of the ``k`` votes, shape ``(n, N)``; rows of NaN stay NaN.

        If several classes have equally many votes, argmax takes the first. Which of several rows at
        exactly the same distance gets the last vote is undefined.
        """
        shares = np.empty((len(features), self.reading.n_classes), np.float32)
        device = str(self.labels.device)
        for start in range(0, len(features), _QUERY_ROWS):
            rows = slice(start, start + _QUERY_ROWS)
            f, z = _tensor(features[rows], device), _tensor(logits[rows], device)
            votes = self.labels[self.nearest(self.reading.vectors(f, z))]
            counted = functional.one_hot(votes, self.reading.n_classes).sum(dim=1) / self.k
            counted[~finite_rows(f, z)] = torch.nan
            shares[rows] = counted.cpu().numpy()
        return shares

    def nearest(self, queries: RankOneGradient[Tensor]) -> Tensor:
        """Rows of the ``k`` nearest vectors, nearest first, shape ``(n, k)``.

        ``‖q - t‖² - ‖q‖² = ‖t‖² - 2 <q, t>``, from inner products of the factors. The mean offset
        is first subtracted on both sides, which keeps distances and reduces rounding errors.
        """
        centre = None if self.vectors.offset is None else self.vectors.offset.mean()
        queries = _shifted(queries, centre)
        found = []
        for start in range(0, len(self), _TRAINING_ROWS):
            block = _shifted(self.vectors.take(slice(start, start + _TRAINING_ROWS)), centre)
            scores = block.squared_norms() - 2 * queries.inner_products(block)
            best = scores.topk(min(self.k, len(block)), largest=False)
            found.append((best.values, best.indices + start))
        values, rows = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return rows.gather(1, values.topk(self.k, largest=False).indices)


def _shifted(vectors: RankOneGradient[Tensor], centre: Tensor | None) -> RankOneGradient[Tensor]:
    """Subtract a constant from every element."""
    if centre is None or vectors.offset is None:
        return vectors
    return replace(vectors, offset=vectors.offset - centre)


def _tensor(array: NDArray[np.floating[Any]], device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)
