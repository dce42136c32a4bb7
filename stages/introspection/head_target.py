"""A head as the target of an attack: the adaptive setting, which the paper does not consider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stages.introspection.head_card import head_card
from stages.introspection.predictors import open_head
from stages.introspection.preparation import check_only_last_layer
from stages.reflection.perturbation import Judge
from store.artifacts import Artifact
from store.catalog import FeatureStore


@dataclass(frozen=True, slots=True)
class HeadTarget:
    """A trained head in a store; its logits are a differentiable function of f's vectors.

    Attributes:
        store: location of the store.
        head: name of the head.
        seed: one of the head's seeds; by default the first.
    """

    store: str
    head: str
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """Identifies the weights in a plan, wherever they are stored and whatever their name.

        Raises ``InputError`` for a head that reads more than the vectors.
        """
        check_only_last_layer(self._artifact)
        seed = head_card(self._artifact).seeds[0] if self.seed is None else self.seed
        files = {key: digest.sha256 for key, digest in sorted(self._artifact.files().items())}
        return {"files": files, "seed": seed}

    def load(self, device: torch.device) -> Judge:
        """Load the head onto a device; raises ``InputError`` if it was fitted, not trained."""
        return open_head(self._artifact, self.seed, device=str(device)).requires_grad_(False)

    @property
    def _artifact(self) -> Artifact:
        return FeatureStore(self.store).artifact("head", self.head)
