"""The stage import-model: make a model of a network from elsewhere and its trained weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, FiniteFloat, PositiveInt, Strict

from pipeline.fields import PRETRAINED, Place, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Stage
from pipeline.workspace import Workspace
from stages.data.opened import opened
from stages.data.option_types import (
    AcceptUnstable,
    ClassNames,
    Dataset,
    LastLayer,
    ModelOutputName,
    Network,
    Split,
)
from stages.data.registry import DEFAULT_IMAGE_SIZE, SourceSpec
from stages.data.resize import Interpolation, Resize
from stages.data.source import ImageSource, ReaderSource, without_images
from stages.data.source_notes import left_out_of, source_notes
from stages.errors import InputError
from stages.sensing.card import (
    ACCEPTS_UNSTABLE,
    CIFAR10_MEAN,
    CIFAR10_NORMALISATION,
    CIFAR10_STD,
    ModelCard,
    Normalisation,
)
from stages.sensing.class_check import listed_classes, output_notes, shown_classes
from stages.sensing.models import WEIGHTS_KEY, model_card, model_name
from stages.sensing.trust import HF, require_trust
from store.artifacts import Artifact
from store.errors import PlanMismatchError
from store.plan import Plan, differences

if TYPE_CHECKING:
    from torch import nn

    from stages.sensing.checkpoint import Checkpoint
    from stages.sensing.published import Published

VERSION = 1
"""Raised whenever the same options give another model."""


def _three(value: object) -> object:
    """Three numbers; one stands for all channels."""
    values = value if isinstance(value, list | tuple) else (value,)
    if len(values) not in (1, 3):
        raise ValueError("expected three numbers, one per channel, or one for all channels")
    return tuple(values) * (3 // len(values))


def _joined(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


PerChannel = Annotated[
    tuple[FiniteFloat, FiniteFloat, FiniteFloat],
    Strict(False),
    BeforeValidator(_three),
    Written(metavar="R,G,B|X"),
]
ImportedNetwork = Annotated[
    Network,
    Field(
        description="Network to import: resnet18; torchvision:NAME or timm:NAME, with settings "
        "after commas (timm:NAME,img_size=96); hf:FOLDER or hf:OWNER/NAME; file.py:factory or "
        "package.module:factory."
    ),
]
Weights = Annotated[
    str,
    Place.WEIGHTS,
    Written(metavar="FILE|pretrained"),
    Field(
        description="Weights of the network to import: .safetensors, a state dict saved by torch, "
        "a folder or .index.json of shards, or 'pretrained' for those that torchvision, timm or "
        "the hf: folder or repository provides."
    ),
]
WeightsKey = Annotated[
    str,
    Field(
        description="Entry of the checkpoint that holds the weights, such as state_dict_ema, or "
        "the prefix of their names. (default: state_dict, model, model_state_dict or net)"
    ),
]
Mean = Annotated[
    PerChannel,
    Field(
        description="Per-channel mean subtracted from pixels in [0, 1]. (default: "
        f"as published, else {_joined(CIFAR10_MEAN)})"
    ),
]
Std = Annotated[
    PerChannel,
    Field(
        description="Per-channel standard deviation that pixels in [0, 1] are divided by; 1/255 = "
        f"0.003922 for a network fed 0-255. (default: as published, else {_joined(CIFAR10_STD)})"
    ),
]
InputSize = Annotated[
    PositiveInt,
    Field(
        description="Height and width of the network's input in pixels, and so of the centre crop. "
        f"(default: as published for the network, else {DEFAULT_IMAGE_SIZE})"
    ),
]


def _sides(text: str) -> int | tuple[int, ...] | str:
    """``256`` as a number, ``256x320`` as two; whatever is neither is left to the type."""
    try:
        sides = tuple(map(int, text.split("x")))
    except ValueError:
        return text
    return sides[0] if len(sides) == 1 else sides


ResizeBy = Annotated[
    PositiveInt | Annotated[tuple[PositiveInt, PositiveInt], Strict(False)],
    Written(metavar="N|HxW", read=_sides),
    Field(
        description="Shorter side of an image before its centre is cut out, or HxW to stretch it. "
        "(default: as published, else the input size)"
    ),
]
Filter = Annotated[
    Interpolation,
    Field(description="Filter that resizes images. (default: as published, else bilinear)"),
]


def changed_resizing(
    known: Resize,
    image_size: int | None,
    resize: int | tuple[int, int] | None,
    interpolation: Interpolation | None,
) -> Resize:
    """How images are resized, with the options that are given in place of what is known.

    Another image size also replaces the resize before the crop.
    """
    if not (image_size or resize or interpolation):
        return known
    size = (image_size, image_size) if image_size else known.size
    kept = known.resize if size == known.size else None
    return Resize(size, resize or kept, interpolation or known.interpolation)


def weights_file(workspace: Workspace, network: str, weights: str) -> str:
    """The file of the weights; published ones are downloaded if they are not in the cache."""
    if weights != PRETRAINED:
        return weights
    from stages.sensing.pretrained import pretrained_file

    return workspace.once((PRETRAINED, network), lambda: pretrained_file(network))


class ImportModel(Stage):
    """Import a network and its trained weights as a model of the store.

    The network is checked on a few images first. Importing the same network again changes nothing.
    """

    verb = "import-model"
    makes = "model"
    runs_with = ("data_root",)
    examples = ("import-model --network mine.py:make_net --weights mine.pt --dataset ./photos",)

    network: ImportedNetwork
    weights: Weights
    weights_key: WeightsKey | None = None
    name: ModelOutputName | None = None
    dataset: Dataset | None = Field(
        None,
        description="Data set of the network's classes: they name its outputs, and a few images "
        "are used to check it. Without it, noise is used, and `extract` must name the model.",
    )
    split: Split = "test"
    classes: ClassNames = ()
    last_layer: LastLayer | None = None
    mean: Mean | None = None
    std: Std | None = None
    image_size: InputSize | None = None
    resize: ResizeBy | None = None
    interpolation: Filter | None = None
    accept_unstable: AcceptUnstable = False

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The import.

        Raises:
            InputError, DataNotFoundError: weights or data set are missing or do not fit the
                network; it is code that the user has not named; it fails a check.
            PlanMismatchError: the name is taken by another model.
        """
        source = self._source(workspace)
        found = self.imported(workspace, source)
        preview = found.job.preview
        is_ordered = bool(self.classes) or self.dataset is None  # the network's own names
        notes = output_notes(source, found.card, is_ordered=is_ordered, is_new=True)
        mapping = listed_classes(source, found.card)
        shown = Preview(
            preview.text + shown_classes(mapping),
            {**preview.facts, "classes": mapping, **left_out_of(source)},
            [*preview.notes, *notes, *source_notes(source)],
        )
        return replace(found.job, preview=shown)

    def check_given(self, options: Collection[str]) -> None:
        """Raise ``InputError`` for a split without a data set."""
        if "split" in options and self.dataset is None:
            raise InputError("--split has no effect without --dataset")

    def imported(self, workspace: Workspace, source: ReaderSource) -> Imported:
        """The network, checked on images of a source, and the job that stores it.

        A model that is in the store already is used if it has the same weights and preprocessing;
        its classes may come from another data set.

        Raises what `job` raises.
        """
        require_trust(self.network, workspace.named_by)
        artifact, there = self._named(workspace), None
        if artifact is not None and artifact.is_complete():
            there = model_card(artifact)
        card, network, notes = self._described(workspace, source, there)
        if artifact is None:
            artifact, card = self._found(workspace, card)
        card = replace(card, name=artifact.name)
        plan = _plan_of(card)
        if exists := artifact.is_complete():
            there, plan = model_card(artifact), artifact.plan()
            _check_same(there, card)
            card = there
        else:
            notes += self._preparation_notes(workspace, card, source)
        artifact.holds(plan)  # another plan is refused

        def compute() -> Output:
            from stages.sensing.weights import save_weights

            return {WEIGHTS_KEY: save_weights(network)}, {"card": card.to_dict()}

        what = f"import {self.network} as model {card.name}"
        preview = Preview(what, {"name": card.name, "plan": plan, "exists": exists}, notes)
        title = f"import {card.name}"
        return Imported(card, ArtifactJob(workspace.store, artifact, plan, title, preview, compute))

    def resizing(self, workspace: Workspace) -> Resize:
        """How images become the network's input.

        What is not given is that of the stored model of the same name, or is as published; else the
        shorter side is resized to the input size and the centre is cut out. A stored model of an
        older version may leave it to the layout of the data set.
        """
        artifact, known = self._named(workspace), Resize((DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE))
        is_fixed = True
        if artifact is not None and artifact.is_complete():
            known, is_fixed = model_card(artifact).input, model_card(artifact).resizing is not None
        elif (found := self._published(workspace)) and found.preprocessing:
            known = found.preprocessing.resizing
        chosen = changed_resizing(known, self.image_size, self.resize, self.interpolation)
        return chosen.in_layout(stretches=False) if is_fixed else chosen

    def _published(self, workspace: Workspace) -> Published | None:
        """What the library of the network publishes for it, or beside its own weights."""
        from stages.sensing.published import published

        what = (self.network, self._file(workspace), self.image_size)
        return workspace.once(("published", *what), lambda: published(*what))

    def _file(self, workspace: Workspace) -> str:
        return weights_file(workspace, self.network, self.weights)

    def _source(self, workspace: Workspace) -> ReaderSource:
        """The data set of the classes, or only the names of the classes."""
        resizing = self.resizing(workspace)
        if self.dataset is None:
            found = self._published(workspace) if self.network.startswith(HF) else None
            return without_images(self.classes or (found.class_names if found else ()), resizing)
        root = workspace.data_root
        return opened(
            workspace, SourceSpec(self.dataset, self.split, root, resizing, classes=self.classes)
        )

    def _named(self, workspace: Workspace) -> Artifact | None:
        """The model of the given or default name; None if it is named after its plan."""
        if workspace.recipe and not self.name:
            return None
        return workspace.store.artifact("model", self.name or model_name(self.network))

    def _found(self, workspace: Workspace, card: ModelCard) -> tuple[Artifact, ModelCard]:
        """The model of a step of a recipe, which is named after its plan, and its card.

        A model that an older version imported without a rule for photographs is used as it is.
        """
        found = self._planned(workspace, card)
        before = replace(card, resizing=None)
        if not (self.resize or found.is_complete()):
            of_before = self._planned(workspace, before)
            if of_before.is_complete():
                return of_before, before
        return found, card

    def _planned(self, workspace: Workspace, card: ModelCard) -> Artifact:
        plain = model_name(self.network)
        name = workspace.output_name("model", None, plain, plain, _plan_of(card))
        return workspace.store.artifact("model", name)

    def _preparation_notes(
        self, workspace: Workspace, card: ModelCard, source: ImageSource
    ) -> tuple[str, ...]:
        """Notes on what was chosen: the published preprocessing, or a crop and CIFAR-10's."""
        found = self._published(workspace)
        if found and found.preprocessing and card.resizing == found.preprocessing.resizing:
            return (f"{self.network}: {found.of}: {card.input.rule(None)}",)
        notes = []
        if not self.resize and source.n_rows and source.resize != "none":
            notes.append(
                f"{self.network}: images are prepared by {source.resize}; --resize and "
                "--image-size set another way"
            )
        if not (self.mean and self.std) and (card.mean, card.std) == CIFAR10_NORMALISATION:
            chosen = "CIFAR-10's normalisation is used; --mean and --std set another"
            notes.append(f"{self.network}: {chosen}")
        return tuple(notes)

    def _normalisation(self, workspace: Workspace, there: ModelCard | None) -> Normalisation:
        found, known = self._published(workspace), CIFAR10_NORMALISATION
        if found and found.preprocessing:  # older versions did not know it
            theirs = found.preprocessing.normalisation
            known = Normalisation(there.mean, there.std) if there else theirs
        return Normalisation(self.mean or known.mean, self.std or known.std)

    def _described(
        self, workspace: Workspace, source: ImageSource, there: ModelCard | None
    ) -> tuple[ModelCard, nn.Module, tuple[str, ...]]:
        """The network and its card, checked, and notes on what was loaded from its file.

        ``there`` is the card of the stored model of the same name, if any.

        ``M`` of the card is not known: it is taken from the features of its training images when a
        head is trained.
        """
        from stages.sensing.build import located
        from stages.sensing.model import describe, sensing_of
        from stages.sensing.pretrained import checkpoint_in
        from stages.sensing.probe import sample_images
        from stages.sensing.published import check_published_order
        from stages.sensing.round_trip import check_round_trip
        from stages.sensing.torchvision_networks import with_settings_of

        found = self._published(workspace)
        check_published_order(source, found.class_names if found else (), self.weights)
        is_pretrained = self.weights == PRETRAINED
        checkpoint = checkpoint_in(
            self._file(workspace), self.weights_key, self.network, is_pretrained=is_pretrained
        )
        network, notes = with_settings_of(self.network, checkpoint, is_published=found is not None)
        module, taken = _loaded(network, checkpoint, source, there)
        card = describe(
            module.eval(),
            name=self.name or model_name(self.network),
            network_name=located(network),
            class_names=() if there else source.class_names,
            image_size=source.image_size[0],
            family=source.family,
            normalisation=self._normalisation(workspace, there),
            last_layer=self.last_layer,
        )
        resizing = self.resizing(workspace)
        if resizing != Resize(resizing.size):  # of an older version: the layout decides
            card = replace(card, resizing=resizing)
        if self.accept_unstable:
            card = card.with_facts(ACCEPTS_UNSTABLE)
        if there is None:
            check_round_trip(module, card)
        sensing_of(module, card, sample_images(source), is_new=True)
        return card, module, notes + taken


@dataclass(frozen=True)
class Imported:
    """The card of a network from elsewhere, and the job that stores the network."""

    card: ModelCard
    job: ArtifactJob


def _plan_of(card: ModelCard) -> Plan:
    """Everything that determines a model: its card has the hash of the weights."""
    return {"stage": {"name": ImportModel.verb, "version": VERSION}, "card": card.to_dict()}


def _check_same(there: ModelCard, card: ModelCard) -> None:
    """Raise ``PlanMismatchError`` if the ``f`` or ``z`` of two cards may differ.

    The model may have been imported with another data set, so its name and its class names are not
    compared here. Whether the classes match is checked with the features.
    """
    if different := list(differences(_of_features(card), _of_features(there))):
        raise PlanMismatchError(
            f"the store holds another model '{there.name}' ({'; '.join(different)}): give this one "
            "another name with --model NAME, or --name NAME of import-model"
        )


def _of_features(card: ModelCard) -> Mapping[str, Any]:  # Any: JSON
    """The facts of a card that determine ``f`` and ``z`` of an image."""
    left_out = ("name", "class_names", "family", "M", "extra")
    facts = {key: value for key, value in card.to_dict().items() if key not in left_out}
    of_training = ("normalisation", "epoch")
    return facts | {key: value for key, value in card.extra.items() if key not in of_training}


def _loaded(
    network: str, checkpoint: Checkpoint, source: ImageSource, there: ModelCard | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with its weights, and notes on what was loaded from the checkpoint.

    Another data set of a model may have fewer classes, or none: then those of ``there`` may fit.
    """
    from stages.sensing.build import build_network
    from stages.sensing.weights import load_checkpoint

    n_classes, known = source.n_classes, there.n_classes if there else None

    def build(n: int | None) -> tuple[nn.Module, tuple[str, ...]]:
        module = build_network(network, n)
        return module, load_checkpoint(module, checkpoint)

    try:
        return build(n_classes or known)
    except InputError as error:
        if known is not None and n_classes not in (0, known):
            return build(known)
        if known is None and not (n_classes or source.n_rows):
            raise InputError(
                f"{error}; --dataset or --classes sets the number of classes"
            ) from error
        raise
