"""The stage train-head: H, or a control that reads features, trained on stored features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self, get_args

from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.errors import ResourceError
from pipeline.loop import Loop
from pipeline.make import ArtifactJob
from pipeline.memory import free_bytes, gib
from pipeline.stage import Preview, Several, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName, OutputName
from stages.errors import InputError
from stages.introspection.head_card import origin_of
from stages.introspection.head_params import HeadParams, Precision
from stages.introspection.head_parts import (
    PARTS,
    REFLECTION,
    SEPARATOR,
    canonical_reads,
    further_arrays,
)
from stages.introspection.head_spec import HeadSpec
from stages.introspection.heads import (
    VARIANT,
    Loss,
    TrainingFeatures,
    labels_of,
    model_name,
)
from stages.introspection.preparation import check_alike
from stages.introspection.reading import InputScaling, Reading
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.losses import Variant
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan

if TYPE_CHECKING:
    import numpy as np

    from stages.introspection.best_epoch import Selection
    from stages.introspection.head_training import HeadTraining

VERSION = 2
"""Raised whenever the weights for the same options and features change."""

Rows = Literal["all", "held-out"]

_PARAMETER_BYTES = 28
"""Memory of one parameter in training: itself, gradient, momentum, and a checkpoint."""

_SPEC = HeadSpec(n_classes=1, feature_dim=1)
_TRAINING = HeadParams()
_LETTERS = dict(zip(PARTS, ("H", "f", "z", "s", "g"), strict=True))
"""In the name of a head, for each part that it reads."""


class TrainHead(Stage):
    """Train the head H, which predicts from introspective gradients of stored features.

    No image is read. A checkpoint is written after every epoch; running the command again resumes.
    """

    verb = "train-head"
    makes = "head"
    runs_with = ("device",)
    examples = ("train-head --features cifar10-train@resnet18",)

    features: TrainingFeatures
    name: OutputName | None = Field(None, description="Name of the head. (default: MODEL-h)")
    reads: Annotated[str, AfterValidator(canonical_reads)] = Field(
        "reflection",
        description="Input of the head, parts joined by +: reflection for H, features, logits, "
        "statistics (of feature maps), gradients (of another layer), such as "
        "reflection+statistics. features and features+logits are scaled like the reflection; in "
        "other inputs, each part but the reflection is standardised on the training rows.",
    )
    layers: Several[PositiveInt] = Field(
        _SPEC.layers, description="Widths of the hidden layers; none for no hidden layer."
    )
    rank: PositiveInt | None = Field(
        None,
        description="Rank of a compact first layer for many classes: rank x (classes + features) "
        "parameters. (default: the paper's full layer)",
    )
    loss: Loss = _SPEC.loss
    variant: Variant = Field("single-pass", description=VARIANT)
    scaling: InputScaling = Field(
        "minmax",
        description="Scaling of the input, or of its reflection. Of each row on its own: minmax, "
        "maxabs or none. Fitted to the training rows: global, one range for all elements of all "
        "rows; feature, a range for each element.",
    )
    bias_gradient: bool = Field(
        False,
        description="Also read the gradient with respect to the bias of the last layer, which the "
        "paper leaves out.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        _SPEC.dropout, description="Dropout probability after each hidden layer."
    )
    epochs: PositiveInt = Field(_TRAINING.epochs, description="Passes over the training rows.")
    batch_size: PositiveInt = Field(_TRAINING.batch_rows, description="Rows per training step.")
    lr: PositiveFloat = Field(_TRAINING.learning_rate, description="Initial learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        _TRAINING.weight_decay, description="Weight decay of SGD."
    )
    seeds: Annotated[Several[NonNegativeInt], Field(min_length=1)] = Field(
        _TRAINING.seeds, description="Seeds, one head each, trained together: 0,1,2."
    )
    precision: Precision = Field(
        _TRAINING.precision,
        description="fp32, or bf16 for the matrix products of the training.",
    )
    rows: Rows = Field(
        "all",
        description="Rows to train on: all, or held-out for those that the network was not "
        "trained on.",
    )
    select_on: FeatureSetName | None = Field(
        None,
        description="Keep the epoch with the best accuracy on these labelled features, for each "
        "seed, instead of the last. With the test images this selects on test data, as the "
        "paper's code base does, so results on them are optimistic.",
    )
    keep_collapsed: bool = Field(
        False,
        description="Keep a head that predicts one class for every row or has learned nothing, "
        "which is otherwise "
        "an error: for studies that compare settings.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        how = (self.loss, None, self.variant, self.scaling, self.bias_gradient)
        reading = Reading(1, 1, self.reads, *how)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected different ones, found {list(self.seeds)}")
        if self.rank and self.reads != "reflection":
            raise ValueError(f"rank: expected reads reflection, found {self.reads}")
        if self.rank and reading.is_fitted:
            raise ValueError(f"rank: expected scaling minmax, maxabs or none, found {self.scaling}")
        return self

    def spec(self, feature_set: FeatureSet) -> HeadSpec:
        """The spec of a head that fits a feature set; ``M`` is measured when it is trained."""
        model = FeaturePlan.of(feature_set.plan).model
        return HeadSpec(
            n_classes=model.n_classes,
            feature_dim=model.feature_dim,
            layers=self.layers,
            reads=self.reads,
            loss=self.loss,
            variant=self.variant,
            scaling=self.scaling,
            dropout=self.dropout,
            rank=self.rank,
            bias_gradient=self.bias_gradient,
            further=further_arrays(feature_set, self.reads),
        )

    @property
    def training(self) -> HeadParams:
        """How the head is trained."""
        return HeadParams(
            epochs=self.epochs,
            batch_rows=self.batch_size,
            learning_rate=self.lr,
            weight_decay=self.weight_decay,
            seeds=self.seeds,
            precision=self.precision,
        )

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The training of the head.

        Raises:
            InputError: no row was held out of the network's training, or the features to select on
                are of another network.
            ResourceError: the parameters do not fit into memory.
        """
        store = workspace.store
        feature_set = store.open(self.features)
        selected = None if self.select_on is None else store.open(self.select_on)
        spec, plan = self.spec(feature_set), self.plan(feature_set, selected)
        model = model_name(feature_set)
        stem = f"{model}-{''.join(_LETTERS[part] for part in self.reads.split(SEPARATOR))}"
        name = workspace.output_name("head", self.name, f"{model}-h", stem, plan)
        chosen = training_rows(store, feature_set, self.rows)
        n_rows = feature_set.n_rows if isinstance(chosen, slice) else len(chosen)

        def check() -> None:
            feature_set.require_usable()
            check_size(spec, self.training)
            if selected is not None:
                check_alike(feature_set, selected.require_usable())
                spec.further.check(selected.plan, name, selected.name)

        def loop() -> HeadTraining:
            from stages.introspection.head_training import HeadTraining

            return HeadTraining(
                feature_set.read("features")[chosen],
                feature_set.read("logits")[chosen],
                labels_of(feature_set)[chosen],
                spec,
                self.training,
                workspace.device,
                None if selected is None else _selection(selected, spec),
                spec.further.read(feature_set, chosen),
                self.keep_collapsed,
            )

        return ArtifactJob(
            store,
            store.artifact("head", name),
            plan,
            title=f"train head {name}",
            preview=Preview(
                f"train head {name} on {n_rows:,} rows of {feature_set.name}",
                {"name": name, "plan": plan},
            ),
            compute=Loop(
                loop,
                self.epochs,
                rows="rows",
                facts={"predictor": "mlp", **origin_of(feature_set), "rows": self.rows},
            ),
            check=check,
        )

    def plan(self, feature_set: FeatureSet, selected: FeatureSet | None = None) -> Plan:
        """Everything that determines the weights of the head.

        Whether a collapsed head is kept changes no weights.
        """
        chosen_on = {} if selected is None else {"select_on": selected.name}
        params = {
            "spec": self.spec(feature_set).to_dict(),
            "training": self.training.to_dict(),
            "rows": self.rows,
        }
        return {
            "stage": {"name": self.verb, "version": VERSION, "params": params},
            "inputs": {"features": feature_set.name, **chosen_on},
        }


def _selection(feature_set: FeatureSet, spec: HeadSpec) -> Selection:
    from stages.introspection.best_epoch import Selection

    features, logits = feature_set.read("features"), feature_set.read("logits")
    further = spec.further.read(feature_set, slice(None))
    return Selection(feature_set.name, features, logits, labels_of(feature_set), further)


def check_size(spec: HeadSpec, params: HeadParams) -> None:
    """Raise ``ResourceError`` if the heads are too large to be trained in the free memory.

    At 1,000 classes and 2,048 features the paper's first layer has 614 million parameters.
    """
    needed, free = spec.n_parameters * len(params.seeds) * _PARAMETER_BYTES, free_bytes()
    if needed > free:
        way_out = "use a lower --rank" if spec.rank else "use a compact first layer (--rank 256)"
        raise ResourceError(
            f"head training: {spec.n_parameters:,} parameters take {gib(needed)} for "
            f"{len(params.seeds)} seed{'s' * (len(params.seeds) > 1)}, {gib(free)} are free: "
            f"{way_out if spec.reads == REFLECTION else 'use narrower --layers'}, or fewer seeds"
        )


def training_rows(
    store: FeatureStore, feature_set: FeatureSet, rows: Rows
) -> slice | NDArray[np.int64]:
    """The rows a head is trained on: all, or those held out of the sensing network's training.

    Raises:
        InputError: none were held out, or the set is not the one that the network was trained on.
    """
    if rows not in get_args(Rows):
        raise InputError(f"rows: expected {' or '.join(get_args(Rows))}, found {rows!r}")
    if rows == "all":
        return slice(None)
    from stages.sensing.train_params import held_out_rows
    from stages.sensing.trained import TrainedModel, is_trained_here

    features = FeaturePlan.of(feature_set.plan)
    model = features.model
    artifact = store.artifact("model", model.name)
    found = TrainedModel.of(artifact) if is_trained_here(artifact) else None
    if not found or found.card.weights_sha256 != model.weights_sha256 or not found.recipe.held_out:
        raise InputError(
            f"rows held-out: model '{model.name}' held no row out of its training; train it "
            "with `intro-pipe train-sensing --held-out`, or use all rows"
        )
    if features.source.stored_fingerprint != FeaturePlan.of(artifact.plan()).source.fingerprint:
        raise InputError(
            f"rows held-out: {feature_set.name} is not of the images that model '{model.name}' "
            "was trained on; extract its whole training set"
        )
    return held_out_rows(feature_set.n_rows, found.recipe.held_out, found.recipe.seed)
