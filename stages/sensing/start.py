"""What a training starts from: pretrained weights, and how images are prepared for them."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field

from pipeline.fields import PRETRAINED
from pipeline.workspace import Workspace
from stages.data.planned_source import planned_source
from stages.data.registry import DEFAULT_IMAGE_SIZE
from stages.data.resize import Interpolation, Resize, shape_after
from stages.data.source import ImageSource
from stages.errors import InputError
from stages.sensing.card import Normalisation, check_normalisation
from stages.sensing.hidden_layers import plain_name
from stages.sensing.import_model import PerChannel, Weights, changed_resizing, weights_file
from stages.sensing.initial_weights import InitialWeights, initial_weights
from stages.sensing.models import WEIGHTS_KEY, model_card, weights_path
from store.artifacts import Artifact
from store.errors import StoreError

if TYPE_CHECKING:
    from stages.sensing.published import Preprocessing


def _none_for_random(weights: object) -> object:
    return None if weights == "random" else weights


StartWeights = Annotated[
    Weights | None,
    BeforeValidator(_none_for_random),
    Field(
        description="Weights to start from: a file, as for import-model, 'pretrained' for those "
        "that the network's library publishes, or 'random'. The last layer is newly initialised "
        "if they were trained for another number of classes. (default: random)"
    ),
]
_OF_IMAGES = "(default: as published with the weights, else that of the training images)"
StartMean = Annotated[
    PerChannel,
    Field(description=f"Per-channel mean subtracted from pixels in [0, 1]. {_OF_IMAGES}"),
]
StartStd = Annotated[
    PerChannel,
    Field(
        description="Per-channel standard deviation that pixels in [0, 1] are divided by. "
        f"{_OF_IMAGES}"
    ),
]


@dataclass(frozen=True, slots=True)
class StartOptions:
    """Options of a training that say what it starts from, as they were given."""

    network: str
    weights: str | None = None
    weights_key: str | None = None
    last_layer: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation | None = None
    resizing: Resize | None = None
    """How images are prepared for the weights, if that is known; the options above change it."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a training starts from.

    Attributes:
        weights: pretrained weights.
        normalisation: normalisation of the pixels; None for that of the training images.
        resizing: how images become the network's input; None leaves it to the layout, as in older
            versions.
    """

    weights: InitialWeights | None = None
    normalisation: Normalisation | None = None
    resizing: Resize | None = None

    @property
    def planned(self) -> dict[str, list[float]]:
        """The normalisation as recorded in a plan, unless that of the training images is used."""
        values = self.normalisation._asdict() if self.normalisation else {}
        return {name: list(channels) for name, channels in values.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the weights, and on how images are prepared for them."""
        if self.weights is None:
            return ()
        notes, network = list(self.weights.notes), self.weights.network
        if self.resizing:
            notes.append(f"{network}: images are prepared by {self.resizing.rule(None)}")
        if self.normalisation is None:
            notes.append(
                f"{network}: the normalisation is that of the training images; --mean and --std "
                "set that of the weights"
            )
        return tuple(notes)


RANDOM = Start()
"""Random weights, and images that are prepared as their layout says; for tests and programs."""


def from_stored(workspace: Workspace, options: StartOptions, model: str) -> StartOptions:
    """The options of a training that starts from a model of the store.

    Its weights are used, and its preprocessing unless other options are given.

    Raises:
        NotFoundError, DamagedError: that model is not finished, or was altered.
    """
    artifact = workspace.store.artifact("model", model)
    card = model_card(artifact)
    # Reading it whole compares its checksum; the file is read as any other from here on.
    workspace.once(("intact weights", model), lambda: bool(artifact.read(WEIGHTS_KEY)))
    weights = weights_path(workspace.store, model)
    found = dataclasses.replace(options, weights=weights, resizing=card.input)
    if options.mean or options.std:
        return found
    return dataclasses.replace(found, mean=card.mean, std=card.std)


def start_of(workspace: Workspace, options: StartOptions, source: ImageSource) -> Start:
    """What a training on the images of a source starts from.

    Raises:
        DataNotFoundError: the file of the weights does not exist.
        InputError: it cannot be read or does not fit the network, or of mean and standard deviation
            only one is known.
    """
    return Start(
        _initial_weights(workspace, options, source),
        _normalisation(workspace, options),
        resizing_of(workspace, options),
    )


def resizing_of(workspace: Workspace, options: StartOptions) -> Resize:
    """How images become the network's input: as given, or as published with the weights.

    Else the shorter side is resized to the input size, and the centre is cut out.
    """
    found = None if options.resizing else _published(workspace, options)
    unknown = Resize((DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE))
    known = options.resizing or (found.resizing if found else unknown)
    chosen = changed_resizing(known, options.image_size, options.resize, options.interpolation)
    return chosen.in_layout(stretches=False)


def stretched_before(model: Artifact) -> tuple[int, int] | None:
    """``(H, W)`` to which the training that made or began a model stretches images; else ``None``.

    Older versions stretched images of class folders by default. Such a training goes on as it was
    begun.
    """
    with suppress(StoreError, InputError):
        inputs = model.plan().get("inputs", {})
        planned = planned_source(inputs.get("source"))
        if shape_after(planned.resize) == "stretched":
            resize = planned.resizing.resize
            return resize if isinstance(resize, tuple) else None
    return None


def _normalisation(workspace: Workspace, options: StartOptions) -> Normalisation | None:
    found = _published(workspace, options)
    mean = options.mean or (found and found.normalisation.mean)
    std = options.std or (found and found.normalisation.std)
    if mean and std:
        check_normalisation(mean, std)
        return Normalisation(mean, std)
    if mean or std:
        raise InputError("expected --mean and --std together, found one of them: give both")
    return None


def _initial_weights(
    workspace: Workspace, options: StartOptions, source: ImageSource
) -> InitialWeights | None:
    if (weights := options.weights) is None:
        return None
    n_classes, image_size = source.n_classes or None, source.image_size[0]
    return workspace.once(
        ("initial weights", options, n_classes, image_size),
        lambda: initial_weights(
            options.network,
            weights_file(workspace, plain_name(options.network), weights),
            options.weights_key,
            n_classes=n_classes,
            image_size=image_size,
            last_layer=options.last_layer,
            is_published=_published(workspace, options) is not None,
            is_pretrained=weights == PRETRAINED,
        ),
    )


def _published(workspace: Workspace, options: StartOptions) -> Preprocessing | None:
    """The preprocessing that is published with the weights, if any is."""
    from stages.sensing.published import published

    if (weights := options.weights) is None:
        return None
    network = plain_name(options.network)
    file = weights_file(workspace, network, weights)
    what = (network, file, options.image_size)
    found = workspace.once(("published", *what), lambda: published(*what))
    return found.preprocessing if found else None
