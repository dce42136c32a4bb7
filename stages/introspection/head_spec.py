"""Specification of a head without its weights: sizes and input. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pydantic import FiniteFloat

from stages.errors import InputError
from stages.introspection.head_parts import FurtherArrays
from stages.introspection.reading import Reading
from stages.reflection.losses import DEFAULT_LOSS
from stages.typed import typed

_BATCH_ELEMENTS = 2**23
"""Maximum number of input elements at once in prediction, 32 MiB in float32: fits the caches."""

_FACTOR_ROWS = 1024
"""Rows at once for factored inputs, as processed by ``RankOneGradient.project``."""

LONGEST_WRITTEN_OUT = 2**17
"""Longer gradients are never materialised: a batch of 128 would take more than 64 MiB."""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """Everything that determines the shape and the input of a head, besides its weights.

    Attributes:
        n_classes: ``N``, number of outputs of the sensing network and of the head.
        feature_dim: ``d``, number of inputs of the sensing network's last layer.
        layers: widths of the hidden layers; (300, 100) in Table 3 of the paper.
        reads: ``reflection`` for H, or other parts joined by +; see `Reading`.
        loss, M, variant: the gradient that the head reads, see `stages.reflection`; unused if it
            reads none.
        scaling: scaling of the input: of each row, or fitted to the training rows, see `Reading`.
        rank: rank of a compact first layer, see `first_layer`; None is the paper's full layer.
        dropout: probability after each hidden layer; 0.1 in the paper's 5-layer heads.
        bias_gradient: whether the head also reads the gradient to the last layer's bias.
        further: arrays that are read besides features and logits.
    """

    n_classes: int
    feature_dim: int
    layers: tuple[int, ...] = (300, 100)
    reads: str = "reflection"
    loss: str = DEFAULT_LOSS
    M: FiniteFloat | None = None
    variant: str = "single-pass"
    scaling: str = "minmax"
    dropout: float = 0.0
    rank: int | None = None
    bias_gradient: bool = False
    further: FurtherArrays = field(default_factory=FurtherArrays)

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
        reading = self.reading  # raises InputError for an invalid combination
        if reading.is_fitted and self.is_in_factors:
            raise InputError(
                f"head: scaling {self.scaling} is for a full first layer with at most "
                f"{LONGEST_WRITTEN_OUT:,} inputs, found {reading.size:,} inputs"
                f"{f' and rank {self.rank}' if self.rank else ''}: scale each row instead (minmax)"
            )
        if reading.is_standardised and self.is_in_factors:
            raise InputError(
                f"head: reads {self.reads}, {reading.size:,} numbers of a row, expected at most "
                f"{LONGEST_WRITTEN_OUT:,} in an input of several parts; read one of them alone"
            )

    @property
    def reading(self) -> Reading:
        """The input of the head."""
        return Reading(
            self.n_classes,
            self.feature_dim,
            self.reads,
            self.loss,
            self.M,
            self.variant,
            self.scaling,
            self.bias_gradient,
            self.further,
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the linear layers: 640, 300, 100, 10 for R-18 on CIFAR-10.

        The first is the length of the input, or the rank of a compact first layer.
        """
        return (self.rank or self.reading.size, *self.layers, self.n_classes)

    @property
    def factors(self) -> tuple[int, ...]:
        """Lengths of the factors that a compact first layer reads; empty for a full one."""
        return (self.n_classes, self.reading.gradient_dim) if self.rank else ()

    @property
    def is_in_factors(self) -> bool:
        """Whether the input of the head is never materialised."""
        return self.rank is not None or self.reading.size > LONGEST_WRITTEN_OUT

    @property
    def n_parameters(self) -> int:
        """Number of weights and biases of all layers."""
        compact = self.sizes[0] * sum(self.factors)
        return compact + sum(n_out * (n_in + 1) for n_in, n_out in pairwise(self.sizes))

    @property
    def batch_rows(self) -> int:
        """Rows per batch in prediction, for bounded memory."""
        return _FACTOR_ROWS if self.is_in_factors else max(1, _BATCH_ELEMENTS // self.sizes[0])

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form; parameters of the gradient are None if none is read."""
        layers = {"layers": list(self.layers), "dropout": self.dropout}
        # Omitted for a full first layer, so that plans from before compact layers stay the same.
        compact = {"rank": self.rank} if self.rank else {}
        return {**self.reading.to_dict(), **layers, **compact}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> HeadSpec:
        """The inverse of `to_dict`."""
        known = {key: value for key, value in plain.items() if value is not None}
        return typed(cls, known, "head card")
