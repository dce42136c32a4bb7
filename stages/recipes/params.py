"""The keys of each kind of step, and their types. Nothing heavy is imported for these."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.steps import Several, StepParams
from stages.data.corruptions.names import CORRUPTIONS, CURE, ROTATION, Collection
from stages.introspection.reading import Reading, Reads
from stages.metrics.definitions import DEFINITIONS, DETECTION
from stages.reflection.losses import DEFAULT_LOSS, LOSSES, Variant
from stages.reflection.rank_one import Scaling
from stages.sensing.card import Precision
from stages.sensing.recipe import PRESETS, Augmentation, Schedule

PAPER_TABLES = ("table-1", "table-2", "table-3", "table-5", "table-7", "table-8", "table-11")
FIGURES = (
    "accuracy-vs-ece",
    "gain-by-corruption",
    "gain-by-level",
    "ece-by-level",
    "reliability",
    "by-epoch",
)
"""As in ``stages.report``, which takes a second to import."""

DETECTORS = ("msp", "odin", "energy", "max-logit", "gradnorm", "mahalanobis", "knn")
"""As in ``stages.applications.detectors``, which imports torch."""
LEARNING_FIGURES = ("learning-curves",)
"""Those of active learning."""

SENSING = "f"
"""The label of f in results, as in ``stages.applications.judgement``."""

COLUMNS = (
    *("predictor", "other", "contender", "set", "seed", "n_seeds", "corruption", "severity"),
    *("n_rows", "n_correct", "confidence_sum", "bin", "share", "confidence"),
    *("strategy", "kind", "test", "round", "labelled"),
    *("metric", "mean", "std", "low", "high", "min", "max", "difference", "verdict"),
    *("gain", "gain_low", "gain_high", "paper", "paper_gain", "paper_dataset", "paper_note"),
    *DEFINITIONS,
    *DETECTION,
)
"""Columns of results and reports: an axis of a report cannot be called one of these."""


def _one_of(known: Iterable[str]) -> AfterValidator:
    names = tuple(known)

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return value

    return AfterValidator(check)


Loss = Annotated[str, _one_of(LOSSES)]
Metric = Annotated[str, _one_of([*DEFINITIONS, *DETECTION])]
Corruption = Annotated[str, _one_of(dict.fromkeys((*CORRUPTIONS, *CURE, ROTATION)))]
WeightDecay = Annotated[float, Field(ge=0)]


def _fraction(value: object) -> object:
    """``1/255`` as a number; whatever is none is left to the type."""
    try:
        return float(Fraction(value)) if isinstance(value, str) else value
    except (ValueError, ZeroDivisionError, OverflowError):
        return value


Pixels = Annotated[float, BeforeValidator(_fraction), Field(gt=0, le=1)]
"""How far a pixel in [0, 1] goes: 0.0014, or 1/255."""


def _below_the_root(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith(("/", "~")) or ".." in parts:
        raise ValueError("expected a name under the data root, such as digits-c")
    return name


class CorruptParams(StepParams):
    """A corrupted set: one that is there by its name ``to``, or else is written under the root."""

    dataset: str
    to: Annotated[str, AfterValidator(_below_the_root)]
    split: Literal["train", "test"] = "test"
    collection: Collection = "cifar10c"
    corruptions: Several[Corruption] = ()
    seed: NonNegativeInt = 0
    limit: PositiveInt | None = None


class TrainSensingParams(StepParams):
    """A sensing network; what is left out is the preset's."""

    dataset: str
    preset: Annotated[str, _one_of(PRESETS)] = "paper"
    network: str | None = None
    epochs: PositiveInt | None = None
    batch: PositiveInt | None = None
    lr: PositiveFloat | None = None
    weight_decay: WeightDecay | None = None
    augmentation: Augmentation | None = None
    schedule: Schedule | None = None
    precision: Precision | None = None
    seed: NonNegativeInt = 0
    held_out: NonNegativeInt = 0
    held_out_until: PositiveFloat = 1.0
    keep_every: PositiveInt | None = None
    last_layer: str | None = None
    image_size: PositiveInt = 32
    limit: PositiveInt | None = None


class SnapshotParams(StepParams):
    """A network as it was after one of the epochs that its training keeps."""

    model: str
    epoch: PositiveInt


class ExtractParams(StepParams):
    """Features and logits of a data set, or of the ``images`` of a corrupt step."""

    model: str
    dataset: str | None = None
    images: str | None = None
    split: Literal["train", "test"] = "test"
    corruptions: Several[Corruption] = ()
    precision: Precision = "fp32"
    batch: PositiveInt | None = None
    shard_rows: PositiveInt = 10_000
    limit: PositiveInt | None = None
    out_of_distribution: bool = False
    odin: Pixels | None = None
    attack: Literal["uniform", "confident"] | None = None
    through: str | None = None
    epsilon: Pixels = 1 / 255
    step: Pixels = 1 / 255
    steps: PositiveInt = 10
    attack_seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _has_images(self) -> Self:
        if (self.dataset is None) == (self.images is None):
            raise ValueError(
                "expected either 'dataset', the name of a data set, or 'images', a corrupt step"
            )
        return self


class TrainHeadParams(StepParams):
    """A head that is trained: H, a control, or f_L."""

    features: str
    layers: Several[PositiveInt] = (300, 100)
    rank: PositiveInt | None = None
    reads: Reads = "reflection"
    loss: Loss = DEFAULT_LOSS
    variant: Variant = "single-pass"
    scaling: Scaling = "minmax"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    epochs: PositiveInt = 200
    batch: PositiveInt = 128
    lr: PositiveFloat = 0.1
    weight_decay: WeightDecay = 5e-3
    seeds: Annotated[Several[NonNegativeInt], Field(min_length=1)] = (0,)
    precision: Precision = "fp32"
    rows: Literal["all", "held-out"] = "all"

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        Reading(1, 1, self.reads, self.loss, None, self.variant, self.scaling)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected different ones, found {list(self.seeds)}")
        if self.rank and self.reads != "reflection":
            raise ValueError(f"rank: expected reads reflection, found {self.reads}")
        return self


class FitTemperatureParams(StepParams):
    """The temperature of f, fitted on features that it was not trained on."""

    features: str


class FitNeighboursParams(StepParams):
    """The k nearest rows of the features, which vote."""

    features: str
    k: PositiveInt = 10
    reads: Reads = "features"
    loss: Loss = DEFAULT_LOSS
    variant: Variant = "single-pass"
    scaling: Scaling | None = None


class EvaluateParams(StepParams):
    """f beside heads, which are given by their labels."""

    features: str
    heads: dict[str, str] = Field(default_factory=dict)
    resamples: NonNegativeInt = 1000
    seed: NonNegativeInt = 0


class OodParams(StepParams):
    """Two sets told apart by a detector; ODIN reads those whose images it has moved."""

    features: str
    against: str
    training: str | None = None
    odin_features: str | None = None
    odin_against: str | None = None
    detector: Annotated[str, _one_of(DETECTORS)] = "msp"
    heads: dict[str, str] = Field(default_factory=dict)
    rows: PositiveInt = 10_000
    resamples: NonNegativeInt = 1000
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _has_its_sets(self) -> Self:
        if self.detector == "odin" and not (self.odin_features and self.odin_against):
            raise ValueError("odin: expected 'odin_features' and 'odin_against', moved images")
        if self.detector in ("mahalanobis", "knn") and self.training is None:
            raise ValueError(f"{self.detector}: expected 'training', features that it is fitted on")
        return self


class ActiveLearnParams(StepParams):
    """Runs of active learning: for every strategy, kind and seed; ``images`` are tested on too."""

    dataset: str
    images: str | None = None
    corruption: Corruption = "gaussian_noise"
    network: str = "resnet18"
    strategies: Annotated[Several[str], Field(min_length=1)] = ("badge",)
    kinds: Annotated[Several[Literal["f", "h"]], Field(min_length=1)] = ("f", "h")
    seeds: Annotated[Several[NonNegativeInt], Field(min_length=1)] = (0,)
    rounds: PositiveInt = 20
    query: PositiveInt = 1000
    start: PositiveInt = 100
    epochs: PositiveInt = 500
    batch: PositiveInt = 128
    lr: PositiveFloat = 1e-4
    head_lr: PositiveFloat = 1e-3
    layers: Several[PositiveInt] = (300, 100)
    image_size: PositiveInt = 32
    limit: PositiveInt | None = None


class TableParams(StepParams):
    """Which metrics a table shows, and which table of the paper stands beside it."""

    paper: Annotated[str, _one_of(PAPER_TABLES)] | None = None
    metrics: Several[Metric] = ("accuracy", "ece", "mce", "brier")


class ReportParams(StepParams):
    """A page of results."""

    results: dict[str, str]
    table: TableParams | None = None
    figures: Several[Annotated[str, _one_of((*FIGURES, *LEARNING_FIGURES))]] = ()
    notes: Several[str] = ()
