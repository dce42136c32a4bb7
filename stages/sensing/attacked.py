"""A model of the store that is attacked before another one is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.workspace import Workspace
from stages.data.source import ImageSource
from stages.errors import InputError
from stages.sensing.card import ModelCard
from stages.sensing.methods.method_params import Adversarial, MethodParams
from stages.sensing.models import model_card, require_trusted_code, weights_path


@dataclass(frozen=True, slots=True)
class Attacked:
    """A model that is attacked.

    Attributes:
        card: its card.
        weights: path or URL of its weights.
    """

    card: ModelCard
    weights: str

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines its gradients."""
        card = self.card
        return {
            "network": card.network,
            "weights": card.weights_sha256,
            "mean": list(card.mean),
            "std": list(card.std),
        }


def check_attacked(method: MethodParams, attacked: str | None) -> None:
    """Raise ``InputError`` if a method lacks the model that it attacks, or does not attack any."""
    is_needed = isinstance(method, Adversarial) and method.attack == "i-fgsm"
    if is_needed and attacked is None:
        raise InputError(
            "--method adversarial attacks a trained network: name a model of the store with "
            "--attacked MODEL, or use --attack pgd"
        )
    if attacked is not None and not is_needed:
        raise InputError("--attacked has no effect without --method adversarial --attack i-fgsm")


def attacked_model(workspace: Workspace, name: str, source: ImageSource) -> Attacked:
    """The model of that name.

    Raises:
        NotFoundError, DamagedError: the model does not exist, or was altered.
        InputError: it is code that is not trusted, or was trained for images of another size or for
            other classes than those of ``source``.
    """
    card = model_card(workspace.store.artifact("model", name))
    require_trusted_code(card)
    if card.class_names != tuple(source.class_names):
        raise InputError(
            f"model {name}: expected the classes of {source.name}, found others; attack a model "
            "that was trained on these images"
        )
    if (size := (card.image_size, card.image_size)) != tuple(source.image_size):
        raise InputError(
            f"model {name}: takes images of {size[0]}x{size[1]} pixels, the training has "
            f"{source.image_size[0]}x{source.image_size[1]}; give --image-size {size[0]}"
        )
    return Attacked(card, weights_path(workspace.store, name))
