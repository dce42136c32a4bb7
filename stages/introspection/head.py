"""The introspective network H: a small MLP that reads gradients at the last layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from stages.errors import StageError
from stages.introspection.first_layer import LowRank
from stages.introspection.head_parts import Arrays
from stages.introspection.head_spec import HeadSpec
from stages.introspection.reading import HeadInput
from stages.reflection.losses import softmax

NONE: Mapping[str, Any] = MappingProxyType({})  # Any: arrays or tensors
"""No further arrays."""


class Head(nn.Module):
    """Linear layers with sigmoids in between; returns logits (Table 3, section 5 of the paper)."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.low_rank = LowRank(spec.rank, *spec.factors) if spec.rank else None
        self.linears = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise(spec.sizes))
        self.dropout = nn.Dropout(spec.dropout)

    def forward(
        self, features: Tensor, logits: Tensor, further: Mapping[str, Tensor] = NONE
    ) -> Tensor:
        """Logits ``(n, N)`` from f's features ``(n, d)``, logits ``(n, N)`` and further arrays."""
        if len(self.linears) == 1:
            return self._first(self.spec.reading.inputs(features, logits, further))
        found: Tensor = self.linears[-1](self.last_hidden(features, logits, further))
        return found

    def last_hidden(
        self, features: Tensor, logits: Tensor, further: Mapping[str, Tensor] = NONE
    ) -> Tensor:
        """Input of the last layer, ``(n, h)``; without hidden layers, the input of the head."""
        inputs = self.spec.reading.inputs(features, logits, further)
        if len(self.linears) == 1:
            found: Tensor = self.low_rank(inputs.vectors) if self.low_rank else inputs.dense()
            return found
        values: Tensor = self.dropout(torch.sigmoid(self._first(inputs)))
        for linear in self.linears[1:-1]:
            values = self.dropout(torch.sigmoid(linear(values)))
        return values

    def _first(self, inputs: HeadInput[Tensor]) -> Tensor:
        """Apply the first layer.

        A short input is materialised for the batch: on a CPU one large product took 50 to 90 % of
        the time of applying the layer to the factors, for sizes from 10 x 64 to 31 x 2048.
        """
        first = self.linears[0]
        if self.low_rank is not None:
            values: Tensor = first(self.low_rank(inputs.vectors))
        elif self.spec.is_in_factors:
            weight, bias = first.parameters()
            values = inputs.vectors.project(weight) + bias
        else:
            values = first(inputs.dense())
        return values


def layer_names(layer: int) -> tuple[str, str]:
    """Names of weight and bias of a linear layer of a `Head`, counted from 0, in its file."""
    return f"linears.{layer}.weight", f"linears.{layer}.bias"


def predict_probabilities(
    head: Head,
    features: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]],
    further: Arrays = NONE,
) -> NDArray[np.float32]:
    """Softmax of the head's logits, shape ``(n, N)``; rows of NaN stay NaN.

    The arguments are those of `predict_logits`.
    """
    return _predict(head, softmax, features, logits, further)


def predict_logits(
    head: Head,
    features: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]],
    further: Arrays = NONE,
) -> NDArray[np.float32]:
    """The head's logits, shape ``(n, N)``; rows of NaN stay NaN.

    Thread-safe, since the head is not changed.

    Args:
        head: in eval mode.
        features: shape ``(n, d)``; moved to the head's device batch by batch.
        logits: logits of the sensing network, shape ``(n, N)``.
        further: the further arrays that the head reads, by name.
    """
    return _predict(head, lambda found: found, features, logits, further)


@torch.inference_mode()
def _predict(
    head: Head,
    finish: Callable[[Tensor], Tensor],
    features: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]],
    further: Arrays,
) -> NDArray[np.float32]:
    predicted = np.empty((len(features), head.spec.n_classes), np.float32)
    for rows, f, z, others in _batches(head, features, logits, further):
        predicted[rows] = finish(head(f, z, others)).cpu().numpy()
    return predicted


@torch.inference_mode()
def head_factors(
    head: Head,
    features: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Input and output of the head's last layer, shapes ``(n, h)`` and ``(n, N)``.

    They correspond to the features and logits of the sensing network.
    """
    last = head.linears[-1]
    assert isinstance(last, nn.Linear)  # by the definition of Head
    hidden = np.empty((len(features), last.in_features), np.float32)
    found = np.empty((len(features), last.out_features), np.float32)
    for rows, f, z, _ in _batches(head, features, logits, NONE):
        values = head.last_hidden(f, z)
        hidden[rows], found[rows] = values.cpu().numpy(), last(values).cpu().numpy()
    return hidden, found


def _batches(
    head: Head,
    features: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]],
    further: Arrays,
) -> Iterator[tuple[slice, Tensor, Tensor, dict[str, Tensor]]]:
    """Slices of rows, with their features, logits and further arrays on the head's device."""
    batch_rows = head.spec.batch_rows
    device = next(head.parameters()).device
    for start in range(0, len(features), batch_rows):
        rows = slice(start, start + batch_rows)
        f, z, *others = (
            torch.from_numpy(np.asarray(array[rows], np.float32)).to(device)
            for array in (features, logits, *further.values())
        )
        yield rows, f, z, dict(zip(further, others, strict=True))


def load_head(spec: HeadSpec, weights: bytes, index: int = 0, *, device: str = "cpu") -> Head:
    """Load one of the heads stacked in a safetensors file, in eval mode.

    Raises:
        StageError: the bytes are not a safetensors file, or do not match the spec.
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
