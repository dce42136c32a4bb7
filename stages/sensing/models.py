"""The models of a store: choosing one, training one, taking one in from elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.journal import Journal
from pipeline.loop import LoopReport, run_loop
from stages.data.registry import SourceSpec
from stages.data.source import source_facts
from stages.errors import DataNotFoundError, InputError
from stages.sensing.card import CIFAR10_MEAN, CIFAR10_STD, ModelCard
from stages.sensing.recipe import TrainParams
from store.catalog import FeatureStore
from store.plan import Plan

WEIGHTS_KEY = "weights.safetensors"
TRAINING_VERSION = 1
"""Raised whenever the same recipe on the same data gives other weights."""


def models_of(store: FeatureStore) -> tuple[ModelCard, ...]:
    """The cards of the finished models of a store, by name."""
    return tuple(
        ModelCard.from_dict(artifact.card()["card"])
        for artifact in store.artifacts("model")
        if artifact.is_complete()
    )


def choose_model(store: FeatureStore, family: str, name: str | None) -> ModelCard:
    """The model of that name, or the only one that was trained for a family of data sets.

    Raises:
        DataNotFoundError: there is none; says which command trains one.
        InputError: there are several; names them.
    """
    if name is not None:
        return ModelCard.from_dict(store.artifact("model", name).card()["card"])
    fitting = [card for card in models_of(store) if card.family == family]
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
    """Which network someone wants features of: a model of the store, or one from elsewhere."""

    model: str | None = None
    network: str | None = None
    weights: str | None = None
    last_layer: str | None = None
    mean: tuple[float, float, float] = CIFAR10_MEAN
    std: tuple[float, float, float] = CIFAR10_STD
    image_size: int = 32


def model_for(
    store: FeatureStore,
    request: ModelRequest,
    dataset: str,
    split: str,
    data_root: str,
    limit: int | None,
) -> tuple[SourceSpec, ModelCard, str]:
    """The data set at the network's size, the network's card, and the file with its weights.

    A network from elsewhere is taken into the store first, under ``request.model`` or its own name.

    Raises:
        InputError, DataNotFoundError: as ``choose_model`` and ``import_model``.
    """
    spec = SourceSpec(dataset, split, data_root, request.image_size, limit)
    if request.network is None:
        if request.weights is not None:
            raise InputError("--weights: expected --network too, to say what they belong to")
        card = choose_model(store, spec.open().family, request.model)
    else:
        source = spec.open()
        card = import_model(
            store,
            request.model or model_name(request.network),
            request.network,
            request.weights,
            family=source.family,
            class_names=source.class_names,
            image_size=request.image_size,
            mean=request.mean,
            std=request.std,
            last_layer=request.last_layer,
        )
    spec = dataclasses.replace(spec, image_size=card.image_size)
    return spec, card, weights_path(store, card.name)


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
    """The file with a model's weights, which workers load and check against its card."""
    return str(Path(store.artifact("model", name).storage.location, WEIGHTS_KEY))


def training_plan(params: TrainParams, train: SourceSpec) -> Plan:
    """Everything that determines the weights of a training, a user's network code included."""
    from stages.sensing.build import source_hash

    code = source_hash(params.network)
    return {
        **({"code": code} if code else {}),
        "stage": {
            "name": "train-sensing",
            "version": TRAINING_VERSION,
            "params": dataclasses.asdict(params),
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
    command: Sequence[str],
) -> LoopReport:
    """Train a network under a name, or go on with it; a finished one is only read.

    Raises:
        PlanMismatchError: the name holds a model of another recipe or other data.
    """
    from stages.sensing.build import located
    from stages.sensing.train import TrainSensing

    params = dataclasses.replace(params, network=located(params.network))
    plan = training_plan(params, train)
    artifact = store.prepare().artifact("model", name)
    stage = TrainSensing(name, params, train, test, device, last_layer=last_layer)
    journal = Journal.begin(store.location, command)
    with journal.outcome():
        return run_loop(stage, artifact, plan, journal, title=f"train {name}")


def import_model(
    store: FeatureStore,
    name: str,
    network: str,
    weights: str | None,
    *,
    family: str,
    class_names: tuple[str, ...],
    image_size: int,
    mean: tuple[float, ...] = CIFAR10_MEAN,
    std: tuple[float, ...] = CIFAR10_STD,
    last_layer: str | None = None,
) -> ModelCard:
    """Take a network of the user's into the store, as safetensors; the same one again is a no-op.

    Its ``M`` is not known: it is taken from the features of its training images when a head is
    trained.

    Raises:
        InputError: the weights do not fit, hold code, or the network has no linear last layer.
        PlanMismatchError: the name holds another network or other weights.
    """
    from stages.sensing.build import build_network, located
    from stages.sensing.model import describe
    from stages.sensing.weights import load_weights, save_weights

    if weights is None:
        raise InputError(
            f"network {network}: it needs its trained weights; give --weights FILE, or train it "
            "with `intro-pipe train-sensing`"
        )
    module = build_network(network, len(class_names) or None)
    load_weights(module, weights)
    card = describe(
        module.eval(),
        name=name,
        network_name=located(network),
        class_names=class_names,
        image_size=image_size,
        family=family,
        mean=mean,
        std=std,
        last_layer=last_layer,
    )
    artifact = store.prepare().artifact("model", name)
    artifact.claim({"stage": {"name": "import-model", "version": 1}, "card": card.to_dict()})
    if not artifact.is_complete():
        artifact.write({WEIGHTS_KEY: save_weights(module)}, {"card": card.to_dict()})
    return card
