"""The stage extract: features and logits of a data set, computed once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.fields import OneOf, Place, Ref, Written
from pipeline.make import ArtifactJob, ShardJob
from pipeline.stage import Preview, Several, Stage
from pipeline.terminal import counted, size
from pipeline.workspace import Workspace
from stages.data.corruptions.cells import cells_of
from stages.data.decoding import Decoding
from stages.data.opened import facts_of, opened
from stages.data.option_types import (
    AcceptUnstable,
    ClassNames,
    Corruption,
    CorruptionCell,
    Dataset,
    ExifOrientation,
    LastLayer,
    Limit,
    ModelName,
    Split,
    ValueRange,
    fraction,
)
from stages.data.picked import Sample
from stages.data.registry import SourceSpec
from stages.data.source_notes import left_out_of, source_notes
from stages.errors import InputError
from stages.reflection.losses import DEFAULT_LOSS, LOSSES
from stages.sensing.card import ACCEPTS_UNSTABLE, ModelCard, Precision
from stages.sensing.class_check import (
    has_some_classes,
    listed_classes,
    output_notes,
    shown_classes,
)
from stages.sensing.import_model import (
    Filter,
    ImportedNetwork,
    ImportModel,
    InputSize,
    Mean,
    ResizeBy,
    Std,
    Weights,
    WeightsKey,
)
from stages.sensing.models import choose_model, model_name, require_trusted_code, weights_path
from store.plan import Plan
from store.shards import DEFAULT_SHARD_ROWS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from stages.reflection.perturbation import Perturbation
    from stages.sensing.map_layers import MapLayer

OF_IMPORTS = (
    *("weights", "weights_key", "last_layer"),
    *("mean", "std", "image_size", "resize", "interpolation"),
)
"""Fields that describe a network that is not in the store yet."""


NEEDED = {
    **dict.fromkeys(("through", "epsilon", "step", "steps", "attack_seed", "rounding"), "attack"),
    **dict.fromkeys(("layer_loss", "project"), "layer"),
    "corruption_seed": "corrupt",
    "sample_seed": "sample",
}
"""Fields that have no effect without another one."""

Pixels = Annotated[
    float, BeforeValidator(fraction), Written(metavar="X", read=fraction), Field(gt=0, le=1)
]
"""A step in pixels in [0, 1]: 0.0014, or 1/255."""

Epsilon = Annotated[Pixels, Field(description="Radius of PGD, for pixels in [0, 1].")]
Step = Annotated[Pixels, Field(description="Step size of PGD, for pixels in [0, 1].")]
Steps = Annotated[PositiveInt, Field(description="Number of PGD steps; the last iterate is used.")]
PGD_STEP, N_PGD_STEPS = 1 / 255, 10
Rounding = Annotated[
    Literal["exact", "code"],
    Field(
        description="How PGD rounds to grey levels: exact, or code, as in the paper's code base, "
        "whose steps lose levels."
    ),
]


class Extract(Stage):
    """Send every image through the network once and store its features and logits.

    All later commands read the store. Running the command again computes only what is missing.
    """

    verb = "extract"
    makes = "features"
    runs_with = ("data_root", "executor", "gpus", "workers", "memory", "address", "device")
    examples = ("extract --dataset cifar10c --gpus 8",)

    dataset: Dataset | None = None
    images: Annotated[str, Ref(("images",)), Place.DATA, Written(is_hidden=True)] | None = Field(
        None, description="In a recipe, a step that writes a corrupted set, in place of dataset."
    )
    split: Split = "test"
    corruptions: Several[Corruption] = Field(
        (), description="Corruptions to use of a set that is already corrupted. (default: all)"
    )
    corrupt: Several[CorruptionCell] = Field(
        (),
        description="Corruptions to apply when images are read, after resizing and cropping, "
        "separated by commas: fog:3, fog for all severities, or all for 19 corruptions at 5 "
        "severities. Constants are those of CIFAR-10-C for 32x32 pixels, of Tiny-ImageNet-C for "
        "64x64, else of ImageNet-C.",
    )
    corruption_seed: NonNegativeInt = Field(0, description="Seed of --corrupt.")
    model: ModelName | None = Field(
        None, description="Model of the store. (default: the one trained for this data set)"
    )
    network: ImportedNetwork | None = None
    weights: Weights | None = None
    weights_key: WeightsKey | None = None
    last_layer: LastLayer | None = None
    mean: Mean | None = None
    std: Std | None = None
    image_size: InputSize | None = None
    resize: ResizeBy | None = None
    interpolation: Filter | None = None
    layer: str | None = Field(
        None, description="Another layer whose per-image gradients are also stored."
    )
    layer_loss: Annotated[str, OneOf(tuple(LOSSES))] = Field(
        DEFAULT_LOSS, description="Loss of those gradients."
    )
    project: PositiveInt | None = Field(
        None, description="Dimension to which those gradients are randomly projected."
    )
    statistics: Several[str] = Field(
        (),
        description="Layers whose feature maps are summarised in the array statistics, separated "
        "by commas: mean and standard deviation of each channel. auto for the ends of the stages "
        "of a ResNet.",
    )
    precision: Precision = Field(
        "fp32", description="Precision of the network: fp32 or bf16 (logits stay fp32)."
    )
    batch_size: PositiveInt | None = Field(
        None, description="Images per forward pass. (default: fitted to the network and memory)"
    )
    shard_rows: PositiveInt = Field(
        DEFAULT_SHARD_ROWS,
        description="Images per shard, the unit of writing and resuming.",
    )
    classes: ClassNames = ()
    exif_orientation: ExifOrientation = False
    value_range: ValueRange | None = None
    limit: Limit | None = None
    sample: PositiveInt | None = Field(
        None,
        description="Use only N rows, drawn at random; their order and names are kept. With "
        "--limit, from the first rows.",
    )
    sample_seed: NonNegativeInt = Field(0, description="Seed of --sample.")
    accept_unstable: AcceptUnstable = False
    out_of_distribution: bool = Field(
        False,
        description="Accept images of other classes than the network's: they get no labels, unless "
        "the classes are the same.",
    )
    odin: Pixels | None = Field(
        None,
        description="Step size of ODIN, which perturbs the images first; for pixels in [0, 1].",
    )
    attack: Literal["uniform", "confident"] | None = Field(
        None, description="Attack the images first with PGD, toward these predictions."
    )
    through: Annotated[str, Ref(("head",)), Written(metavar="HEAD")] | None = Field(
        None, description="Head through which PGD attacks. (default: f itself)"
    )
    epsilon: Epsilon = PGD_STEP
    step: Step = PGD_STEP
    steps: Steps = N_PGD_STEPS
    attack_seed: NonNegativeInt = Field(0, description="Seed of PGD.")
    rounding: Rounding = "exact"
    retry_failed: bool = Field(
        False,
        description="Recompute only the rows that failed. If files were fixed in the meantime, the "
        "rows of all other images are reused.",
    )
    accept_failed: bool = Field(
        False,
        description="Accept any number of failed rows: the set then counts as complete without "
        "them. (default: at most 1 % of the rows, or 10)",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.dataset is None) == (self.images is None):
            raise ValueError(
                "expected one data set: its name or path with --dataset (in a recipe: either "
                "'dataset', or 'images', a step that writes one)"
            )
        return self

    def check_given(self, options: Collection[str]) -> None:
        """Raise ``InputError`` for an option of the attack, for example, without it."""
        for name, needed in NEEDED.items():
            if name in options and not getattr(self, needed):
                option = name.replace("_", "-")
                raise InputError(f"--{option} has no effect without --{needed}")

    def check(self, workspace: Workspace, needs: Mapping[str, Stage]) -> None:  # noqa: ARG002 - a dataset needs no stage
        """Raise ``InputError`` if the data set does not exist."""
        if self.dataset is not None:
            opened(workspace, self.source(workspace))

    def source(self, workspace: Workspace) -> SourceSpec:
        """The images, at the default size."""
        return SourceSpec(
            self.images or self.dataset or "",
            self.split,
            workspace.data_root,
            limit=self.limit,
            corruptions=self.corruptions,
            classes=self.classes,
            cells=cells_of(self.corrupt, self.corruption_seed) if self.corrupt else None,
            decoding=Decoding(self.exif_orientation, self.value_range),
            sample=Sample(self.sample, self.sample_seed) if self.sample else None,
        )

    def job(self, workspace: Workspace) -> ShardJob:
        """The extraction.

        Raises:
            InputError, DataNotFoundError: data set and network do not fit, or one is missing.
            PlanMismatchError: the name of the model is taken by another network.
        """
        from stages.reflection.extraction import Extraction, extraction_job
        from stages.reflection.named_layer import NamedLayer
        from stages.reflection.retry import retry_job

        executor, device = workspace.workers()
        card, imports = self._network(workspace)
        if self.layer is not None or self.statistics:
            require_trusted_code(card)  # the size of the arrays is known once it is built
        source = self._labelled(workspace, card)
        extraction = Extraction(
            source,
            card,
            weights_path(workspace.store, card.name),
            self.precision,
            self.shard_rows,
            device,
            self.batch_size,
            NamedLayer(self.layer, self.layer_loss, self.project) if self.layer else None,
            self.perturbations(workspace),
            self._maps(card),
        )
        plan = extraction.plan(facts_of(workspace, source), opened(workspace, source))
        job = extraction_job(
            workspace.store,
            extraction,
            executor,
            imports,
            plan=plan,
            preview=self._preview(workspace, card, imports, plan, executor.description),
            check=partial(require_trusted_code, card),
            accepts_failures=self.accept_failed,
        )
        return retry_job(job, workspace.store) if self.retry_failed else job

    def _maps(self, card: ModelCard) -> tuple[MapLayer, ...]:
        """The layers whose statistics are requested."""
        if not self.statistics:
            return ()  # torch is not imported
        from stages.sensing.feature_maps import map_layers

        return map_layers(card, self.statistics)

    def _network(self, workspace: Workspace) -> tuple[ModelCard, ArtifactJob | None]:
        """The network, and the job that imports it if it is not a model of the store."""
        spec = self.source(workspace)
        if self.network is not None:
            stage = self._import(self.network)
            sized = replace(spec, image_size=stage.resizing(workspace))
            found = stage.imported(workspace, opened(workspace, sized))
            return found.card, found.job
        if given := [name for name in OF_IMPORTS if getattr(self, name) is not None]:
            shown = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(
                f"{shown}: expected only with --network, for a network from elsewhere; a model of "
                "the store keeps what it was imported or trained with"
            )
        card = choose_model(workspace.store, opened(workspace, spec).family, self.model)
        if self.accept_unstable:
            card = card.with_facts(ACCEPTS_UNSTABLE)
        return card, None

    def _import(self, network: str) -> ImportModel:
        """The stage that imports the network; raises ``InputError`` without weights."""
        if self.weights is None:
            raise InputError(
                f"network {network}: it needs its trained weights; give --weights FILE, or "
                "--weights pretrained for a network of torchvision or timm, name a model of the "
                "store with --model, or train one with `intro-pipe train-sensing`"
            )
        shared = ImportModel.model_fields.keys() & type(self).model_fields.keys()
        values = {name: getattr(self, name) for name in shared}
        return ImportModel(**values, name=self.model or model_name(network))

    def perturbations(self, workspace: Workspace) -> tuple[Perturbation, ...]:
        """An attack, then ODIN, if they are requested."""
        if self.attack is None and self.odin is None:
            return ()  # torch is not imported for plain images
        from stages.introspection.head_target import HeadTarget
        from stages.reflection.perturbation import Odin, Pgd

        found: list[Perturbation] = []
        if self.attack is not None:
            target = HeadTarget(workspace.store.location, self.through) if self.through else None
            how = (self.epsilon, self.step, self.steps, self.attack_seed)
            found.append(Pgd(self.attack, *how, target, self.rounding))
        if self.odin is not None:
            found.append(Odin(self.odin))
        return tuple(found)

    def _labelled(self, workspace: Workspace, card: ModelCard) -> SourceSpec:
        """The images, without their labels if they are of other classes and that is accepted."""
        spec = self._matched(workspace, card)
        if not self.out_of_distribution:
            return spec
        return replace(spec, labels=opened(workspace, spec).class_names == card.class_names)

    def _matched(self, workspace: Workspace, card: ModelCard) -> SourceSpec:
        """The images; if they have some of the network's classes, with labels among all of them."""
        spec = replace(self.source(workspace), image_size=card.input)
        is_part = not self.classes and has_some_classes(opened(workspace, spec), card)
        if not is_part or self.out_of_distribution:
            return spec
        return replace(spec, classes=card.class_names)

    def _preview(
        self,
        workspace: Workspace,
        card: ModelCard,
        imports: ArtifactJob | None,
        plan: Plan,
        workers: str,
    ) -> Preview:
        """What would be computed where, the classes in the order of the outputs, and notes."""
        spec = self._matched(workspace, card)
        source, is_new = opened(workspace, spec), imports is not None
        notes = [*imports.preview.notes] if imports else []
        if spec.classes != self.classes:
            n_classes = opened(workspace, self.source(workspace)).n_classes
            notes.append(
                f"{source.name} {source.split}: has {n_classes:,} of the {card.n_classes:,} "
                f"classes of model {card.name}; labels are the network's"
            )
        if not self.out_of_distribution:
            notes += output_notes(source, card, is_ordered=bool(self.classes), is_new=is_new)
        found = workspace.store.preview(plan)
        mapping = listed_classes(source, card)
        text = (
            f"extract {found['rows_to_do']:,} of {counted(found['n_rows'], 'image')} "
            f"({counted(found['shards_to_do'], 'shard')}, {size(found['bytes_to_write'])}) to "
            f"{found['location']}, with {workers}{shown_classes(mapping)}"
        )
        facts = {**found, "executor": workers, "classes": mapping, **left_out_of(source)}
        return Preview(text, facts, notes + source_notes(source))
