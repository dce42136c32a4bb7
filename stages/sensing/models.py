"""The models of a store: choosing one, training one, taking one in from elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pipeline.journal import Journal
from pipeline.loop import LoopReport, run_loop
from stages.data.registry import SourceSpec
from stages.data.source import ImageSource, source_facts
from stages.errors import DataNotFoundError, InputError
from stages.sensing.card import CIFAR10_MEAN, CIFAR10_STD, ModelCard
from stages.sensing.recipe import TrainParams, planned_params
from stages.sensing.trust import require_trust, trust
from store.catalog import FeatureStore
from store.errors import DamagedError
from store.plan import Plan

WEIGHTS_KEY = "weights.safetensors"
TRAINING_VERSION = 1
"""Raised whenever the same recipe on the same data gives other weights."""


def models_of(store: FeatureStore) -> tuple[ModelCard, ...]:
    """The cards of the finished models of a store, by name."""
    cards = []
    for artifact in store.artifacts("model"):
        with suppress(DamagedError, InputError):  # one that is damaged does not harm the others
            if artifact.is_complete():
                cards.append(ModelCard.from_dict(artifact.card().get("card", {})))
    return tuple(cards)


def choose_model(store: FeatureStore, family: str, name: str | None) -> ModelCard:
    """The model of that name, or the only one that was trained for a family of data sets.

    Snapshots are taken by name only.

    Raises:
        DataNotFoundError: there is none; says which command trains one.
        InputError: there are several; names them.
    """
    if name is not None:
        return ModelCard.from_dict(store.artifact("model", name).card().get("card", {}))
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
        f"--dataset {family}`, or bring one with --network and --weights"
    )


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """Which network someone wants features of: a model of the store, or one from elsewhere.

    All but ``model`` belong to one from elsewhere; ``None`` stands for CIFAR-10's normalisation and
    for 32 pixels.
    """

    model: str | None = None
    network: str | None = None
    weights: str | None = None
    last_layer: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class Chosen:
    """A data set at a network's size, and the network; ``take_in`` brings it into the store."""

    source: SourceSpec
    card: ModelCard
    weights: str
    take_in: Callable[[], None]


def choose(store: FeatureStore, request: ModelRequest, source: SourceSpec) -> Chosen:
    """The network that was asked for. Nothing is written before ``take_in`` is called.

    A network from elsewhere goes under ``request.model`` or its own name.

    Raises:
        InputError, DataNotFoundError: it is not there, does not fit, or options do not go together.
        PlanMismatchError: the name holds another network or other weights.
    """
    if request.network is None:
        given = dataclasses.replace(request, model=None)
        if given != ModelRequest():
            raise InputError(
                "--weights, --last-layer, --mean, --std and --image-size describe a network from "
                "elsewhere: give --network too, or leave them out for a model of the store"
            )
        card = choose_model(store, source.open().family, request.model)
        require_trust(card.network, f"model {card.name}")
        if "source_sha256" in card.extra:
            from stages.sensing.model import check_code

            check_code(card)
        source = dataclasses.replace(source, image_size=card.image_size)
        return Chosen(source, card, weights_path(store, card.name), lambda: None)
    trust(request.network)
    source = dataclasses.replace(source, image_size=request.image_size or source.image_size)
    card, content = _described(request, source.open())
    artifact = store.artifact("model", card.name)
    plan = {"stage": {"name": "import-model", "version": 1}, "card": card.to_dict()}
    artifact.refuse_other(plan)

    def take_in() -> None:
        artifact.claim(plan)
        if not artifact.is_settled():
            artifact.write({WEIGHTS_KEY: content}, {"card": card.to_dict()})

    return Chosen(source, card, weights_path(store, card.name), take_in)


def _described(request: ModelRequest, source: ImageSource) -> tuple[ModelCard, bytes]:
    """Card and weights of a network from elsewhere.

    Its ``M`` is not known: it is taken from the features of its training images when a head is
    trained.
    """
    from stages.sensing.build import build_network, located
    from stages.sensing.model import describe
    from stages.sensing.weights import load_weights, save_weights

    assert request.network is not None  # what choose has seen
    if request.weights is None:
        raise InputError(
            f"network {request.network}: it needs its trained weights; give --weights FILE, name a "
            "model of the store with --model, or train one with `intro-pipe train-sensing`"
        )
    module = build_network(request.network, source.n_classes or None)
    load_weights(module, request.weights)
    card = describe(
        module.eval(),
        name=request.model or model_name(request.network),
        network_name=located(request.network),
        class_names=source.class_names,
        image_size=source.image_size[0],
        family=source.family,
        mean=request.mean or CIFAR10_MEAN,
        std=request.std or CIFAR10_STD,
        last_layer=request.last_layer,
    )
    return card, save_weights(module)


def model_name(network: str) -> str:
    """What a model is called by default: that of ``torchvision:resnet18`` is ``resnet18``."""
    return network.rpartition(":")[2]


def training_sources(
    dataset: str, data_root: str, image_size: int, limit: int | None
) -> tuple[SourceSpec, SourceSpec | None]:
    """The training images, and the test images where the data set has some."""
    train = SourceSpec(dataset, "train", data_root, image_size, limit)
    test = SourceSpec(dataset, "test", data_root, image_size, limit)
    try:
        test.open()
    except InputError:
        return train, None
    return train, test


def weights_path(store: FeatureStore, name: str) -> str:
    """The place of a model's weights, which workers load and check against its card."""
    return f"{store.artifact('model', name).storage.location}/{WEIGHTS_KEY}"


def training_plan(params: TrainParams, train: SourceSpec, last_layer: str | None) -> Plan:
    """Everything that determines the weights of a training, a user's network code included."""
    from stages.sensing.build import source_hash

    code = source_hash(params.network)
    return {
        **({"code": code} if code else {}),
        "stage": {
            "name": "train-sensing",
            "version": TRAINING_VERSION,
            "params": {**planned_params(params), "last_layer": last_layer},
        },
        "inputs": {"source": source_facts(train.open())},
    }


def train_model(
    store: FeatureStore,
    name: str,
    params: TrainParams,
    *,
    train: SourceSpec,
    test: SourceSpec | None,
    device: str,
    last_layer: str | None,
    journal: Journal,
    keep_every: int | None = None,
) -> LoopReport:
    """Train a network under a name, or go on with it; a finished one is only read.

    With ``keep_every`` snapshots of it are kept on the way, as ``stages.sensing.snapshots`` says.

    Raises:
        PlanMismatchError: the name, or that of a snapshot, holds a model of another recipe or data.
        InputError: the training is past an epoch whose snapshot is not there.
    """
    from stages.sensing.build import located
    from stages.sensing.snapshots import Snapshots
    from stages.sensing.train import TrainSensing

    trust(params.network)
    params = dataclasses.replace(params, network=located(params.network))
    plan = training_plan(params, train, last_layer)
    stage = TrainSensing(name, params, train, test, device, last_layer=last_layer)
    artifact = store.artifact("model", name)
    keep = None
    if keep_every is not None:
        snapshots = Snapshots(store, stage, plan, keep_every)
        snapshots.check(artifact)
        keep = snapshots.take
    return run_loop(stage, artifact, plan, store, journal, title=f"train {name}", keep=keep)
