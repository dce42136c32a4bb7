"""The stage influence: the training rows that support and that oppose predictions."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.fields import OneOf, Place, Ref, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Several, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName, OutputName
from stages.errors import InputError
from stages.introspection.heads import check_labels, labels_of
from stages.introspection.preparation import check_same_network
from stages.out_folder import check_folder, write_files
from stages.reflection.conditions import WHERE, Condition, conditions
from stages.reflection.feature_plan import FeaturePlan
from store.artifacts import Artifact
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

if TYPE_CHECKING:
    from stages.influence.influence_sheet import Images
    from stages.influence.influential_rows import Asked, Snapshot
    from stages.scores.chosen_rows import Choice

VERSION = 1
"""Raised whenever a score or the sheet for the same rows changes."""

MIN_DAMPING = 1e-10
"""H has eigenvalues of zero: with less damping, rounding errors outweigh the scores."""

Method = Literal["exact", "kfac", "tracin"]


def _listed(value: Any) -> Any:  # Any: from YAML, JSON or the command line
    """A single word as a list of one."""
    return (value,) if isinstance(value, str) else value


class Influence(Stage):
    """Find the training rows that most support, and most oppose, the predictions of chosen rows.

    All scores follow from stored features and logits at the last layer; no image goes through a
    network.
    """

    verb = "influence"
    makes = "result"
    runs_with = ("data_root",)
    examples = (
        "influence --features cifar10-test@resnet18 --training cifar10-train@resnet18 "
        '--where "prediction!=label"',
    )

    features: Annotated[FeatureSetName, Field(description="Feature set whose rows are explained.")]
    training: Annotated[
        FeatureSetName, Field(description="Features of the rows that f was trained on.")
    ]
    method: Annotated[Several[Method], BeforeValidator(_listed), Field(min_length=1)] = Field(
        ("exact", "kfac", "tracin"),
        description="Scores; the sheet shows the first. exact: influence with the full Hessian of "
        "the last layer, of at most 6,000 weights. kfac: with its Kronecker factors, for any "
        "number. tracin: sum over snapshots of products of gradients.",
    )
    of_class: Annotated[Literal["prediction", "label"], Written("--class", "CLASS")] = Field(
        "prediction", description="Class whose probability is explained: prediction or label."
    )
    where: Annotated[
        Several[str], BeforeValidator(_listed), Written(is_repeated=True, metavar="CONDITION")
    ] = Field((), description=WHERE)
    rows: Annotated[Several[str], BeforeValidator(_listed)] = Field(
        (), description="Rows to explain, by sample id or row number. (default: all)"
    )
    head: Annotated[str, Ref(("head",)), Written(metavar="HEAD")] | None = Field(
        None, description="Head H for --disagree. (default: the model's only head)"
    )
    disagree: bool = Field(False, description="Explain the rows where f and H disagree.")
    top: PositiveInt = Field(
        12, le=500, description="Explain only so many rows, chosen by --by among the others."
    )
    by: str = Field(
        "confidence",
        description="Column or score of f by which --top chooses: confidence, entropy, energy, "
        "margin, ...",
    )
    order: Annotated[str, OneOf(("lowest", "highest"))] = Field(
        "lowest", description="End of --by that --top keeps: lowest or highest."
    )
    listed: PositiveInt = Field(
        10, le=1000, description="Training rows to list on each side of an explained row."
    )
    damping: Annotated[FiniteFloat, Field(ge=MIN_DAMPING)] = Field(
        0.1,
        description="Added to the Hessian of exact and kfac, as a multiple of its mean eigenvalue.",
    )
    snapshots: Several[FeatureSetName] = Field(
        (),
        description="Features of the training rows at snapshots of the network, for tracin. "
        "(default: --training alone)",
    )
    snapshot_features: Several[FeatureSetName] = Field(
        (), description="Features of the explained rows at the same snapshots, in the same order."
    )
    rates: Several[PositiveFloat] = Field(
        (), description="Learning rate of each snapshot. (default: 1 for all)"
    )
    dataset: Annotated[str, Place.DATA, Written(metavar="DATA")] | None = Field(
        None,
        description="Images of both sets, by name or path, for the contact sheet. (default: the "
        "data set of that name)",
    )
    sheet_rows: NonNegativeInt = Field(
        24, le=500, description="Rows on the contact sheet, which reads the images; 0 for no sheet."
    )
    name: OutputName | None = Field(
        None, description="Name of the result. (default: the name of the features)"
    )
    out: Annotated[str, Place.OUTPUT, Written(metavar="FOLDER")] | None = Field(
        None, description="Folder to copy the tables and the sheet to."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        n = len(self.snapshots)
        if len(self.snapshot_features) != n:
            raise ValueError(
                f"--snapshot-features: expected one for each of the {n} --snapshots, found "
                f"{len(self.snapshot_features)}"
            )
        if len(self.rates) not in (0, n):
            raise ValueError(
                f"--rates: expected one for each of the {n} --snapshots, found {len(self.rates)}"
            )
        if n and "tracin" not in self.method:
            raise ValueError("--snapshots has no effect without --method tracin")
        if self.head is not None and not self.disagree:
            raise ValueError("--head has no effect without --disagree")
        return self

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The search.

        Raises:
            NotFoundError, IncompleteError: a feature set does not exist, or is not finished.
            InputError: the sets are of different networks or rows, no row is chosen, or there are
                too many weights for "exact", or ``out`` is a file.
            DataNotFoundError: the images for the sheet are not found.
        """
        if self.out is not None:
            check_folder(Path(self.out))
        store = workspace.store
        features = store.open(self.features).require_usable()
        training = store.open(self.training).require_usable()
        plan, stem = self.plan(workspace), f"{features.plan['name']}-influence"
        plain = f"{stem}-{fingerprint(plan)}"
        name = workspace.output_name("result", self.name, plain, stem, plan)

        def check() -> None:
            self._check(features, training)
            self._snapshots(workspace)
            self._images(workspace, features, training)
            self._chosen(workspace, features)

        return ArtifactJob(
            store,
            store.artifact("result", name),
            plan,
            title=f"influence on {features.plan['name']}",
            preview=Preview(
                f"search {training.name} for rows that influence {features.name}: {name}",
                {"result": name},
            ),
            compute=lambda: self._found(workspace, features, training),
            check=check,
            copy=self._copied,
        )

    def plan(self, workspace: Workspace) -> Plan:
        """Everything that determines the result."""
        names = (self.features, self.training, *self.snapshots, *self.snapshot_features)
        of = {name: workspace.store.open(name).name for name in names}
        head = self._head(workspace)
        params = {
            "method": list(self.methods),
            "class": self.of_class,
            "choice": self._choice(self.where_in(workspace)).to_dict(),
            "listed": self.listed,
            "damping": self.damping if set(self.methods) - {"tracin"} else None,
            "rates": list(self.rates),
            "sheet_rows": self.sheet_rows,
        }
        return {
            "stage": {"name": self.verb, "version": VERSION, "params": params},
            "inputs": {
                "features": of[self.features],
                "training": of[self.training],
                "snapshots": [of[each] for each in self.snapshots],
                "snapshot_features": [of[each] for each in self.snapshot_features],
                "head": None if head is None else {"name": head.name, "plan": head.plan()},
            },
        }

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods, each once."""
        return tuple(dict.fromkeys(self.method))

    def where_in(self, workspace: Workspace) -> tuple[Condition, ...]:
        """The conditions; unlabelled rows are left out if the label is explained."""
        where = conditions(self.where, workspace.store.open(self.features).schema)
        is_labelled = Condition("label", (-1,), "!=")
        return (*where, is_labelled) if self.of_class == "label" else where

    def _choice(self, where: tuple[Condition, ...]) -> Choice:
        from stages.scores.chosen_rows import Choice

        order: Literal["lowest", "highest"] = "highest" if self.order == "highest" else "lowest"
        return Choice(where, self.rows, self.disagree, self.top, self.by, order)

    def _head(self, workspace: Workspace) -> Artifact | None:
        from stages.introspection.contenders import choose_head

        if not self.disagree:
            return None
        return choose_head(workspace.store, workspace.store.open(self.features), self.head)

    def _check(self, features: FeatureSet, training: FeatureSet) -> None:
        from stages.introspection.laplace import MAX_PARAMETERS

        check_same_network(features, training, "--training")
        for each in (features, training):
            check_labels(each)
        if not (labels_of(training) >= 0).any():
            raise InputError(
                f"--training {training.name}: expected labelled rows, found none; use a split that "
                "has labels"
            )
        n_classes = features.schema.array("logits").row_shape[0]
        n = n_classes * (features.schema.array("features").row_shape[0] + 1)
        if "exact" in self.methods and n > MAX_PARAMETERS:
            raise InputError(
                f"--method exact: expected at most {MAX_PARAMETERS:,} weights and biases in the "
                f"last layer, found {n:,}: use --method kfac,tracin"
            )

    def _snapshots(self, workspace: Workspace) -> list[Snapshot]:
        """What TracIn sums over; raises ``InputError`` for sets that do not belong together."""
        from stages.influence.influential_rows import Snapshot

        store = workspace.store
        rates = self.rates or (1.0,) * len(self.snapshots)
        pairs = zip(self.snapshot_features, self.snapshots, rates, strict=True)
        found = [
            Snapshot(store.open(ours).require_usable(), store.open(theirs).require_usable(), rate)
            for ours, theirs, rate in pairs
        ]
        now = Snapshot(store.open(self.features), store.open(self.training))
        for each in found:
            check_same_network(each.training, each.features, "--snapshot-features")
            _check_same_rows(now.training, each.training, "--snapshots")
            _check_same_rows(now.features, each.features, "--snapshot-features")
        return found or [now]

    def _chosen(self, workspace: Workspace, features: FeatureSet) -> Any:  # Any: row numbers
        from pipeline.progress import Progress
        from stages.introspection.predictors import predictors
        from stages.scores.chosen_rows import chosen_rows

        head, choice = self._head(workspace), self._choice(self.where_in(workspace))
        predict = None if head is None else next(iter(predictors(workspace.store, head).values()))

        def choose() -> Any:
            with Progress("choose rows", features.n_rows, unit="rows") as progress:
                return chosen_rows(features, choice, predict, progress.advance).rows

        key = ("influenced", features.name, repr(choice), None if head is None else head.name)
        return workspace.once(key, choose)

    def _asked(self, workspace: Workspace, features: FeatureSet, training: FeatureSet) -> Asked:
        import numpy as np

        from stages.influence.influential_rows import Asked, Snapshot, samples_of
        from stages.sensing.stored_layer import stored_layer

        rows = self._chosen(workspace, features)
        model = FeaturePlan.of(features.plan).model
        layer = stored_layer(workspace.store, model.name, model.weights_sha256)
        classes = samples_of(features, rows, (self.of_class,))[self.of_class].to_numpy(np.int64)
        return Asked(
            Snapshot(features, training),
            rows,
            classes,
            self.methods,
            self._snapshots(workspace),
            self.damping,
            self.listed,
            layer.bias is not None,
        )

    def _found(self, workspace: Workspace, features: FeatureSet, training: FeatureSet) -> Output:
        from pipeline.progress import Progress
        from stages.influence.influence_result import (
            DEFINITIONS,
            INFLUENCES,
            METHODS,
            InfluenceCard,
        )
        from stages.influence.influential_rows import (
            influence_table,
            influential_rows,
            method_table,
        )
        from stages.versions import versions

        started, asked = time.monotonic(), self._asked(workspace, features, training)
        n_passes = 1 + sum(method != "tracin" for method in self.methods)
        title = f"Training rows behind {features.plan['name']}"
        with Progress(f"search {training.name}", n_passes * training.n_rows, unit="rows") as shown:
            found = influential_rows(asked, shown.advance)
        plan, table = FeaturePlan.of(features.plan), influence_table(asked, found)
        names = plan.output_names(features.schema.array("logits").row_shape[0])
        frames = {INFLUENCES: table, METHODS: method_table(table)}
        files = {name: frame.to_parquet(index=False) for name, frame in frames.items()}
        images = self._images(workspace, features, training)
        if images is not None and len(table):
            command = shlex.join(["intro-pipe", *workspace.command])
            files |= _drawn(
                table[table["row"].isin(asked.rows[: self.sheet_rows])],
                images,
                names,
                title,
                command,
            )
        card = InfluenceCard(
            title=title,
            features=features.name,
            training=training.name,
            model=plan.model.name,
            explained=self.of_class,
            rows=len(asked.rows),
            training_rows=found.n_training,
            listed=self.listed,
            damping=found.damping,
            snapshots=tuple(each.training.name for each in asked.snapshots),
            class_names=names,
            definitions={
                name: text
                for name, text in DEFINITIONS.items()
                if name in self.methods or name not in ("exact", "kfac", "tracin")
            },
            versions=versions(),
            seconds=round(time.monotonic() - started, 1),
        )
        return files, asdict(card)

    def _images(
        self, workspace: Workspace, features: FeatureSet, training: FeatureSet
    ) -> Images | None:
        """Where the images for the sheet are; None without a sheet."""
        from stages.data.planned_images import images_of_features
        from stages.influence.influence_sheet import Images

        if not self.sheet_rows:
            return None

        found = [images_of_features(workspace, each, self.dataset) for each in (features, training)]
        return Images(*found)

    def _copied(self, result: Artifact) -> Sequence[Path]:
        if self.out is None:
            return []
        return write_files(Path(self.out), {name: result.read(name) for name in result.files()})


def _drawn(
    table: Any, images: Images, names: Sequence[str], title: str, command: str
) -> Mapping[str, bytes]:
    """The files of the contact sheet."""
    from stages.influence.influence_sheet import influence_sheet
    from stages.out_folder import PAGE, PICTURE
    from stages.sheets.sheet_page import sheet_html
    from stages.sheets.sheet_picture import sheet_pngs

    sheet = influence_sheet(table, images, names, title, command)
    pictures = {
        PICTURE.format(number=number): png for number, png in enumerate(sheet_pngs(sheet), start=1)
    }
    return {PAGE: sheet_html(sheet).encode(), **pictures}


def _check_same_rows(expected: FeatureSet, found: FeatureSet, option: str) -> None:
    ours, theirs = (FeaturePlan.of(each.plan).source for each in (expected, found))
    if ours.fingerprint != theirs.fingerprint or expected.n_rows != found.n_rows:
        raise InputError(
            f"{option} {found.name}: expected the {expected.n_rows:,} rows of {expected.name}, "
            f"found {found.n_rows:,} of {theirs.name}; extract the same images with the snapshot"
        )
