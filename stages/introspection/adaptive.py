"""A head as what an attack looks through: the adaptive setting, which the paper does not try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stages.introspection.predictors import open_head
from stages.reflection.perturbation import Judge
from store.artifacts import Artifact
from store.catalog import FeatureStore


@dataclass(frozen=True, slots=True)
class HeadTarget:
    """A trained head of a store; its logits are a differentiable function of f's vectors.

    Attributes:
        store: the store's location.
        head: its name there.
        seed: which of the head's seeds; the first unless one is named.
    """

    store: str
    head: str
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """What the plan records: the weights, wherever they lie and whatever they are called."""
        card = self._artifact.card()
        seed = card["params"]["seeds"][0] if self.seed is None else self.seed
        files = {key: vouched["sha256"] for key, vouched in sorted(card["files"].items())}
        return {"files": files, "seed": seed}

    def load(self, device: torch.device) -> Judge:
        """The head on a device; raises ``InputError`` for one that was fitted, not trained."""
        return open_head(self._artifact, self.seed, device=str(device)).requires_grad_(False)

    @property
    def _artifact(self) -> Artifact:
        return FeatureStore(self.store).artifact("head", self.head)
