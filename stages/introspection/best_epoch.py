"""The best epoch of each head in training, by its accuracy on a selection set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.errors import InputError
from stages.introspection.head_parts import Arrays
from stages.introspection.reading import usable_rows

_PREFIX = "best."


@dataclass(frozen=True, eq=False)
class Selection:
    """Labelled rows on which the best epoch is chosen; those with a NaN or no label do not count.

    Attributes:
        name: name of the feature set.
        features, logits, labels: shapes ``(n, d)``, ``(n, N)`` and ``(n,)``.
        further: the further arrays that the heads read, each ``(n, k)``, by name.
    """

    name: str
    features: NDArray[np.floating[Any]]
    logits: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]]
    further: Arrays = field(default_factory=dict)

    def usable(self) -> Selection:
        """The rows that count; raises ``InputError`` if there are none."""
        kept = usable_rows(self.labels, self.features, self.logits, *self.further.values())
        if not kept.any():
            raise InputError(
                f"--select-on {self.name}: expected labelled rows without NaN, found none among "
                f"{len(self.labels):,}"
            )
        return Selection(
            self.name,
            self.features[kept],
            self.logits[kept],
            self.labels[kept],
            {name: each[kept] for name, each in self.further.items()},
        )


@dataclass(slots=True)
class Best:
    """The parameters of each of ``K`` heads at its best epoch so far.

    Attributes:
        tensors: stacked parameters by name.
        accuracy: accuracy on the selection set, shape ``(K,)``, float64; -1 before the first epoch.
        epoch: number of the epoch, counted from 1, shape ``(K,)``, int64; the first of equal ones.
    """

    tensors: dict[str, Tensor]
    accuracy: Tensor
    epoch: Tensor

    @classmethod
    def none_yet(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Before the first epoch."""
        kept = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        k = len(next(iter(kept.values())))
        return cls(kept, torch.full((k,), -1.0, dtype=torch.float64), torch.zeros(k).long())

    def update(self, tensors: Mapping[str, Tensor], accuracies: list[float], epoch: int) -> None:
        """Keep the parameters of the heads whose accuracy is the best so far."""
        found = torch.tensor(accuracies, dtype=torch.float64)
        better = found > self.accuracy
        for name, tensor in tensors.items():
            self.tensors[name][better] = tensor.cpu()[better]
        self.accuracy[better], self.epoch[better] = found[better], epoch

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint; `of` reads them."""
        numbers = {"accuracy": self.accuracy, "epoch": self.epoch}
        return {f"{_PREFIX}{name}": each for name, each in {**self.tensors, **numbers}.items()}

    @classmethod
    def of(cls, saved: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`, among other tensors."""
        found = {
            name.removeprefix(_PREFIX): each
            for name, each in saved.items()
            if name.startswith(_PREFIX)
        }
        return cls(accuracy=found.pop("accuracy"), epoch=found.pop("epoch"), tensors=found)
