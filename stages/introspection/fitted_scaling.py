"""Scalings of a head's input that are fitted to its training rows, folded into its first layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.errors import TrainingFailedError
from stages.introspection.head import layer_names
from stages.introspection.reading import FITTED, HeadInput
from stages.reflection.rank_one import RankOneGradient

_ROUNDING = 1e-6
"""Deviation of a column, relative to its mean, that rounding in float32 can cause."""


@dataclass(frozen=True, eq=False)
class FittedScaling:
    """Maps an input ``r`` to ``slope * r + offset``, element by element.

    Attributes:
        slope, offset: shape ``(size,)``, float32, in the order of ``HeadInput.dense``.
    """

    slope: Tensor
    offset: Tensor

    @classmethod
    def of(cls, vectors: RankOneGradient[Tensor], scaling: str) -> FittedScaling:
        """Fit a scaling that maps the smallest training value to -1 and the largest to 1.

        ``global`` has one range, that of all elements of all rows; ``feature`` has one for each
        element. Elements of other rows may lie outside [-1, 1]. A flat range, as in
        ``RankOneGradient.scaled``, becomes zero, also for other rows.

        Args:
            vectors: the training rows, unscaled.
            scaling: ``global`` or ``feature``.

        Raises:
            TrainingFailedError: an element of the training rows is not finite.
        """
        if scaling == "global":
            low, high = (end.expand(vectors.size) for end in _ends_of_all(vectors))
        else:
            low, high = _ends_of_each(vectors)
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise TrainingFailedError(
                f"head training: inputs of the training rows overflow, so that scaling {scaling} "
                "has no range, although features and logits are finite; use --scaling minmax, or "
                "--reads features"
            )
        span = high.double() - low.double()
        is_flat = span <= torch.finfo(low.dtype).smallest_normal ** 0.5
        slope = torch.where(is_flat, 0.0, 2 / torch.where(is_flat, 1.0, span))
        offset = torch.where(is_flat, 0.0, -1 - slope * low.double())
        return cls(slope.to(low.dtype), offset.to(low.dtype))

    @classmethod
    def standardising(cls, columns: Tensor) -> FittedScaling:
        """Give each of the columns ``(n, k)`` the mean 0 and the standard deviation 1.

        A column that is constant up to rounding becomes zero, also for other rows.
        """
        std, mean = torch.std_mean(columns.double(), dim=0, correction=0)
        is_flat = std <= _ROUNDING * mean.abs()
        slope = torch.where(is_flat, 0.0, 1 / torch.where(is_flat, 1.0, std))
        return cls(slope.to(columns.dtype), (-slope * mean).to(columns.dtype))

    @classmethod
    def of_input(cls, rows: HeadInput[Tensor], scaling: str) -> FittedScaling | None:
        """Fit the scaling of the vectors, if it is one of `FITTED`, and standardise the columns.

        ``None`` if there is nothing to fit.
        """
        size, columns = rows.vectors.size, rows.columns
        if scaling in FITTED:
            found = cls.of(rows.vectors, scaling)
        elif columns is None:
            return None
        else:
            found = cls(columns.new_ones(size), columns.new_zeros(size))
        if columns is None:
            return found
        own = cls.standardising(columns)
        pairs = zip((found.slope, found.offset), (own.slope, own.offset), strict=True)
        return cls(*(torch.cat(pair) for pair in pairs))

    def apply(self, dense: Tensor) -> Tensor:
        """Scale materialised rows ``(n, size)`` in place."""
        return torch.addcmul(self.offset, dense, self.slope, out=dense)

    def folded(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of stacked heads that read unscaled inputs and predict the same.

        ``W (slope * r + offset) + b = (W * slope) r + (W offset + b)``, computed in float64.
        """
        weight_name, bias_name = layer_names(0)
        weight, bias = weights[weight_name].double(), weights[bias_name].double()
        slope, offset = (each.double().to(weight.device) for each in (self.slope, self.offset))
        return {
            **weights,
            weight_name: (weight * slope).to(weights[weight_name].dtype),
            bias_name: (bias + weight @ offset).to(weights[bias_name].dtype),
        }


def _ends_of_all(vectors: RankOneGradient[Tensor]) -> tuple[Tensor, Tensor]:
    low, high = vectors.extremes()
    return low.min(), high.max()


def _ends_of_each(vectors: RankOneGradient[Tensor]) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each element over the rows, one class at a time."""
    products = (column[:, None] * vectors.features for column in vectors.delta.T)
    ends = [torch.aminmax(product, dim=0) for product in products]
    return torch.cat([each.min for each in ends]), torch.cat([each.max for each in ends])
