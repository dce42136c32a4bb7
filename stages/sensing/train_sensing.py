"""The stage train-sensing: the network f, trained by the paper's recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from pipeline.loop import Loop
from pipeline.make import ArtifactJob
from pipeline.stage import Preview, Stage
from pipeline.workspace import Workspace
from stages.data.classes import class_notes
from stages.data.decoding import Decoding
from stages.data.opened import facts_of, opened
from stages.data.option_types import (
    AcceptUnstable,
    ClassNames,
    Dataset,
    ExifOrientation,
    LastLayer,
    Limit,
    ModelOutputName,
    Split,
    ValueRange,
)
from stages.data.registry import SourceSpec
from stages.data.source import ReaderSource
from stages.data.source_notes import left_out_of, source_notes
from stages.sensing.attacked import Attacked, attacked_model, check_attacked
from stages.sensing.card import ACCEPTS_UNSTABLE
from stages.sensing.chosen_samples import read_samples, samples_hash
from stages.sensing.import_model import Filter, InputSize, ResizeBy, WeightsKey
from stages.sensing.methods.method_options import (
    AttackedModel,
    AttackName,
    Epsilon,
    JsdWeight,
    MethodName,
    MixDepth,
    MixSeverity,
    MixWidth,
    NtXentTemperature,
    PerDistortion,
    Projection,
    Step,
    Steps,
)
from stages.sensing.methods.method_params import method_from, method_options
from stages.sensing.models import model_card, model_name, require_trusted_code
from stages.sensing.snapshots import Snapshots, snapshot_epochs, with_its_snapshots
from stages.sensing.start import (
    Start,
    StartMean,
    StartOptions,
    StartStd,
    StartWeights,
    from_stored,
    resizing_of,
    start_of,
    stretched_before,
)
from stages.sensing.train_params import (
    PRESET_NORMALISATION,
    PRESETS,
    TrainParams,
    check_trained_part,
    params_from,
    params_in_words,
    planned_params,
)
from stages.sensing.training_images import check_training_images, with_test_images
from stages.sensing.training_options import (
    AugmentationName,
    BatchSize,
    Epochs,
    FlippedLabels,
    FromModel,
    HeldOut,
    HeldOutUntil,
    KeepEvery,
    LabelSmoothing,
    LearningRate,
    OptimiserName,
    Preset,
    ScheduleName,
    Seed,
    TestSplit,
    TrainedLayers,
    TrainedNetwork,
    TrainedSamples,
    TrainingPrecision,
    WeightDecay,
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
        "train-sensing --dataset cifar10 --method simclr --name simclr",
        "train-sensing --dataset cifar10 --from-model simclr --network torchvision:resnet18+128 "
        "--train classifier --preset linear --name simclr-mlp",
    )

    dataset: Dataset
    split: Split = "train"
    test_split: TestSplit = "test"
    network: TrainedNetwork | None = None
    preset: Preset | None = None
    weights: StartWeights = None
    from_model: FromModel | None = None
    weights_key: WeightsKey | None = None
    train: TrainedLayers = _PRESET.train
    name: ModelOutputName | None = None
    epochs: Epochs | None = None
    batch_size: BatchSize | None = None
    lr: LearningRate | None = None
    weight_decay: WeightDecay | None = None
    optimiser: OptimiserName | None = None
    augmentation: AugmentationName | None = None
    schedule: ScheduleName | None = None
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
    nt_xent_temperature: NtXentTemperature | None = None
    projection: Projection | None = None
    label_smoothing: LabelSmoothing = _PRESET.label_smoothing
    precision: TrainingPrecision | None = None
    seed: Seed = _PRESET.seed
    held_out: HeldOut = _PRESET.held_out
    held_out_until: HeldOutUntil = _PRESET.held_out_until
    samples: TrainedSamples | None = None
    flip_labels: FlippedLabels | None = None
    keep_every: KeepEvery | None = None
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
        if self.network or not self.from_model:
            check_trained_part(self.params)
        if self.from_model and (self.weights or self.weights_key):
            raise ValueError("--from-model replaces --weights: use only one of them")
        has_start = self.weights or self.from_model
        if not has_start and (self.weights_key or self.train != "all"):
            option = "--weights-key" if self.weights_key else f"--train {self.train}"
            raise ValueError(
                f"{option} needs weights to start from: add --weights FILE, --weights pretrained, "
                "or --from-model MODEL"
            )
        return self

    @property
    def params(self) -> TrainParams:
        """Training parameters: the preset, with the given options."""
        names = {each.name for each in dataclasses.fields(TrainParams)} - {"method"}
        given = {name: value for name, value in self if name in names}
        given["method"] = method_from(
            self.method or PRESETS[self._preset].method.name,
            {name: value for name, value in self if name in method_options()},
        )
        return params_from(self._preset, batch=self.batch_size, **given)

    @property
    def _preset(self) -> str:
        return self.preset or (self.method if self.method in PRESETS else "paper")

    def _params(self, workspace: Workspace) -> TrainParams:
        """The parameters, by default with the network of the model that the training starts from.

        Raises:
            NotFoundError, DamagedError: that model is not finished, or was altered.
            InputError: it is code that is not trusted, or has no such part as is trained.
        """
        if self.network or not self.from_model:
            return self.params
        card = model_card(workspace.store.artifact("model", self.from_model))
        require_trusted_code(card)
        params = dataclasses.replace(self.params, network=card.network)
        check_trained_part(params)
        return params

    @property
    def kept_epochs(self) -> range:
        """The epochs after which a snapshot is kept, counted from 1."""
        return snapshot_epochs(self.params.epochs, self.keep_every)

    def sources(self, workspace: Workspace) -> tuple[SourceSpec, SourceSpec | None]:
        """The training images, and the test images if any; raises as `with_test_images`."""
        train = SourceSpec(
            self.dataset,
            self.split,
            workspace.data_root,
            resizing_of(workspace, self._options(workspace)),
            self.limit,
            classes=self.classes,
            decoding=Decoding(self.exif_orientation, self.value_range),
        )
        return with_test_images(workspace, train, self.test_split)

    def _images(self, workspace: Workspace) -> ReaderSource:
        """The training images."""
        return opened(workspace, self.sources(workspace)[0])

    def check(self, workspace: Workspace, needs: Mapping[str, Stage]) -> None:
        """Raise ``InputError`` if the data set or the network does not exist, or does not fit."""
        from stages.sensing.build import build_network

        if "from_model" in needs:  # a model that may not exist yet
            self.model_copy(update={"from_model": None}).check(workspace, {})
            return
        train, params = self._images(workspace), self._trusted(workspace)
        check_training_images(train, params)
        build_network(params.network, train.n_classes or None)

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
                read_samples(self.samples),
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
        check_training_images(self._images(workspace), self.params)
        params, start = self._trusted(workspace), self._start(workspace)
        attacked = self._attacked(workspace)
        code, samples = source_hash(params.network), read_samples(self.samples)
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
                **({"samples": samples_hash(samples)} if samples else {}),
                **({"attacked": attacked.to_dict()} if attacked else {}),
            },
        }

    def _attacked(self, workspace: Workspace) -> Attacked | None:
        """The model that the method attacks."""
        if self.attacked is None:
            return None
        return attacked_model(workspace, self.attacked, self._images(workspace))

    def _options(self, workspace: Workspace) -> StartOptions:
        names = [each.name for each in dataclasses.fields(StartOptions)]
        given = {name: value for name, value in self if name in names}
        network = self._params(workspace).network
        options = StartOptions(**{**given, "network": network})
        if self.from_model:
            return from_stored(workspace, options, self.from_model)
        if self.resize is None and (self.name or workspace.recipe is None):
            name = self.name or model_name(network)
            before = stretched_before(workspace.store.artifact("model", name))
            if before and min(before) >= (self.image_size or 0):
                options = dataclasses.replace(options, resize=before)
        pixels = PRESET_NORMALISATION.get(self._preset)
        if pixels and not (self.weights or self.mean or self.std):
            options = dataclasses.replace(options, **pixels._asdict())
        return options

    def _start(self, workspace: Workspace) -> Start:
        """Weights that the training starts from, and how images are prepared."""
        require_trust(self._params(workspace).network, workspace.named_by)
        return start_of(workspace, self._options(workspace), self._images(workspace))

    def _trusted(self, workspace: Workspace) -> TrainParams:
        """The parameters, with the full path of the network's file and the settings of the weights.

        Raises ``InputError`` if the network is code that the user has not named, or the weights do
        not fit it.
        """
        from stages.sensing.build import located

        params = self._params(workspace)
        require_trust(params.network, workspace.named_by)
        weights = self._start(workspace).weights
        network = located(weights.network if weights else params.network)
        return dataclasses.replace(params, network=network)

    def _artifact(self, workspace: Workspace, plan: Plan) -> Artifact:
        plain, store = model_name(self._params(workspace).network), workspace.store
        if workspace.recipe and self.keep_every and not self.name:
            name = f"{plain}-{fingerprint(plan)[:8]}-every-{self.keep_every}"
            return with_its_snapshots(store, name, plan, self.kept_epochs)
        return store.artifact(
            "model", workspace.output_name("model", self.name, plain, plain, plan)
        )

    def _preview(self, workspace: Workspace, plan: Plan, snapshots: Snapshots) -> Preview:
        specs = filter(None, self.sources(workspace))
        train, *others = (opened(workspace, spec) for spec in specs)
        name, kept = snapshots.model.name, [model.name for model in snapshots.models()]
        n_rows = len(read_samples(self.samples) or ()) or train.n_rows
        text = f"train {name} on {n_rows:,} images ({params_in_words(self._params(workspace))})"
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
