"""The card of a model that was trained in its store: its model card, and how it was trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from stages.sensing.card import ModelCard
from stages.sensing.train_params import TrainParams
from stages.typed import typed
from store.artifacts import Artifact

OMITTED = ("n_added", "n_train_not_finite", "n_test_not_finite")
"""Facts that are only written if they are not 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A trained model, in the order of its card.

    Attributes:
        card: the model card.
        M: mean over the training images of the largest logit.
        train_accuracy, test_accuracy: in eval mode; ``None`` without test images.
        n_train: number of images that it was trained on.
        n_train_left_out: number of images that are unreadable or have no label.
        n_added: number of images that the training method added to them.
        n_held_out, n_test: number of images held out of the training, and of test images.
        n_train_not_finite, n_test_not_finite: number of images whose logits are not finite, which
            are left out of the accuracy.
        recipe: how it was trained.
    """

    card: ModelCard
    M: float
    train_accuracy: float
    test_accuracy: float | None
    n_train: int
    n_train_left_out: int
    n_held_out: int
    n_test: int
    n_added: int = 0
    n_train_not_finite: int = 0
    n_test_not_finite: int = 0
    recipe: TrainParams

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form."""
        facts = {**asdict(self), "card": self.card.to_dict()}
        return {key: fact for key, fact in facts.items() if fact or key not in OMITTED}

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """Read the card of a model that was trained here.

        Raises:
            NotFoundError, DamagedError: the model is not finished, or was altered.
            InputError: it was trained elsewhere, or its card is not in our format.
        """
        values = artifact.card()
        card = ModelCard.from_dict(values.get("card", {}))
        return typed(cls, {**values, "card": card}, f"card of model '{artifact.name}'")


def is_trained_here(artifact: Artifact) -> bool:
    """Whether a finished model was trained in its store, so that its card says how."""
    return "recipe" in artifact.card()
