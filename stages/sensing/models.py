"""The models of a store."""

from __future__ import annotations

from contextlib import suppress

from stages.errors import DataNotFoundError, InputError
from stages.sensing.card import ModelCard
from stages.sensing.hidden_layers import plain_name, widths_in
from stages.sensing.trust import HF, require_trust
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.disk import spelled_out
from store.errors import DamagedError

WEIGHTS_KEY = "weights.safetensors"


def models_of(store: FeatureStore) -> tuple[ModelCard, ...]:
    """The cards of the finished models of a store, in the order of their names.

    Models whose card is damaged are left out.
    """
    cards = []
    for artifact in store.artifacts("model"):
        with suppress(DamagedError, InputError):  # the others can still be used
            if artifact.is_complete():
                cards.append(model_card(artifact))
    return tuple(cards)


def choose_model(store: FeatureStore, family: str, name: str | None) -> ModelCard:
    """The model of that name, or the only one that was trained for a family of data sets.

    Snapshots are taken by name only.

    Raises:
        DataNotFoundError: there is none; says which command trains one.
        InputError: there are several; names them.
    """
    if name is not None:
        return model_card(store.artifact("model", name))
    models = (card for card in models_of(store) if card.family == family)
    fitting = [card for card in models if "epoch" not in card.extra]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(
            f"{len(fitting)} models in {store.location} were trained for {family}: choose one of "
            f"{', '.join(card.name for card in fitting)} with --model"
        )
    raise DataNotFoundError(
        f"no model for {family} in {store.location}: train one with `intro-pipe train-sensing "
        f"--dataset {family}`, or import one with `intro-pipe import-model`"
    )


def require_trusted_code(card: ModelCard) -> None:
    """Raise ``InputError`` if a model is code that is not trusted, or that was edited since."""
    require_trust(card.network, f"model {card.name}")
    if "source_sha256" in card.extra:
        from stages.sensing.model import check_code

        check_code(card)


def model_card(artifact: Artifact) -> ModelCard:
    """The card of a finished model.

    Raises:
        NotFoundError, DamagedError: the model is not finished, or was altered.
        InputError: its card is not in our format.
    """
    return ModelCard.from_dict(artifact.card().get("card", {}))


def model_name(network: str) -> str:
    """Default name of a model: ``vit_b_16`` for ``torchvision:vit_b_16,...``.

    >>> model_name("hf:google/vit-base-patch16-224")
    'vit-base-patch16-224'
    >>> model_name("torchvision:resnet18+128")
    'resnet18-128'
    """
    if widths := widths_in(network):
        return "-".join([model_name(plain_name(network)), *map(str, widths)])
    if network.startswith(HF):
        return spelled_out(network.removeprefix(HF)).absolute().name.partition("@")[0]
    return network.rpartition(":")[2].partition(",")[0]


def weights_path(store: FeatureStore, name: str) -> str:
    """Path or URL of a model's weights: what `load_sensing` loads and compares with the card.

    The model need not exist.
    """
    return f"{store.artifact('model', name).storage.location}/{WEIGHTS_KEY}"
