"""The stage analyse: Lemma 1, Theorem 1 and Eq. 10 on stored features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.fields import OneOf, Place, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Several, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import EscapeFormulas, FeatureSetName
from stages.errors import InputError
from stages.out_folder import check_folder, write_files
from stages.reflection.groups import CELLS, check_columns
from stages.reflection.losses import LOSSES
from store.artifacts import Artifact
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

VERSION = 1
THEOREM_LOSSES = ("ce", "mse-m")


class Analyse(Stage):
    """Measure Lemma 1, Theorem 1 and the Fisher trace on stored features, and plot the gradients.

    Computed in closed form, one shard at a time; no image is read and no gradient is materialised.
    """

    verb = "analyse"
    makes = "analysis"
    examples = ("analyse --features cifar10@resnet18 --against cifar10c@resnet18",)

    features: Annotated[FeatureSetName, Field(description="Feature set of the store.")]
    against: FeatureSetName | None = Field(
        None, description="Another set of the same model, e.g. its corrupted images."
    )
    by: Several[str] = Field(CELLS, description="Columns to group the rows by, if a set has them.")
    losses: Annotated[
        Several[Annotated[str, OneOf(tuple(LOSSES))]],
        Written(option="--loss", metavar="LOSS", is_repeated=True),
    ] = Field((), description="Another loss for Theorem 1, in addition to ce and mse-m.")
    rows: PositiveInt | None = Field(
        None, description="Number of evenly spaced rows of each set to use. (default: all)"
    )
    row: NonNegativeInt | None = Field(
        None,
        description="Row whose gradients are plotted. (default: three rows that f classified "
        "correctly)",
    )
    out: Annotated[str, Place.OUTPUT, Written(metavar="FOLDER")] | None = Field(
        None, description="Folder to copy the figures and tables to."
    )
    escape_formulas: EscapeFormulas = False

    @model_validator(mode="after")
    def _has_tables(self) -> Self:
        if self.escape_formulas and self.out is None:
            raise ValueError("--escape-formulas is for the tables of --out: add --out FOLDER")
        return self

    @property
    def all_losses(self) -> tuple[str, ...]:
        """The losses of Theorem 1."""
        return tuple(dict.fromkeys([*THEOREM_LOSSES, *self.losses]))

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The measurement; its result is named after the first set.

        Raises:
            InputError: the sets cannot be compared, or lack the column or the row, or ``out`` is a
                file.
        """
        from stages.analysis.findings import check_one_model, found_in

        if self.out is not None:
            check_folder(Path(self.out))
        store = workspace.store
        names = (self.features, self.against)
        feature_sets = tuple(store.open(name) for name in names if name is not None)
        check_one_model(feature_sets)
        self._check_rows_and_columns(feature_sets)
        plan = self.plan(feature_sets)
        name = f"{feature_sets[0].plan['name']}-analysis-{fingerprint(plan)}"

        def check() -> None:
            for each in feature_sets:
                each.require_usable()

        def compute() -> Output:
            return found_in(
                feature_sets,
                by=self.by,
                losses=self.all_losses,
                n_rows=self.rows,
                row=self.row,
            )

        return ArtifactJob(
            store,
            store.artifact("result", name),
            plan,
            title=f"analyse {feature_sets[0].plan['name']}",
            preview=Preview(f"analyse {self.features}: {name}", {"result": name}),
            compute=compute,
            check=check,
            copy=self._copied,
        )

    def plan(self, feature_sets: Sequence[FeatureSet]) -> Plan:
        """Everything that determines the result."""
        params = {
            "by": list(self.by),
            "losses": list(self.all_losses),
            "n_rows": self.rows,
            "row": self.row,
        }
        return {
            "stage": {"name": self.verb, "version": VERSION, "params": params},
            "inputs": {"features": [each.plan for each in feature_sets]},
        }

    def _check_rows_and_columns(self, feature_sets: Sequence[FeatureSet]) -> None:
        check_columns(self.verb, feature_sets, [name for name in self.by if name not in CELLS])
        last = feature_sets[0].n_rows - 1
        if self.row is not None and self.row > last:
            raise InputError(f"row {self.row}: expected one of 0 to {last}, the rows of the set")

    def _copied(self, result: Artifact) -> list[Path]:
        """Copy the figures, and the tables as CSV, to the requested folder."""
        from stages.analysis.findings import AVERAGE, BY_GROUP
        from stages.csv_text import csv_of

        if self.out is None:
            return []
        files = {
            name: result.read(name) for name in result.files() if not name.endswith(".parquet")
        }
        for name in (BY_GROUP, AVERAGE):
            frame = result.read_frame(f"{name}.parquet")
            files[f"{name}.csv"] = csv_of(frame, escape_formulas=self.escape_formulas).encode()
        return write_files(Path(self.out), files)
