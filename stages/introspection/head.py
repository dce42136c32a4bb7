"""The introspective network H: a small MLP that predicts from gradients at the last layer."""

from __future__ import annotations

from collections.abc import Mapping
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
from stages.introspection.reading import Reading
from stages.reflection.losses import DEFAULT_LOSS, softmax
from stages.typed import typed

_BATCH_ELEMENTS = 2**23
"""Most elements of dense inputs at once when predicting, 32 MiB in float32: near the caches."""


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

    def __post_init__(self) -> None:
        if min((self.n_classes, self.feature_dim, *self.layers)) < 1:
            raise InputError(
                f"head: expected positive sizes, found {self.n_classes} classes, "
                f"{self.feature_dim} features and layers {self.layers}"
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
        """Widths from the input to the output: 640, 300, 100, 10 for R-18 on CIFAR-10."""
        return (self.reading.size, *self.layers, self.n_classes)

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """Plain values, for JSON; those of the gradient are None where none is read."""
        layers = {"layers": list(self.layers), "dropout": self.dropout}
        return {**self.reading.to_dict(), **layers}

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
        self.linears = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise(spec.sizes))
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Logits ``(n, N)`` from features ``(n, d)`` and the sensing network's logits ``(n, N)``.

        The input is written out for the batch: on a CPU one large product took half to nine tenths
        of the time of applying the first layer to the factors, for 10 x 64 to 31 x 2048.
        """
        found: Tensor = self.linears[-1](self.hidden(features, logits))
        return found

    def hidden(self, features: Tensor, logits: Tensor) -> Tensor:
        """What the last layer reads: the last hidden layer's output ``(n, width)``."""
        values = self.spec.reading.vectors(features, logits).dense()
        for linear in self.linears[:-1]:
            values = self.dropout(torch.sigmoid(linear(values)))
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
    batch_rows = max(1, _BATCH_ELEMENTS // head.spec.sizes[0])
    device = next(head.parameters()).device
    probabilities = np.empty((len(features), head.spec.n_classes), np.float32)
    for start in range(0, len(features), batch_rows):
        rows = slice(start, start + batch_rows)
        f, z = (
            torch.from_numpy(np.asarray(array[rows], np.float32)).to(device)
            for array in (features, logits)
        )
        probabilities[rows] = softmax(head(f, z)).cpu().numpy()
    return probabilities


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
