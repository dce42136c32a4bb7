"""The introspective network H: a small MLP that predicts from gradients at the last layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from stages.errors import InputError, StageError
from stages.introspection.first_layer import LowRank
from stages.introspection.reading import Reading
from stages.reflection.losses import DEFAULT_LOSS, softmax
from stages.reflection.rank_one import RankOneGradient
from stages.typed import typed

_BATCH_ELEMENTS = 2**23
"""Most elements of inputs at once when predicting, 32 MiB in float32: near the caches."""

_FACTOR_ROWS = 1024
"""The same for rows in factors, as ``RankOneGradient.project`` works on them."""

LONGEST_WRITTEN_OUT = 2**17
"""Longer gradients are never written out: a batch of 128 would take more than 64 MiB."""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """Everything that determines the shape and the input of a head, besides its weights.

    Attributes:
        n_classes: ``N``, outputs of the sensing network and of the head.
        feature_dim: ``d``, inputs of the sensing network's last layer.
        layers: widths of the hidden layers; Table 3 of the paper has (300, 100).
        reads: ``reflection`` for H; ``features`` or ``features+logits`` for its controls.
        loss, M, variant: which gradient the head reads, see `stages.reflection`; without use where
            it reads none.
        scaling: of each row that is read.
        rank: of a compact first layer, see `first_layer`; None is the paper's full one.
        dropout: probability after each hidden layer; the paper's 5-layer heads use 0.1.
    """

    n_classes: int
    feature_dim: int
    layers: tuple[int, ...] = (300, 100)
    reads: str = "reflection"
    loss: str = DEFAULT_LOSS
    M: float | None = None
    variant: str = "single-pass"
    scaling: str = "minmax"
    dropout: float = 0.0
    rank: int | None = None

    def __post_init__(self) -> None:
        if min((self.n_classes, self.feature_dim, *self.layers)) < 1:
            raise InputError(
                f"head: expected positive sizes, found {self.n_classes} classes, "
                f"{self.feature_dim} features and layers {self.layers}"
            )
        if self.rank is not None and (self.rank < 1 or self.reads != "reflection"):
            raise InputError(
                f"head: expected a rank >= 1 and a head that reads the reflection, found rank "
                f"{self.rank} and one that reads {self.reads}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"head: expected dropout in [0, 1), found {self.dropout}")
        _ = self.reading  # refuses what cannot be

    @property
    def reading(self) -> Reading:
        """What the head reads."""
        return Reading(**{each.name: getattr(self, each.name) for each in fields(Reading)})

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the linear layers: 640, 300, 100, 10 for R-18 on CIFAR-10.

        The first is the length of what is read, or the rank of a compact first layer.
        """
        return (self.rank or self.reading.size, *self.layers, self.n_classes)

    @property
    def factors(self) -> tuple[int, ...]:
        """Lengths of the factors that a compact first layer reads; none for a full one."""
        return (self.n_classes, self.feature_dim) if self.rank else ()

    @property
    def is_in_factors(self) -> bool:
        """Whether what the head reads is never written out."""
        return self.rank is not None or self.reading.size > LONGEST_WRITTEN_OUT

    @property
    def n_parameters(self) -> int:
        """Weights and biases of all layers."""
        compact = self.sizes[0] * sum(self.factors)
        return compact + sum(n_out * (n_in + 1) for n_in, n_out in pairwise(self.sizes))

    @property
    def batch_rows(self) -> int:
        """Rows to predict at once, in bounded memory."""
        return _FACTOR_ROWS if self.is_in_factors else max(1, _BATCH_ELEMENTS // self.sizes[0])

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """Plain values, for JSON; those of the gradient are None where none is read."""
        layers = {"layers": list(self.layers), "dropout": self.dropout}
        # Without the key a full first layer has the plan that it had before there was another.
        compact = {"rank": self.rank} if self.rank else {}
        return {**self.reading.to_dict(), **layers, **compact}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> HeadSpec:
        """The spec that `to_dict` gave."""
        known = {key: value for key, value in plain.items() if value is not None}
        return typed(cls, known, "head card")


class Head(nn.Module):
    """Linear layers with sigmoids between them, logits out (Table 3 and section 5 of the paper)."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.low_rank = LowRank(spec.rank, *spec.factors) if spec.rank else None
        self.linears = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise(spec.sizes))
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Logits ``(n, N)`` from f's features ``(n, d)`` and logits ``(n, N)``."""
        if len(self.linears) == 1:
            return self._first(self.spec.reading.vectors(features, logits))
        found: Tensor = self.linears[-1](self.last_hidden(features, logits))
        return found

    def last_hidden(self, features: Tensor, logits: Tensor) -> Tensor:
        """What goes into the last layer, ``(n, h)``; without hidden layers what the head reads."""
        gradients = self.spec.reading.vectors(features, logits)
        if len(self.linears) == 1:
            found: Tensor = self.low_rank(gradients) if self.low_rank else gradients.dense()
            return found
        values: Tensor = self.dropout(torch.sigmoid(self._first(gradients)))
        for linear in self.linears[1:-1]:
            values = self.dropout(torch.sigmoid(linear(values)))
        return values

    def _first(self, gradients: RankOneGradient[Tensor]) -> Tensor:
        """The first layer.

        A short input is written out for the batch: on a CPU one large product took half to nine
        tenths of the time of applying the first layer to the factors, for 10 x 64 to 31 x 2048.
        """
        first = self.linears[0]
        if self.low_rank is not None:
            values: Tensor = first(self.low_rank(gradients))
        elif self.spec.is_in_factors:
            weight, bias = first.parameters()
            values = gradients.project(weight) + bias
        else:
            values = first(gradients.dense())
        return values


@torch.inference_mode()
def predict_probabilities(
    head: Head,
    features: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]],
) -> NDArray[np.float32]:
    """Softmax of the head's logits, shape ``(n, N)``; rows of NaN stay NaN.

    Safe in several threads at once: nothing of the head is changed.

    Args:
        head: in eval mode.
        features: shape ``(n, d)``; moved to the head's device batch by batch.
        logits: of the sensing network, shape ``(n, N)``.
    """
    probabilities = np.empty((len(features), head.spec.n_classes), np.float32)
    for rows, f, z in _batches(head, features, logits):
        probabilities[rows] = softmax(head(f, z)).cpu().numpy()
    return probabilities


@torch.inference_mode()
def head_factors(
    head: Head,
    features: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Input and output of the head's last layer, shapes ``(n, h)`` and ``(n, N)``.

    They are to the head what features and logits are to the sensing network.
    """
    last = head.linears[-1]
    assert isinstance(last, nn.Linear)  # what Head is made of
    hidden = np.empty((len(features), last.in_features), np.float32)
    found = np.empty((len(features), last.out_features), np.float32)
    for rows, f, z in _batches(head, features, logits):
        values = head.last_hidden(f, z)
        hidden[rows], found[rows] = values.cpu().numpy(), last(values).cpu().numpy()
    return hidden, found


def _batches(
    head: Head, features: NDArray[np.floating[Any]], logits: NDArray[np.floating[Any]]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, with their features and logits on the head's device."""
    batch_rows = head.spec.batch_rows
    device = next(head.parameters()).device
    for start in range(0, len(features), batch_rows):
        rows = slice(start, start + batch_rows)
        f, z = (
            torch.from_numpy(np.asarray(array[rows], np.float32)).to(device)
            for array in (features, logits)
        )
        yield rows, f, z


def load_head(spec: HeadSpec, weights: bytes, index: int = 0, *, device: str = "cpu") -> Head:
    """One of the heads that lie stacked in a safetensors file, in eval mode.

    Raises:
        StageError: the bytes are no safetensors file, or not of this spec.
    """
    head = Head(spec)
    try:
        stacked = safetensors_torch.load(weights)
        head.load_state_dict({name: tensor[index] for name, tensor in stacked.items()})
    except (SafetensorError, RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise StageError(
            f"head weights: expected those of layers {'-'.join(map(str, spec.sizes))}; {reason}"
        ) from error
    return head.to(device).eval()
