"""The stage train-sensing: the network f, trained by the paper's recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.fields import OneOf, Place, Written
from pipeline.loop import Loop
from pipeline.make import ArtifactJob
from pipeline.stage import Preview, Stage
from pipeline.workspace import Workspace
from stages.data.classes import check_same_classes, class_notes
from stages.data.decoding import Decoding
from stages.data.opened import facts_of, opened
from stages.data.option_types import (
    AcceptUnstable,
    ClassNames,
    Dataset,
    ExifOrientation,
    FlipLabels,
    LastLayer,
    Limit,
    ModelOutputName,
    Network,
    Split,
    ValueRange,
)
from stages.data.registry import SourceSpec
from stages.data.source import require_labels
from stages.data.source_notes import left_out_of, source_notes
from stages.errors import InputError
from stages.sensing.attacked import Attacked, attacked_model, check_attacked
from stages.sensing.card import ACCEPTS_UNSTABLE, Precision
from stages.sensing.import_model import (
    Filter,
    InputSize,
    ResizeBy,
    WeightsKey,
)
from stages.sensing.methods.method_options import (
    AttackedModel,
    AttackName,
    Epsilon,
    JsdWeight,
    MethodName,
    MixDepth,
    MixSeverity,
    MixWidth,
    PerDistortion,
    Step,
    Steps,
)
from stages.sensing.methods.method_params import in_words, method_from, method_options
from stages.sensing.models import model_name
from stages.sensing.snapshots import Snapshots, snapshot_epochs, with_its_snapshots
from stages.sensing.start import (
    Start,
    StartMean,
    StartOptions,
    StartStd,
    StartWeights,
    resizing_of,
    start_of,
    stretched_before,
)
from stages.sensing.train_params import (
    PRESET_NORMALISATION,
    PRESETS,
    Augmentation,
    Schedule,
    Trained,
    TrainParams,
    params_from,
    planned_params,
)
from stages.sensing.trust import require_trust
from store.artifacts import Artifact
from store.plan import Plan, fingerprint

if TYPE_CHECKING:
    from stages.sensing.sensing_training import SensingTraining

VERSION = 1
"""Raised whenever the weights for the same options and data change."""

_PRESET = TrainParams()


class TrainSensing(Stage):
    """Train the sensing network f, from random or pretrained weights.

    A checkpoint is written after every epoch; running the command again resumes from the last one.
    """

    verb = "train-sensing"
    makes = "model"
    runs_with = ("device", "data_root")
    examples = (
        "train-sensing --dataset cifar10 --network resnet18",
        "train-sensing --dataset ./photos --network torchvision:resnet18 --weights pretrained "
        "--preset fine-tune",
        "train-sensing --dataset cifar10 --method adversarial --attacked resnet18 --name robust",
    )

    dataset: Dataset
    split: Split = "train"
    test_split: Annotated[
        str,
        Written(metavar="SPLIT"),
        Field(description="Split on which the accuracy is reported, if the data set has it."),
    ] = "test"
    network: Network | None = Field(
        None,
        description="Network to train: resnet18, resnet34, resnet50, resnet101, vgg16, wrn40-2, "
        "cnn2, torchvision:NAME, timm:NAME, hf:FOLDER, hf:OWNER/NAME, file.py:factory or "
        "package.module:factory. (default: from the preset)",
    )
    preset: Annotated[str, OneOf(tuple(PRESETS))] = Field(
        "paper",
        description="paper: 200 epochs, flips. paper-crop: crops as well. quick: cnn2, 20 epochs. "
        "fine-tune: 20 epochs, flips, a lower learning rate. augmix: wrn40-2, 100 epochs, as "
        "AugMix is published.",
    )
    weights: StartWeights = None
    weights_key: WeightsKey | None = None
    train: Trained = Field(
        _PRESET.train,
        description="Layers to train: all, or last-layer, which freezes the others in eval mode.",
    )
    name: ModelOutputName | None = None
    epochs: PositiveInt | None = Field(
        None, description="Number of epochs. (default: from the preset)"
    )
    batch_size: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Images per training step. (default: from the preset)"
    )
    lr: PositiveFloat | None = Field(
        None, description="Initial learning rate. (default: from the preset)"
    )
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Weight decay of SGD. (default: from the preset)"
    )
    augmentation: Augmentation | None = Field(
        None, description="Augmentation: none, flip or crop_flip. (default: from the preset)"
    )
    schedule: Schedule | None = Field(
        None,
        description="Learning rate schedule: steps, one-cycle or cosine. (default: from the "
        "preset)",
    )
    method: MethodName | None = None
    attack: AttackName | None = None
    attacked: AttackedModel | None = None
    epsilon: Epsilon | None = None
    step: Step | None = None
    steps: Steps | None = None
    per_distortion: PerDistortion | None = None
    mix_width: MixWidth | None = None
    mix_depth: MixDepth | None = None
    mix_severity: MixSeverity | None = None
    jsd_weight: JsdWeight | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        _PRESET.label_smoothing,
        description="Label smoothing: share of the target that is spread over all classes.",
    )
    precision: Precision | None = Field(
        None, description="Precision of the training: fp32 or bf16. (default: from the preset)"
    )
    seed: NonNegativeInt = Field(
        _PRESET.seed, description="Seed of weights, order and augmentation."
    )
    held_out: NonNegativeInt = Field(
        _PRESET.held_out,
        description="Number of rows, drawn with the seed, that the network is not trained on.",
    )
    held_out_until: Annotated[float, Field(gt=0, le=1)] = Field(
        _PRESET.held_out_until,
        description="Fraction of the epochs after which the held-out rows are included.",
    )
    samples: Annotated[str, Place.FILE, Written(metavar="FILE")] | None = Field(
        None,
        description="CSV file with a column sample_id: train only on these samples, such as those "
        "that prune kept. (default: all)",
    )
    flip_labels: FlipLabels | None = Field(
        None,
        description="Flip a share of the training labels on purpose, to measure how wrong labels "
        "are found: symmetric:0.2 to any other class, pairwise:0.2 to the next class; a third part "
        "is the seed, 0 by default.",
    )
    keep_every: PositiveInt | None = Field(
        None,
        description="Interval in epochs at which to keep intermediate models, beginning with "
        "NAME-epoch-001.",
    )
    last_layer: LastLayer | None = None
    accept_unstable: AcceptUnstable = False
    mean: StartMean | None = None
    std: StartStd | None = None
    image_size: InputSize | None = None
    resize: ResizeBy | None = None
    interpolation: Filter | None = None
    exif_orientation: ExifOrientation = False
    value_range: ValueRange | None = None
    classes: ClassNames = ()
    limit: Limit = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_attacked(self.params.method, self.attacked)
        if self.weights is None and (self.weights_key or self.train != "all"):
            option = "--weights-key" if self.weights_key else f"--train {self.train}"
            raise ValueError(
                f"{option} needs weights to start from: add --weights FILE, or --weights pretrained"
            )
        return self

    @property
    def params(self) -> TrainParams:
        """Training parameters: the preset, with the given options."""
        names = {each.name for each in dataclasses.fields(TrainParams)} - {"method"}
        given = {name: value for name, value in self if name in names}
        given["method"] = method_from(
            self.method or PRESETS[self.preset].method.name,
            {name: value for name, value in self if name in method_options()},
        )
        return params_from(self.preset, batch=self.batch_size, **given)

    @property
    def kept_epochs(self) -> range:
        """The epochs after which a snapshot is kept, counted from 1."""
        return snapshot_epochs(self.params.epochs, self.keep_every)

    def sources(self, workspace: Workspace) -> tuple[SourceSpec, SourceSpec | None]:
        """The training images, and the test images if the data set has any.

        Raises:
            InputError: the data set or the chosen test split does not exist, or the classes of the
            two differ.
        """
        train = SourceSpec(
            self.dataset,
            self.split,
            workspace.data_root,
            resizing_of(workspace, self._options(workspace)),
            self.limit,
            classes=self.classes,
            decoding=Decoding(self.exif_orientation, self.value_range),
        )
        test = dataclasses.replace(train, split=self.test_split)
        try:
            found = opened(workspace, test)
        except InputError:
            if self.test_split != "test":
                raise
            return train, None
        check_same_classes(opened(workspace, train), found)
        return train, test

    def check(
        self,
        workspace: Workspace,
        needs: Mapping[str, Stage],  # noqa: ARG002 - the signature of all stages
    ) -> None:
        """Raise ``InputError`` if the data set or the network does not exist."""
        from stages.sensing.build import build_network

        train, _ = self.sources(workspace)
        params = self._trusted(workspace)
        build_network(params.network, opened(workspace, train).n_classes or None)

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The training of the network.

        Raises:
            InputError: the data set does not exist or has no labels, the network is code that the
            user has not named, the weights cannot be read or do not fit it, or the training is past
            an epoch whose snapshot is missing.
            PlanMismatchError: the name of the model or of a snapshot is taken.
        """
        params, (train, test) = self._trusted(workspace), self.sources(workspace)
        plan = self.plan(workspace)
        artifact = self._artifact(workspace, plan)
        snapshots = Snapshots(workspace.store, artifact, plan, self.kept_epochs)
        if self.keep_every:
            snapshots.check()

        @cache
        def training() -> SensingTraining:
            from stages.sensing.sensing_training import SensingTraining

            return SensingTraining(
                artifact.name,
                params,
                train,
                test,
                workspace.device,
                self.last_layer,
                self.accept_unstable,
                self._start(workspace),
                self._samples,
                self._attacked(workspace),
            )

        return ArtifactJob(
            workspace.store,
            artifact,
            plan,
            title=f"train {artifact.name}",
            preview=self._preview(workspace, plan, snapshots),
            compute=Loop(training, params.epochs, keep=lambda: partial(snapshots.take, training())),
        )

    def plan(self, workspace: Workspace) -> Plan:
        """Everything that determines the weights, a user's network code included.

        Raises ``InputError`` if the images have no labels.
        """
        from stages.sensing.build import source_hash

        train, _ = self.sources(workspace)
        require_labels(opened(workspace, train))
        params, start = self._trusted(workspace), self._start(workspace)
        attacked = self._attacked(workspace)
        code = source_hash(params.network)
        return {
            **({"code": code} if code else {}),
            "stage": {
                "name": self.verb,
                "version": VERSION,
                "params": {
                    **planned_params(params),
                    "last_layer": self.last_layer,
                    **start.planned,
                    **(ACCEPTS_UNSTABLE if self.accept_unstable else {}),
                },
            },
            "inputs": {
                "source": facts_of(workspace, train),
                **({"weights": start.weights.sha256} if start.weights else {}),
                **({"samples": _hash_of(samples)} if (samples := self._samples) else {}),
                **({"attacked": attacked.to_dict()} if attacked else {}),
            },
        }

    @property
    def _samples(self) -> frozenset[str] | None:
        """Ids of the samples to train on; raises ``InputError`` if the file has none."""
        from stages.csv_text import cells_of

        if self.samples is None:
            return None
        cells = cells_of(Path(self.samples), ["sample_id"])
        if not (found := frozenset(sample_id for _, (sample_id,) in cells)):
            raise InputError(f"--samples {self.samples}: expected at least one sample, found none")
        return found

    def _attacked(self, workspace: Workspace) -> Attacked | None:
        """The model that the method attacks."""
        if self.attacked is None:
            return None
        train, _ = self.sources(workspace)
        return attacked_model(workspace, self.attacked, opened(workspace, train))

    def _options(self, workspace: Workspace) -> StartOptions:
        names = [each.name for each in dataclasses.fields(StartOptions)]
        given = {name: value for name, value in self if name in names}
        if self.resize is None and (self.name or workspace.recipe is None):
            name = self.name or model_name(self.params.network)
            before = stretched_before(workspace.store.artifact("model", name))
            given["resize"] = before if before and min(before) >= (self.image_size or 0) else None
        pixels = PRESET_NORMALISATION.get(self.preset)
        if pixels and self.weights is None and self.mean is None and self.std is None:
            given |= pixels._asdict()
        return StartOptions(**{**given, "network": self.params.network})

    def _start(self, workspace: Workspace) -> Start:
        """Weights that the training starts from, and how images are prepared."""
        train, _ = self.sources(workspace)
        require_trust(self.params.network, workspace.named_by)
        return start_of(workspace, self._options(workspace), opened(workspace, train))

    def _trusted(self, workspace: Workspace) -> TrainParams:
        """The parameters, with the full path of the network's file and the settings of the weights.

        Raises ``InputError`` if the network is code that the user has not named, or the weights do
        not fit it.
        """
        from stages.sensing.build import located

        params = self.params
        require_trust(params.network, workspace.named_by)
        weights = self._start(workspace).weights
        network = located(weights.network if weights else params.network)
        return dataclasses.replace(params, network=network)

    def _artifact(self, workspace: Workspace, plan: Plan) -> Artifact:
        plain, store = model_name(self.params.network), workspace.store
        if workspace.recipe and self.keep_every and not self.name:
            name = f"{plain}-{fingerprint(plan)[:8]}-every-{self.keep_every}"
            return with_its_snapshots(store, name, plan, self.kept_epochs)
        return store.artifact(
            "model", workspace.output_name("model", self.name, plain, plain, plan)
        )

    def _preview(self, workspace: Workspace, plan: Plan, snapshots: Snapshots) -> Preview:
        specs = filter(None, self.sources(workspace))
        train, *others = (opened(workspace, spec) for spec in specs)
        facts = planned_params(self.params)
        if "method" in facts:
            facts["method"] = in_words(self.params.method)
        recipe = ", ".join(f"{key} {value}" for key, value in facts.items())
        name, kept = snapshots.model.name, [model.name for model in snapshots.models()]
        n_rows = len(self._samples or ()) or train.n_rows
        text = f"train {name} on {n_rows:,} images ({recipe})"
        text += f"; would keep {len(kept)} snapshots" if kept else ""
        return Preview(
            text,
            {"name": name, "plan": plan, "snapshots": kept, **left_out_of(train)},
            [
                *(line for source in (train, *others) for line in source_notes(source)),
                *class_notes(train, is_ordered=bool(self.classes)),
                *self._start(workspace).notes,
            ],
        )


def _hash_of(samples: frozenset[str]) -> str:
    """SHA-256 of the sorted ids, hex."""
    return hashlib.sha256(json.dumps(sorted(samples)).encode()).hexdigest()
