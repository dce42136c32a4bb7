"""The stage active-learn: benchmark runs of active learning, or a request for labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.fields import OneOf, Place, Ref, Written
from pipeline.stage import Several, Stage
from pipeline.workspace import Workspace
from stages.data.classes import class_notes
from stages.data.known import data_root_path
from stages.data.loose import pool_source
from stages.data.near_equal import near_equal_note
from stages.data.opened import opened
from stages.data.option_types import ClassNames, Corruption, Dataset, Limit, Network
from stages.data.registry import SourceSpec, existing_path, name_of
from stages.data.source import ImageSource
from stages.data.source_notes import source_notes
from stages.errors import InputError
from stages.sensing.card import Precision
from stages.sensing.import_model import Filter, InputSize, ResizeBy, WeightsKey
from stages.sensing.start import (
    StartMean,
    StartOptions,
    StartStd,
    StartWeights,
    resizing_of,
    start_of,
)

if TYPE_CHECKING:
    from pipeline.make import ArtifactJob
    from stages.active_learning.asking import Asking
    from stages.active_learning.lesson import LessonParams
    from stages.active_learning.rounds import RoundParams

STRATEGY_NAMES = (
    *("random", "entropy", "least-confidence", "margin", "bald", "badge"),
    *("core-set", "core-set-gradients", "k-means"),
    *("prob-cover", "typiclust", "cluster-margin", "bait"),
)
"""The keys of `stages.active_learning.strategies.STRATEGIES`, whose module imports numpy."""

CLEAN = "clean"
"""Name of the test split among the tests."""

OF_RUNS = (
    *("rounds", "query", "start", "images", "corruption", "limit"),
    *("executor", "gpus", "workers", "address"),
)
OF_ASKING = ("labels", "out")
"""Options that have no effect with ``ask``, and without it."""

OF_H = ("head_lr", "layers")
"""Options that only a head reads."""


class ActiveLearn(Stage):
    """Learn from few labels: train, query the most useful labels, and train again.

    A checkpoint is written after every round; running the command again resumes from the last one.
    Runs of several strategies, kinds and seeds are independent: --workers and --gpus run them in
    parallel. With --ask, people provide the labels: see docs/how-to/choose-images-to-label.md.
    """

    verb = "active-learn"
    makes = "result"
    runs_with = ("device", "executor", "gpus", "workers", "address", "data_root")
    examples = (
        "active-learn --dataset cifar10 --strategy badge,entropy --model-kind f,h --seeds 0,1,2 "
        "--workers 4",
        "active-learn --dataset ./photos --ask 500",
    )

    dataset: Dataset
    strategies: Annotated[
        Several[Annotated[str, OneOf(STRATEGY_NAMES)]],
        Field(min_length=1),
        Written("--strategy", "LIST"),
    ] = Field(
        ("badge",),
        description="Query strategies, separated by commas: random, entropy, least-confidence, "
        "margin, bald, badge, core-set, core-set-gradients, k-means, prob-cover, typiclust, "
        "cluster-margin, bait.",
    )
    kinds: (
        Annotated[Several[Literal["f", "h"]], Field(min_length=1), Written("--model-kind", "LIST")]
        | None
    ) = Field(
        None,
        description="Model that scores the queries: f, h, or f,h for one run each. (default: f; "
        "in a recipe both)",
    )
    rounds: PositiveInt = Field(20, description="Number of trainings.")
    query: PositiveInt = Field(1000, description="Labels queried after each training.")
    start: Annotated[int, Field(ge=2)] = Field(
        100, description="Labels of the first round, the same for f and H."
    )
    seeds: Annotated[Several[NonNegativeInt], Field(min_length=1)] = Field(
        (0,), description="Seeds, one run each: 0,1,2."
    )
    network: Network = Field(
        "resnet18",
        description="Network to train: resnet18, cnn2, torchvision:NAME, timm:NAME, "
        "file.py:factory, ...",
    )
    weights: StartWeights = None
    weights_key: WeightsKey | None = None
    epochs: PositiveInt = Field(
        500,
        description="Maximum epochs of a training of f or H, which stops early at 99 % accuracy.",
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(128, description="Images per training step.")
    lr: PositiveFloat = Field(1e-4, description="Learning rate of Adam for f.")
    head_lr: PositiveFloat = Field(1e-3, description="Learning rate of Adam for H.")
    layers: Several[PositiveInt] = Field((300, 100), description="Widths of H's hidden layers.")
    precision: Precision = Field(
        "fp32", description="Precision of f in training and afterwards: fp32 or bf16."
    )
    images: Annotated[str, Place.DATA, Ref(("images",)), Written("--corrupted", "DATA")] | None = (
        Field(None, description="Corrupted set to test on as well, e.g. cifar10c.")
    )
    corruption: Corruption = Field(
        "gaussian_noise", description="Corruption of that set to test on, at all severities."
    )
    ask: Annotated[PositiveInt, Written(is_command_only=True)] | None = Field(
        None,
        description="Select this many images of an unlabelled folder for people to label next, "
        "instead of running a benchmark. Writes a list and a contact sheet.",
    )
    labels: Annotated[Several[str], Place.FILE, Written(metavar="FILE", is_repeated=True)] = Field(
        (),
        description="With --ask: CSV file of sample_id and label, or Label Studio's JSON export. "
        "May be repeated.",
    )
    out: Annotated[str, Place.OUTPUT, Written(metavar="FOLDER")] | None = Field(
        None,
        description="With --ask: folder for the list. (default: to-label-N after N labels)",
    )
    mean: StartMean | None = None
    std: StartStd | None = None
    image_size: InputSize | None = None
    resize: ResizeBy | None = None
    interpolation: Filter | None = None
    classes: ClassNames = ()
    limit: Limit = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.weights_key and self.weights is None:
            raise ValueError("--weights-key needs weights to start from: add --weights FILE")
        self._check_asking(self.model_dump(exclude_defaults=True))
        return self

    def check_given(self, options: Collection[str]) -> None:
        """Raise ``InputError`` for an option that has no effect beside the others."""
        self._check_asking(options)
        if "corruption" in options and self.images is None:
            raise InputError("--corruption has no effect without --corrupted")
        for name in OF_H:
            if name in options and "h" not in (self.kinds or "f"):
                raise InputError(f"--{name.replace('_', '-')} has no effect without --model-kind h")

    def _check_asking(self, options: Collection[str]) -> None:
        """Raise ``InputError`` for an option that has no effect with, or without, ``ask``."""
        is_asking = self.ask is not None
        for name in OF_RUNS if is_asking else OF_ASKING:
            if name in options:
                option = "corrupted" if name == "images" else name
                raise InputError(
                    f"--{option} has no effect {'with' if is_asking else 'without'} --ask"
                )

    def check(
        self,
        workspace: Workspace,
        needs: Mapping[str, Stage],  # noqa: ARG002 - the signature of all stages
    ) -> None:
        """Raise ``InputError`` if the data set does not exist, or is smaller than requested."""
        pool = opened(workspace, self._pool(workspace))
        self._lessons(workspace, pool)
        self._round_params.check(pool.n_rows)

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The runs and their curves, or the request for labels.

        Raises:
            InputError: the data set is unsuitable, options contradict each other, or the folder of
                a request holds another list.
        """
        if self.ask is None:
            return self._runs_job(workspace)
        from stages.active_learning.asking import question_job

        asking = self.asking(workspace)
        near = near_equal_note(asking.class_names, "labels")
        notes = [*filter(None, [near]), *source_notes(asking.source)]
        folder = Path(self.out or f"to-label-{len(asking.labels)}")
        return question_job(workspace.store, asking, workspace.device, folder, notes)

    def asking(self, workspace: Workspace) -> Asking:
        """The request for labels; raises ``InputError`` if it does not fit the folder."""
        return workspace.once(("asking", self), lambda: self._asking(workspace))

    def _asking(self, workspace: Workspace) -> Asking:
        from stages.active_learning.asking import Asking, sample_ids_of
        from stages.active_learning.labels import read_labels

        folder = existing_path(self.dataset, data_root_path(workspace.data_root))
        if not folder.is_dir():
            raise InputError(
                f"{folder}: expected a folder of images to ask labels for, found a file"
            )
        source = pool_source(folder, name_of(folder), resizing_of(workspace, self._start_options))
        lessons = self._lessons(workspace, source)
        if len(lessons) > 1:
            raise InputError("--ask takes one strategy, one model kind and one seed")
        known = {sample_id: row for row, sample_id in enumerate(sample_ids_of(source))}
        labels = read_labels(map(Path, self.labels), known)
        return Asking(lessons[0], source, labels, self.ask or 0, self.classes)

    def _runs_job(self, workspace: Workspace) -> ArtifactJob:
        from stages.active_learning.active_runs import ActiveRuns, curves_job

        pool = self._pool(workspace)
        tests = {CLEAN: replace(pool, split="test", limit=None)}
        if self.images is not None:
            only = (self.corruption,)
            tests[self.corruption] = replace(tests[CLEAN], dataset=self.images, corruptions=only)
        self._require_labels(workspace, pool)
        source, *others = (opened(workspace, spec) for spec in (pool, *tests.values()))
        lessons = self._lessons(workspace, source)
        notes = [
            *(line for each in (source, *others) for line in source_notes(each)),
            *class_notes(source, is_ordered=bool(self.classes)),
            *lessons[0].initial.notes,
        ]
        runs = ActiveRuns(lessons, self._round_params, pool, tests)
        return curves_job(workspace.store, runs, workspace.workers, notes)

    def _require_labels(self, workspace: Workspace, pool: SourceSpec) -> None:
        """Raise ``InputError`` for a folder of images without labels; those need ``ask``."""
        try:
            n_classes = opened(workspace, replace(pool, split="test")).n_classes
        except InputError:  # it has training images alone, or none at all
            return
        if not n_classes:
            raise InputError(
                f"{self.dataset}: its images have no labels; choose images to label with --ask N, "
                "or name a data set with classes"
            )

    def _pool(self, workspace: Workspace) -> SourceSpec:
        return SourceSpec(
            self.dataset,
            "train",
            workspace.data_root,
            resizing_of(workspace, self._start_options),
            self.limit,
            classes=self.classes,
        )

    @property
    def _start_options(self) -> StartOptions:
        return StartOptions(
            self.network,
            self.weights,
            self.weights_key,
            mean=self.mean,
            std=self.std,
            image_size=self.image_size,
            resize=self.resize,
            interpolation=self.interpolation,
        )

    def _lessons(self, workspace: Workspace, source: ImageSource) -> tuple[LessonParams, ...]:
        from stages.active_learning.active_runs import lessons_of
        from stages.active_learning.lesson import KINDS, LessonParams
        from stages.sensing.build import located
        from stages.sensing.trust import require_trust

        require_trust(self.network, workspace.named_by)
        start = start_of(workspace, self._start_options, source)
        lesson = LessonParams(
            network=located(start.weights.network if start.weights else self.network),
            epochs=self.epochs,
            batch=self.batch_size,
            lr=self.lr,
            head_lr=self.head_lr,
            layers=self.layers,
            precision=self.precision,
            initial=start,
        )
        kinds = self.kinds or (KINDS if workspace.recipe else KINDS[:1])
        return lessons_of(lesson, self.strategies, kinds, self.seeds)

    @property
    def _round_params(self) -> RoundParams:
        from stages.active_learning.rounds import RoundParams

        return RoundParams(self.rounds, self.query, self.start)
