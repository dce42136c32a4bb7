"""The introspective network H: a small MLP that predicts from gradients at the last layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from stages.errors import InputError, StageError
from stages.reflection.losses import DEFAULT_LOSS, checked_loss, softmax
from stages.reflection.rank_one import SCALINGS, RankOneGradient, last_layer_gradient

_BATCH_ELEMENTS = 2**26
"""Most elements of dense gradients at once when predicting, 256 MiB in float32."""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """Everything that determines the shape and the input of a head, besides its weights.

    Attributes:
        n_classes: ``N``, outputs of the sensing network and of the head.
        feature_dim: ``d``, inputs of the sensing network's last layer.
        layers: widths of the hidden layers; Table 3 of the paper has (300, 100).
        loss, M, variant, scaling: which gradient the head reads, see `stages.reflection`.
        dropout: probability after each hidden layer; the paper's 5-layer heads use 0.1.
    """

    n_classes: int
    feature_dim: int
    layers: tuple[int, ...] = (300, 100)
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
        # M may still be open here: training takes it from the training rows.
        checked_loss(self.loss, M=0.0 if self.M is None else self.M, variant=self.variant)
        if self.scaling not in SCALINGS:
            raise InputError(
                f"head: expected a scaling of {', '.join(SCALINGS)}, found {self.scaling!r}"
            )

    @property
    def input_size(self) -> int:
        """``N * d``, the length of a gradient."""
        return self.n_classes * self.feature_dim

    def with_M(self, M: float) -> HeadSpec:  # noqa: N802 - the paper's name
        """The same with another ``M``."""
        return replace(self, M=float(M))

    def gradient(self, features: Tensor, logits: Tensor) -> RankOneGradient[Tensor]:
        """What the head reads: the scaled gradients, in factors, of ``(n, d)`` and ``(n, N)``."""
        if features.shape[1:] != (self.feature_dim,) or logits.shape[1:] != (self.n_classes,):
            raise InputError(
                f"head: expected features [n, {self.feature_dim}] and logits [n, {self.n_classes}]"
                f", found {list(features.shape)} and {list(logits.shape)}"
            )
        gradient = last_layer_gradient(
            features, logits, loss=self.loss, M=self.M, variant=self.variant
        )
        return gradient.scaled(self.scaling)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> HeadSpec:
        """The spec that `to_dict` gave."""
        return cls(**{**plain, "layers": tuple(plain["layers"])})


class Head(nn.Module):
    """Linear layers with sigmoids between them, logits out (Table 3 and section 5 of the paper)."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        sizes = (spec.input_size, *spec.layers, spec.n_classes)
        self.first = nn.Linear(sizes[0], sizes[1])
        rest: list[nn.Module] = []
        for n_inputs, n_outputs in pairwise(sizes[1:]):
            rest.append(nn.Sigmoid())
            if spec.dropout > 0:
                rest.append(nn.Dropout(spec.dropout))
            rest.append(nn.Linear(n_inputs, n_outputs))
        self.rest = nn.Sequential(*rest)

    def forward(self, gradient: RankOneGradient[Tensor]) -> Tensor:
        """Logits ``(n, N)`` from scaled gradients, written out for the batch.

        The default: one large product took half to nine tenths of the time of `forward_folded`
        for sizes from 10 x 64 to 31 x 2048, training and inference, on a CPU.
        """
        logits: Tensor = self.rest(self.first(gradient.dense()))
        return logits

    def forward_folded(self, gradient: RankOneGradient[Tensor]) -> Tensor:
        """The same logits without the dense gradient: the first layer is applied to the factors.

        ``a Σ_c δ_c (W1[:, c, :] f) + k rowsum(W1) + b1``. As many multiplications, but ``h * N``
        numbers a row instead of ``N * d``: where memory is short and ``d`` is far above ``h``.
        """
        hidden = gradient.project(self.first.weight) + self.first.bias
        logits: Tensor = self.rest(hidden)
        return logits


def predict_probabilities(
    head: Head,
    features: NDArray[np.floating[Any]] | Tensor,
    logits: NDArray[np.floating[Any]] | Tensor,
    *,
    batch_rows: int = 4096,
) -> NDArray[np.float32]:
    """Softmax of the head's logits, shape ``(n, N)``; rows of NaN stay NaN.

    Args:
        head: put into eval mode for the call, and back after it.
        features: shape ``(n, d)``.
        logits: of the sensing network, shape ``(n, N)``.
        batch_rows: rows at once at most, fewer where gradients are long; moved to the head's
            device batch by batch.
    """
    batch_rows = max(1, min(batch_rows, _BATCH_ELEMENTS // head.spec.input_size))
    device = head.first.weight.device
    was_training = head.training
    head.eval()
    probabilities = np.empty((len(features), head.spec.n_classes), np.float32)
    with torch.inference_mode():
        for start in range(0, len(features), batch_rows):
            rows = slice(start, start + batch_rows)
            f = torch.as_tensor(features[rows]).to(device, torch.float32)
            z = torch.as_tensor(logits[rows]).to(device, torch.float32)
            probabilities[rows] = softmax(head(head.spec.gradient(f, z))).cpu().numpy()
    head.train(was_training)
    return probabilities


def head_bytes(head: Head) -> bytes:
    """The weights as a safetensors file."""
    tensors = {name: value.cpu().contiguous() for name, value in head.state_dict().items()}
    return bytes(safetensors_torch.save(tensors))


def load_head(spec: HeadSpec, weights: bytes, *, device: str = "cpu") -> Head:
    """The head of `head_bytes`, in eval mode.

    Raises:
        StageError: the bytes are no safetensors file, or not of this spec.
    """
    head = Head(spec)
    try:
        head.load_state_dict(safetensors_torch.load(weights))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise StageError(
            f"head weights: expected those of layers {spec.input_size}-"
            f"{'-'.join(map(str, spec.layers))}-{spec.n_classes}; {reason}"
        ) from error
    return head.to(device).eval()
