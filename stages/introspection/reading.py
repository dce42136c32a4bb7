"""Inputs of heads, made from stored features and logits: one scaled, factored vector per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray
from pydantic import FiniteFloat

from stages.errors import InputError
from stages.metrics.finite import finite_rows
from stages.reflection.losses import DEFAULT_LOSS, ArrayT, checked_loss
from stages.reflection.rank_one import SCALINGS, RankOneGradient, last_layer_gradient
from stages.typed import typed

Reads = Literal["reflection", "features", "features+logits"]
READS: tuple[Reads, ...] = ("reflection", "features", "features+logits")

InputScaling = Literal["minmax", "maxabs", "none", "global", "feature"]
FITTED: tuple[InputScaling, ...] = ("global", "feature")
"""Scalings that are fitted to the training rows of a head, see `fitted_scaling`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Specifies how vectors are made from features and logits.

    Attributes:
        n_classes: ``N``, number of outputs of the sensing network.
        feature_dim: ``d``, number of inputs of its last layer.
        reads: ``reflection`` is r_x; the others are the stored vectors themselves.
        loss, M, variant: parameters of the gradient, see `stages.reflection`; the defaults for the
            others, so that equal readings have equal plans. ``M`` may be unset until the training
            rows are known.
        scaling: scaling of each row on its own, see ``RankOneGradient.scaled``, or one of `FITTED`,
            which the first layer of a head contains: its vectors are unscaled.
        bias_gradient: append the gradient to the last layer's bias: ``r_x = [δ ⊗ f, δ]``, in the
            order of ``δ ⊗ [f, 1]``. The paper leaves it out: 640 = 10 x 64.
    """

    n_classes: int
    feature_dim: int
    reads: str = "reflection"
    loss: str = DEFAULT_LOSS
    M: FiniteFloat | None = None
    variant: str = "single-pass"
    scaling: str = "minmax"
    bias_gradient: bool = False

    def __post_init__(self) -> None:
        if self.reads not in READS:
            raise InputError(
                f"head: expected to read one of {', '.join(READS)}, found {self.reads!r}"
            )
        if self.scaling not in (*SCALINGS, *FITTED):
            raise InputError(
                f"head: expected a scaling of {', '.join((*SCALINGS, *FITTED))}, found "
                f"{self.scaling!r}"
            )
        checked_loss(self.loss, M=0.0 if self.M is None else self.M, variant=self.variant)
        gradient = (self.loss, self.M, self.variant)
        if self.reads != "reflection" and self.bias_gradient:
            raise InputError(
                f"head: reading {self.reads} has no gradient to the bias; omit it, or read the "
                "reflection"
            )
        if self.reads != "reflection" and gradient != (DEFAULT_LOSS, None, "single-pass"):
            raise InputError(
                f"head: reading {self.reads} has no loss, M or variant, found "
                f"{', '.join(map(str, gradient))}; omit them, or read the reflection"
            )

    @property
    def is_fitted(self) -> bool:
        """Whether the scaling is fitted to the training rows."""
        return self.scaling in FITTED

    @property
    def gradient_dim(self) -> int:
        """Elements of the gradient for each class: ``d``, and one more with that to the bias."""
        return self.feature_dim + self.bias_gradient

    @property
    def size(self) -> int:
        """Length of a vector."""
        return {
            "reflection": self.n_classes * self.gradient_dim,
            "features": self.feature_dim,
            "features+logits": self.feature_dim + self.n_classes,
        }[self.reads]

    def vectors(self, features: ArrayT, logits: ArrayT) -> RankOneGradient[ArrayT]:
        """The scaled vectors of features ``(n, d)`` and logits ``(n, N)``, in factored form.

        A fitted scaling is left to the head.
        A stored vector ``v`` is represented as ``1 ⊗ v``, so scalings and distances apply to all.
        """
        if features.shape[1:] != (self.feature_dim,) or logits.shape[1:] != (self.n_classes,):
            raise InputError(
                f"head: expected features [n, {self.feature_dim}] and logits [n, {self.n_classes}]"
                f", found {list(features.shape)} and {list(logits.shape)}"
            )
        xp = array_namespace(features)
        scaling = "none" if self.is_fitted else self.scaling
        if self.reads == "reflection":
            if self.bias_gradient:
                features = xp.concat([features, xp.ones_like(features[:, :1])], axis=1)
            gradient = last_layer_gradient(
                features, logits, loss=self.loss, M=self.M, variant=self.variant
            )
            return gradient.scaled(scaling)
        stored = features if self.reads == "features" else xp.concat([features, logits], axis=1)
        return RankOneGradient(xp.ones_like(stored[:, :1]), stored).scaled(scaling)

    def measured(self, logits: NDArray[np.floating[Any]]) -> Reading:
        """The reading with ``M`` computed from the training rows' logits, if unset (C.4.1)."""
        if self.reads != "reflection" or self.M is not None:
            return self
        return replace(self, M=float(logits.max(axis=1).mean(dtype=np.float64)))

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form; parameters of the gradient are None if none is read.

        The bias is only named if it is read, so that older plans stay the same.
        """
        unused = {} if self.reads == "reflection" else {"loss": None, "M": None, "variant": None}
        found = {**asdict(self), **unused}
        if not self.bias_gradient:
            del found["bias_gradient"]
        return found

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Reading:
        """The inverse of `to_dict`."""
        known = {key: value for key, value in plain.items() if value is not None}
        return typed(cls, known, "head card")


def usable_rows(
    labels: NDArray[np.integer[Any]], *arrays: NDArray[np.floating[Any]]
) -> NDArray[np.bool_]:
    """Rows that can be used for training: labelled, and finite in all arrays; shape ``(n,)``."""
    return (labels >= 0) & finite_rows(*arrays)
