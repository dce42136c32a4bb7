"""The first layer of a head on factored gradients: full, or compact with low rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.reflection.rank_one import RankOneGradient

PACE = 64.0
"""Learning speed of the low-rank layer relative to the layers after it, at equal learning rate.

Chosen on CIFAR-10, where 1 and 16 were worse with the paper's weight decay, and on 1,000 classes
with 2,048 features, where 256 diverged.
"""


class LowRank(nn.Module):
    """Computes ``rank`` numbers of a gradient, ``c <u_r ⊗ v_r, r_x>``, from its factors.

    A linear layer after it reads r_x through a matrix of that rank in class and feature, with
    ``rank (N + d)`` parameters instead of ``N d`` for each of its outputs. ``c`` scales the initial
    outputs to the size of r_x, and their updates to the same size for any ``N`` and ``d``.
    """

    def __init__(self, rank: int, n_classes: int, feature_dim: int) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.empty(rank, n_classes))
        self.features = nn.Parameter(torch.empty(rank, feature_dim))
        for vectors in (self.classes, self.features):
            nn.init.uniform_(vectors, -math.sqrt(3 / PACE), math.sqrt(3 / PACE))

    def forward(self, gradients: RankOneGradient[Tensor]) -> Tensor:
        """Output of shape ``(n, rank)``."""
        pairs = RankOneGradient(self.classes, self.features)
        return _scale(self.classes, self.features) * gradients.inner_products(pairs)


@dataclass(frozen=True, eq=False)
class StackedGradients:
    """The factored rows ``δ ⊗ f (+ k)`` for each of ``K`` heads in a training step.

    ``delta (K, n, N)``, ``features (K, n, d)`` and ``offset (K, n)``, in the dtype of the products.
    """

    delta: Tensor
    features: Tensor
    offset: Tensor | None

    def of_each(self) -> list[RankOneGradient[Tensor]]:
        """The rows for each head."""
        offsets = [None] * len(self.delta) if self.offset is None else list(self.offset)
        factors = zip(self.delta, self.features, offsets, strict=True)
        return [RankOneGradient(*each) for each in factors]

    def project(self, weights: Tensor) -> Tensor:
        """Multiply ``weights (K, out, N d)`` of each head by its rows: ``(K, n, out)``."""
        pairs = zip(self.of_each(), weights, strict=True)
        return torch.stack([rows.project(weight) for rows, weight in pairs])

    def weighted_sums(self, slope: Tensor, out: Tensor) -> None:
        """Fill ``out (K, out, N d)``, the gradient of `project`, from ``slope (K, n, out)``."""
        for rows, own, grad in zip(self.of_each(), slope, out, strict=True):
            for at in range(0, len(grad), rows.outputs_at_once):
                some = slice(at, at + rows.outputs_at_once)
                grad[some] = rows.weighted_sums(own[:, some])


def low_rank(rows: StackedGradients, vectors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of `LowRank` for each head, ``(K, n, rank)``, and the two products that form them.

    ``vectors`` are those of the classes, ``(K, rank, N)``, and of the features, ``(K, rank, d)``.
    """
    classes, features = vectors
    of_classes = torch.bmm(rows.delta, classes.mT)
    of_features = torch.bmm(rows.features, features.mT)
    found = of_classes * of_features
    if rows.offset is not None:
        sums = classes.sum(dim=2) * features.sum(dim=2)
        found += rows.offset[:, :, None] * sums[:, None, :]
    return found * _scale(classes, features), of_classes, of_features


def fill_low_rank_grads(
    rows: StackedGradients,
    vectors: Sequence[Tensor],
    products: Sequence[Tensor],
    slope: Tensor,
    out: Sequence[Tensor],
) -> None:
    """Fill the gradients of both ``vectors`` from ``slope (K, n, rank)``; see `low_rank`."""
    (classes, features), (of_classes, of_features) = vectors, products
    slope = slope * _scale(classes, features)
    torch.bmm((slope * of_features).mT, rows.delta, out=out[0])
    torch.bmm((slope * of_classes).mT, rows.features, out=out[1])
    if rows.offset is not None:
        shares = (slope * rows.offset[:, :, None]).sum(dim=1)
        out[0].add_((shares * features.sum(dim=2))[:, :, None])
        out[1].add_((shares * classes.sum(dim=2))[:, :, None])


def _scale(classes: Tensor, features: Tensor) -> float:
    return PACE / math.sqrt(classes.shape[-1] * features.shape[-1])
