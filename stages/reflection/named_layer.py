"""Gradients of a layer other than the last one, as an additional array of a feature set.

They cannot be derived from stored vectors, so they are computed during extraction. Each row has as
many numbers as the layer has weights, or as the random projection keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.reflection.losses import DEFAULT_LOSS, checked_loss
from stages.sensing.card import ModelCard
from store.schema import ArraySpec

if TYPE_CHECKING:
    from torch import Tensor, nn

ARRAY = "gradients"


@dataclass(frozen=True, slots=True)
class NamedLayer:
    """The gradients to store beside features and logits.

    Attributes:
        layer: a layer with a weight, as in ``network.named_modules()``.
        loss: a name in ``stages.reflection.losses.LOSSES``, against every class in a single pass.
        size: length of a random projection of each row; ``None`` stores the gradient itself.
    """

    layer: str
    loss: str = DEFAULT_LOSS
    size: int | None = None

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form, as stored in a plan."""
        return {"layer": self.layer, "loss": self.loss, "size": self.size}

    def array_spec(self, card: ModelCard) -> ArraySpec:
        """The array that stores them: ``[rows, size]`` float32.

        Raises:
            InputError: no such layer or loss, or the loss needs an ``M`` that the model lacks.
        """
        from stages.reflection.layers import weight_of
        from stages.sensing.build import build_network

        checked_loss(self.loss, M=card.M, variant="single-pass")
        weight = weight_of(build_network(card.network, card.n_classes).eval(), self.layer)
        return ArraySpec(ARRAY, (self.size or weight.numel(),), "float32", ("gradient",))

    def of(self, network: nn.Module, pixels: Tensor, M: float | None) -> Tensor:
        """Gradients ``[n, size]`` of normalised pixels ``[n, 3, H, W]``; network in eval mode."""
        from stages.reflection.layers import Projection, layer_gradients

        projection = None if self.size is None else Projection(self.size)
        return layer_gradients(
            network, self.layer, pixels, loss=self.loss, M=M, projection=projection
        )
