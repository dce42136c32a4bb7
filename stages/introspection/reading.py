"""Inputs of heads, made from stored features and logits: one scaled, factored vector per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, Literal

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray
from pydantic import FiniteFloat

from stages.errors import InputError
from stages.introspection.head_parts import REFLECTION, SEPARATOR, FurtherArrays, canonical_reads
from stages.metrics.finite import finite_rows
from stages.reflection.losses import DEFAULT_LOSS, ArrayT, checked_loss
from stages.reflection.rank_one import SCALINGS, RankOneGradient, last_layer_gradient
from stages.typed import typed

Reads = Literal["reflection", "features", "features+logits"]
READS: tuple[Reads, ...] = ("reflection", "features", "features+logits")
"""Inputs that are scaled row by row; in others, each part but the reflection is standardised."""


InputScaling = Literal["minmax", "maxabs", "none", "global", "feature"]
FITTED: tuple[InputScaling, ...] = ("global", "feature")
"""Scalings that are fitted to the training rows of a head, see `fitted_scaling`."""

_OMITTED = ("bias_gradient", "further")


@dataclass(frozen=True, eq=False, slots=True)
class HeadInput(Generic[ArrayT]):
    """The input of a head: scaled vectors in factored form, then columns ``[n, k]`` if it has any.

    The columns are raw: a head standardises them by the weights of its first layer.
    """

    vectors: RankOneGradient[ArrayT]
    columns: ArrayT | None = None

    def dense(self) -> ArrayT:
        """All numbers of each row, ``[n, size]``."""
        dense = self.vectors.dense()
        if self.columns is None:
            return dense
        joined: ArrayT = array_namespace(dense).concat([dense, self.columns], axis=1)
        return joined


@dataclass(frozen=True, slots=True)
class Reading:
    """Specifies how vectors are made from features and logits.

    Attributes:
        n_classes: ``N``, number of outputs of the sensing network.
        feature_dim: ``d``, number of inputs of its last layer.
        reads: parts joined by +; ``reflection`` is r_x, the others are stored vectors.
        loss, M, variant: parameters of the gradient, see `stages.reflection`; the defaults for the
            others, so that equal readings have equal plans. ``M`` may be unset until the training
            rows are known.
        scaling: scaling of each row on its own, see ``RankOneGradient.scaled``, or one of `FITTED`,
            which the first layer of a head contains: its vectors are unscaled. It applies to r_x
            alone if other parts are read too, unless ``reads`` is one of `READS`.
        bias_gradient: append the gradient to the last layer's bias: ``r_x = [δ ⊗ f, δ]``, in the
            order of ``δ ⊗ [f, 1]``. The paper leaves it out: 640 = 10 x 64.
        further: arrays that are read besides features and logits.
    """

    n_classes: int
    feature_dim: int
    reads: str = "reflection"
    loss: str = DEFAULT_LOSS
    M: FiniteFloat | None = None
    variant: str = "single-pass"
    scaling: str = "minmax"
    bias_gradient: bool = False
    further: FurtherArrays = field(default_factory=FurtherArrays)

    def __post_init__(self) -> None:
        try:
            canonical = canonical_reads(self.reads)
        except ValueError as error:
            raise InputError(f"head reads: {error}, found {self.reads!r}") from error
        if canonical != self.reads:
            raise InputError(f"head reads: expected {canonical!r}, found {self.reads!r}")
        if self.scaling not in (*SCALINGS, *FITTED):
            raise InputError(
                f"head: expected a scaling of {', '.join((*SCALINGS, *FITTED))}, found "
                f"{self.scaling!r}"
            )
        checked_loss(self.loss, M=0.0 if self.M is None else self.M, variant=self.variant)
        gradient = (self.loss, self.M, self.variant)
        if not self.has_gradient and self.bias_gradient:
            raise InputError(
                f"head: reading {self.reads} has no gradient to the bias; omit it, or read the "
                "reflection"
            )
        if not self.has_gradient and gradient != (DEFAULT_LOSS, None, "single-pass"):
            raise InputError(
                f"head: reading {self.reads} has no loss, M or variant, found "
                f"{', '.join(map(str, gradient))}; omit them, or read the reflection"
            )
        if not self.has_gradient and self.is_standardised and self.scaling != "minmax":
            raise InputError(
                f"head: reading {self.reads} has no scaling of rows, found {self.scaling}: its "
                "parts are standardised; omit it"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are read."""
        return tuple(self.reads.split(SEPARATOR))

    @property
    def has_gradient(self) -> bool:
        """Whether r_x is a part."""
        return REFLECTION in self.parts

    @property
    def is_standardised(self) -> bool:
        """Whether the parts other than r_x are standardised."""
        return self.reads not in READS

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
        """Length of the input."""
        return sum(self._widths[part] for part in self.parts)

    @property
    def _widths(self) -> dict[str, int]:
        return {
            REFLECTION: self.n_classes * self.gradient_dim,
            "features": self.feature_dim,
            "logits": self.n_classes,
            **self.further.widths,
        }

    def inputs(
        self, features: ArrayT, logits: ArrayT, further: Mapping[str, ArrayT]
    ) -> HeadInput[ArrayT]:
        """The input of a head, from features ``(n, d)``, logits ``(n, N)`` and further arrays.

        Raises ``InputError`` if an array that is read is missing, or has another length of rows.
        """
        if not self.is_standardised:
            return HeadInput(self.vectors(features, logits))
        stored = {"features": features, "logits": logits, **further}
        columns = []
        for part in self.parts:
            if part == REFLECTION:
                continue
            if part not in stored or stored[part].shape[1:] != (self._widths[part],):
                found = list(stored[part].shape) if part in stored else "none"
                raise InputError(f"head: expected {part} [n, {self._widths[part]}], found {found}")
            columns.append(stored[part])
        xp = array_namespace(features)
        vectors = RankOneGradient(xp.ones_like(logits[:, :1]), features[:, :0])
        if self.has_gradient:
            vectors = self.vectors(features, logits)
        return HeadInput(vectors, xp.concat(columns, axis=1))

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
        if self.has_gradient:
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
        if not self.has_gradient or self.M is not None:
            return self
        return replace(self, M=float(logits.max(axis=1).mean(dtype=np.float64)))

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form; parameters of the gradient are None if none is read.

        The bias and further arrays are only named if they are read, so that older plans stay the
        same.
        """
        found = {**asdict(self), "further": self.further.to_dict()}
        found = {key: found[key] for key in found if key not in _OMITTED or found[key]}
        if self.has_gradient:
            return found
        unused = ("loss", "M", "variant", *(["scaling"] if self.is_standardised else []))
        return {**found, **dict.fromkeys(unused)}

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
