"""The stage extract: features and logits of a data set, computed once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from pipeline.fields import Place, Ref, Written
from pipeline.make import ArtifactJob, ShardJob
from pipeline.stage import Preview, Several, Stage
from pipeline.terminal import counted, size
from pipeline.workspace import Workspace
from stages.data.altering import Alteration
from stages.data.augmenting import Augmenting
from stages.data.corruptions.cells import cells_of
from stages.data.decoding import Decoding
from stages.data.denoising import denoising_of
from stages.data.opened import facts_of, opened
from stages.data.option_types import (
    AcceptUnstable,
    ClassNames,
    Corruption,
    Dataset,
    ExifOrientation,
    LastLayer,
    Limit,
    ModelName,
    Split,
    ValueRange,
)
from stages.data.picked import sample_of
from stages.data.registry import SourceSpec
from stages.data.source_notes import left_out_of, source_notes
from stages.errors import InputError
from stages.reflection.batch_notes import group_notes
from stages.reflection.extract_options import (
    N_PGD_STEPS,
    PGD_STEP,
    AcceptFailed,
    Augmentation,
    AugmentationSeed,
    BatchSize,
    BatchStatistics,
    Corrupt,
    Denoise,
    Epsilon,
    FeatureMaps,
    Layer,
    LayerLoss,
    NetworkInput,
    OutOfDistribution,
    Pixels,
    Project,
    RetryFailed,
    Rounding,
    SampleRows,
    ShardRows,
    Shuffle,
    Step,
    Steps,
)
from stages.reflection.losses import DEFAULT_LOSS
from stages.sensing.card import ACCEPTS_UNSTABLE, UNNORMALISED, ModelCard, Precision
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
    "augmentation_seed": "augmentation",
    "sample_seed": "sample or shuffle",
}
"""Fields that have no effect without another one, or without either of two."""


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
    corrupt: Corrupt = ()
    corruption_seed: NonNegativeInt = Field(0, description="Seed of --corrupt.")
    denoise: Denoise | None = None
    augmentation: Augmentation | None = None
    augmentation_seed: AugmentationSeed = 0
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
    normalisation: NetworkInput = "model"
    batch_statistics: BatchStatistics | None = None
    layer: Layer | None = None
    layer_loss: LayerLoss = DEFAULT_LOSS
    project: Project | None = None
    statistics: FeatureMaps = ()
    precision: Precision = Field(
        "fp32", description="Precision of the network: fp32 or bf16 (logits stay fp32)."
    )
    batch_size: BatchSize | None = None
    shard_rows: ShardRows = DEFAULT_SHARD_ROWS
    classes: ClassNames = ()
    exif_orientation: ExifOrientation = False
    value_range: ValueRange | None = None
    limit: Limit | None = None
    sample: SampleRows | None = None
    shuffle: Shuffle = False
    sample_seed: NonNegativeInt = Field(0, description="Seed of --sample and --shuffle.")
    accept_unstable: AcceptUnstable = False
    out_of_distribution: OutOfDistribution = False
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
    retry_failed: RetryFailed = False
    accept_failed: AcceptFailed = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.dataset is None) == (self.images is None):
            raise ValueError(
                "expected one data set: its name or path with --dataset (in a recipe: either "
                "'dataset', or 'images', a step that writes one)"
            )
        if self.batch_statistics is not None:
            alone = ("odin", "attack", "layer", "statistics")
            if given := [f"--{name}" for name in alone if getattr(self, name)]:
                raise ValueError(
                    f"--batch-statistics makes the images of a group depend on each other, and "
                    f"{given[0]} needs each image alone: leave out one of them"
                )
        return self

    def check_given(self, options: Collection[str]) -> None:
        """Raise ``InputError`` for an option of the attack, for example, without it."""
        for name, needed in NEEDED.items():
            if name in options and not any(getattr(self, each) for each in needed.split(" or ")):
                option, others = name.replace("_", "-"), needed.replace(" or ", " or --")
                raise InputError(f"--{option} has no effect without --{others}")

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
            sample=sample_of(self.sample, self.sample_seed, is_shuffled=self.shuffle),
            alteration=self._alteration(),
        )

    def _alteration(self) -> Alteration | None:
        """What is done to images once they have the network's size; None for nothing."""
        if self.denoise is None and self.augmentation is None:
            return None
        how, seed = self.augmentation, self.augmentation_seed
        augmenting = Augmenting(how, seed) if how else None
        return Alteration(denoising_of(self.denoise) if self.denoise else None, augmenting)

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
        model, imports = self._network(workspace)
        card = self._as_asked(model)
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
            _tags(card, model),
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

    def _as_asked(self, card: ModelCard) -> ModelCard:
        """The card with the input and the batch statistics of this extraction.

        Raises:
            InputError: the network has no batch norm, or is code that the user has not named.
        """
        if self.layer is not None or self.statistics or self.batch_statistics is not None:
            require_trusted_code(card)  # it is built before anything is computed
        if self.batch_statistics is not None:
            from stages.sensing.batch_statistics import use_batch_statistics
            from stages.sensing.build import build_network

            use_batch_statistics(build_network(card.network, card.n_classes), card.network)
            card = replace(card, batch_statistics=self.batch_statistics)
        if self.normalisation == "none":
            card = card.normalised_by(UNNORMALISED)
        return card

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
        if n_rows := self.batch_statistics:
            stored = opened(workspace, replace(spec, cells=None, alteration=None))
            notes += group_notes(stored, n_rows, is_corrupted=spec.cells is not None)
        found = workspace.store.preview(plan)
        mapping = listed_classes(source, card)
        text = (
            f"extract {found['rows_to_do']:,} of {counted(found['n_rows'], 'image')} "
            f"({counted(found['shards_to_do'], 'shard')}, {size(found['bytes_to_write'])}) to "
            f"{found['location']}, with {workers}{shown_classes(mapping)}"
        )
        facts = {**found, "executor": workers, "classes": mapping, **left_out_of(source)}
        return Preview(text, facts, notes + source_notes(source))


def _tags(card: ModelCard, model: ModelCard) -> tuple[str, ...]:
    """Suffixes, in the name of a feature set, for settings that are not those of the model."""
    raw = ["unnormalised"] * (card.normalisation != model.normalisation)
    return (*raw, *(f"batch-{n}" for n in (card.batch_statistics,) if n))
