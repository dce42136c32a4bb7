"""The stage curate: which rows of a data set to look at."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.fields import OneOf, Place, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Stage
from pipeline.workspace import Workspace
from stages.curation.curation_result import Asked
from stages.curation.curation_scores import RANKINGS
from stages.data.option_types import EscapeFormulas, FeatureSetName, FlipLabels, OutputName
from stages.errors import InputError
from stages.introspection.heads import check_labels, labels_of
from stages.introspection.preparation import check_same_network
from stages.out_folder import check_folder, write_files
from stages.reflection.losses import DEFAULT_LOSS, LOSSES
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

if TYPE_CHECKING:
    from stages.curation.curation_sheet import Images

VERSION = 2
"""Raised whenever a number or the sheet for the same rows changes."""

TOP = "top.csv"


class Curate(Stage):
    """Rank the rows of a data set by likely label errors, difficulty, or near-duplicates.

    Every score follows from stored features and logits; no image goes through a network.
    """

    verb = "curate"
    makes = "result"
    runs_with = ("data_root",)
    examples = (
        "curate --features cifar10-train@resnet18 --out suspects",
        "curate --features cifar10-test@resnet18 --against cifar10-train@resnet18 --by similarity",
    )

    features: Annotated[FeatureSetName, Field(description="Feature set of the rows to rank.")]
    against: FeatureSetName | None = Field(
        None,
        description="Feature set to search for the nearest rows, such as the training set for rows "
        "of the test set. (default: the same set)",
    )
    by: Annotated[str, OneOf(tuple(RANKINGS))] = Field(
        "self_confidence",
        description=f"Score that ranks the rows: {', '.join(RANKINGS)}. All are columns of the "
        "result.",
    )
    top: NonNegativeInt = Field(
        24, le=2000, description="Number of ranked rows on the contact sheet; 0 for no sheet."
    )
    probabilities: Literal["refits", "stored"] = Field(
        "refits",
        description="Out-of-sample probabilities for label errors: refits of the last layer, each "
        "without the rows that it judges, or those stored, for images that f was not trained on.",
    )
    folds: PositiveInt = Field(5, ge=2, description="Number of refits.")
    seed: NonNegativeInt = Field(0, description="Seed of the folds.")
    space: Literal["features", "reflection", "none"] = Field(
        "features",
        description="Vectors whose cosines define the nearest rows: features, reflection (r_x), or "
        "none to skip the search.",
    )
    loss: Annotated[str, OneOf(tuple(LOSSES))] | None = Field(
        None, description=f"Loss of r_x, for --space reflection. (default: {DEFAULT_LOSS})"
    )
    flip_labels: FlipLabels | None = Field(
        None,
        description="Flip labels as train-sensing --flip-labels does with the same value, and "
        "measure how well the flags and scores find them.",
    )
    neighbours: PositiveInt = Field(5, description="Number of nearest rows to list for each row.")
    dataset: (
        Annotated[
            str,
            Place.DATA,
            Written(metavar="DATA"),
            Field(
                description="Images of the rows, by name or path, for the contact sheet. (default: "
                "the data set of that name)"
            ),
        ]
        | None
    ) = None
    name: OutputName | None = Field(
        None, description="Name of the result. (default: the name of the features)"
    )
    out: Annotated[str, Place.OUTPUT, Written(metavar="FOLDER")] | None = Field(
        None, description=f"Folder to copy the tables, the sheet and {TOP}, its rows, to."
    )
    escape_formulas: EscapeFormulas = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.space == "none" and (self.against or self.by == "similarity"):
            option = "--against" if self.against else "--by similarity"
            raise ValueError(f"{option} needs a --space: features or reflection, not none")
        if self.space != "reflection" and self.loss is not None:
            raise ValueError("--loss has no effect without --space reflection")
        if self.escape_formulas and self.out is None:
            raise ValueError("--escape-formulas is for the table of --out: add --out FOLDER")
        return self

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The ranking.

        Raises:
            NotFoundError, IncompleteError: a feature set does not exist, or is not finished.
            InputError: the sets are of different networks, the score needs labels, or the network
            was trained on other labels of the same rows, or ``out`` is a file.
            DataNotFoundError: the images for the sheet are not found.
        """
        if self.out is not None:
            check_folder(Path(self.out))
        store = workspace.store
        feature_set = store.open(self.features).require_complete()
        against = None if self.against is None else store.open(self.against).require_complete()
        plan, stem = self.plan(feature_set, against), f"{feature_set.plan['name']}-curation"
        plain = f"{stem}-{fingerprint(plan)}"
        name = workspace.output_name("result", self.name, plain, stem, plan)

        def check() -> None:
            self._check(feature_set, against)
            if self.flip_labels != (trained := flips_of_training(store, feature_set)) and trained:
                raise InputError(
                    f"{feature_set.name}: the network was trained on flipped labels of these rows: "
                    f"judge the same ones with --flip-labels {trained}"
                )
            self._images(workspace, feature_set, against)

        def compute() -> Output:
            from stages.curation.curated import curated

            images = self._images(workspace, feature_set, against)
            command = shlex.join(["intro-pipe", *workspace.command])
            return curated(feature_set, against, self._asked, images, command)

        what = f"rank {feature_set.n_rows:,} rows of {feature_set.name} by {self.by}: {name}"
        return ArtifactJob(
            store,
            store.artifact("result", name),
            plan,
            title=f"curate {feature_set.plan['name']}",
            preview=Preview(what, {"result": name}),
            compute=compute,
            check=check,
            copy=self._copied,
        )

    def plan(self, feature_set: FeatureSet, against: FeatureSet | None) -> Plan:
        """Everything that determines the result; options without effect are left out."""
        return {
            "stage": {"name": self.verb, "version": VERSION, "params": self._asked.planned},
            "inputs": {
                "features": feature_set.name,
                "against": None if against is None else against.name,
            },
        }

    @property
    def _asked(self) -> Asked:
        is_refitted = self.probabilities == "refits"
        return Asked(
            by=self.by,
            top=self.top,
            folds=self.folds if is_refitted else 0,
            seed=self.seed if is_refitted else 0,
            space=self.space,
            loss=self.loss or DEFAULT_LOSS if self.space == "reflection" else None,
            neighbours=0 if self.space == "none" else self.neighbours,
            flips=self.flip_labels,
        )

    def _check(self, feature_set: FeatureSet, against: FeatureSet | None) -> None:
        labels = labels_of(feature_set.require_usable())
        if RANKINGS[self.by].needs_labels and not (labels >= 0).any():
            raise InputError(
                f"--by {self.by}: expected labelled rows, found none among {len(labels):,} of "
                f"{feature_set.name}; use --by similarity, or a split that has labels"
            )
        check_labels(feature_set)
        if self._asked.folds and 0 < (n := _n_judged(feature_set)) < self.folds:
            raise InputError(
                f"--folds {self.folds}: expected at least as many labelled rows that did not "
                f"fail, found {n:,} in {feature_set.name}"
            )
        if against is not None:
            check_same_network(feature_set, against.require_usable(), "--against")

    def _images(
        self, workspace: Workspace, feature_set: FeatureSet, against: FeatureSet | None
    ) -> Images | None:
        """Where the images for the sheet are; None without a sheet."""
        from stages.curation.curation_sheet import Images
        from stages.data.planned_images import images_of_features

        if not self.top:
            return None

        ours = images_of_features(workspace, feature_set, self.dataset)
        if self.space == "none":
            return Images(ours, None, self.space)
        if against is None:
            return Images(ours, ours, self.space)
        return Images(ours, images_of_features(workspace, against, self.dataset), self.space)

    def _copied(self, result: Artifact) -> list[Path]:
        from stages.csv_text import csv_of
        from stages.curation.curation_result import top_of

        if self.out is None:
            return []
        text = csv_of(top_of(result), escape_formulas=self.escape_formulas)
        files = {name: result.read(name) for name in result.files()}
        return write_files(Path(self.out), {**files, TOP: text.encode()})


def _n_judged(feature_set: FeatureSet) -> int:
    """Number of rows that have a label and did not fail."""
    samples = feature_set.samples()
    return int(((samples["label"] >= 0) & (samples["status"] == "ok")).sum())


def flips_of_training(store: FeatureStore, feature_set: FeatureSet) -> str | None:
    """The flipped labels of these rows on which their network was trained; None for none.

    Raises:
        InputError: the network was trained on flipped labels of this split, but on other rows of
            it, whose flips are others.
    """
    from stages.reflection.feature_plan import FeaturePlan
    from stages.sensing.trained import TrainedModel, is_trained_here

    features = FeaturePlan.of(feature_set.plan)
    artifact = store.artifact("model", features.model.name)
    if not artifact.is_complete() or not is_trained_here(artifact):
        return None
    found = TrainedModel.of(artifact)
    is_other = found.card.weights_sha256 != features.model.weights_sha256
    if is_other or not found.recipe.flip_labels:
        return None
    ours, theirs = features.source, FeaturePlan.of(artifact.plan()).source
    if (ours.name, ours.split) != (theirs.name, theirs.split):
        return None
    if ours.fingerprint != theirs.fingerprint:
        raise InputError(
            f"{feature_set.name}: expected the rows on whose flipped labels the network was "
            "trained: extract the whole split, without another --limit"
        )
    return found.recipe.flip_labels
