"""The stage conformal: prediction sets with a coverage that is guaranteed for exchangeable rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from pipeline.fields import OneOf, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Distinct, Preview, Stage
from pipeline.workspace import Workspace
from stages.conformal.conformity import METHODS, Shape
from stages.data.option_types import FeatureSetName
from stages.errors import InputError
from stages.introspection.contenders import (
    Contender,
    check_contenders,
    contenders_of,
    planned_heads,
)
from stages.introspection.heads import Heads, check_labelled
from stages.introspection.preparation import check_alike, check_preparation
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.groups import check_columns
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

VERSION = 2


class Conformal(Stage):
    """Make prediction sets that hold the label in a given share of rows, with f and with heads.

    Thresholds are calibrated on some rows, which f must not have been trained on, and the sets of
    other rows are judged by cells: their coverage holds for rows like those of the calibration, and
    breaks under corruption.
    """

    verb = "conformal"
    makes = "result"
    examples = (
        "conformal --calibration cifar10-test@resnet18",
        "conformal --calibration cifar10-test@resnet18 --features cifar10c@resnet18",
    )

    calibration: Annotated[
        FeatureSetName,
        Field(description="Labelled features to calibrate on, which f was not trained on."),
    ]
    features: FeatureSetName | None = Field(
        None,
        description="Another labelled feature set to judge, such as corrupted images. (default: "
        "only the rows of the calibration set that did not calibrate)",
    )
    heads: Heads = None
    methods: Annotated[
        Distinct[Annotated[str, OneOf(tuple(METHODS))]],
        Field(min_length=1),
        Written("--method", "LIST"),
    ] = Field(tuple(METHODS), description=f"Scores, separated by commas: {', '.join(METHODS)}.")
    alpha: float = Field(0.1, gt=0, lt=1, description="Share of rows whose set may miss the label.")
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the calibration set that calibrates, drawn with the seed; the other "
        "rows are judged.",
    )
    by_class: bool = Field(
        False, description="Calibrate a threshold for each class, from the rows with its label."
    )
    exact: bool = Field(
        False,
        description="Leave out the randomisation of aps, raps and saps: larger sets, without "
        "chance, that hold the label more often than asked for.",
    )
    penalty: NonNegativeFloat = Field(
        0.01, description="Penalty of raps for each rank beyond --free-ranks."
    )
    free_ranks: NonNegativeInt = Field(5, description="Ranks that raps does not penalise.")
    rank_weight: NonNegativeFloat = Field(
        0.2, description="Weight of each rank after the first in saps."
    )
    by: Distinct[str] = Field(
        (),
        description="Sample columns, separated by commas, whose values define the cells. (default: "
        "corruption and severity, if a set has them)",
    )
    seed: NonNegativeInt = Field(
        0, description="Seed of the rows that calibrate, and of the randomisation."
    )

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The calibration and its judgement.

        Raises:
            InputError: the sets or heads belong to several networks, or a column does not exist.
        """
        store = workspace.store
        own = store.open(self.calibration)
        other = None if self.features is None else store.open(self.features)
        self._check_judged(own, other)
        contenders = contenders_of(store, own, self.heads)
        plan = self.plan(own, other, contenders)
        name = f"{(other or own).plan['name']}-conformal-{fingerprint(plan)}"

        def compute() -> Output:
            from stages.conformal.conformal_result import conformed
            from stages.conformal.set_calibration import Method

            method = Method(
                names=self.methods,
                alpha=self.alpha,
                share=self.share,
                seed=self.seed,
                is_randomised=not self.exact,
                is_by_class=self.by_class,
                shape=Shape(self.penalty, self.free_ranks, self.rank_weight),
            )
            return conformed(store, (own, other), contenders, method, self.by)

        notes = []
        if FeaturePlan.of(own.plan).source.split == "train":
            notes.append(
                "calibrated on training images, on which f is more confident than on new ones: the "
                "sets of new images will be too small"
            )
        return ArtifactJob(
            store,
            store.artifact("result", name),
            plan,
            title=f"conformal {own.plan['name']}",
            preview=Preview(f"make prediction sets: {name}", {"result": name}, notes),
            compute=compute,
            check=lambda: self._check(store, own, other, contenders),
        )

    def plan(
        self, own: FeatureSet, other: FeatureSet | None, contenders: Sequence[Contender]
    ) -> Plan:
        """Everything that determines the result."""
        params = self.model_dump(mode="json", exclude={"calibration", "features", "heads"})
        sets = [each.plan for each in (own, other) if each is not None]
        return {
            "stage": {"name": self.verb, "version": VERSION, "params": params},
            "inputs": {"features": sets, "heads": planned_heads(contenders)},
        }

    def _check_judged(self, own: FeatureSet, other: FeatureSet | None) -> None:
        if other is None and self.share == 1:
            raise InputError(
                "conformal: --share 1 leaves no rows to judge: add --features, or use a smaller "
                "share"
            )
        if other is not None and other.name == own.name:
            raise InputError(
                f"conformal: --features is the calibration set, {own.name}: omit it, the rows that "
                "did not calibrate are judged"
            )
        check_columns(self.verb, [each for each in (own, other) if each], self.by)

    def _check(
        self,
        store: FeatureStore,
        own: FeatureSet,
        other: FeatureSet | None,
        contenders: Sequence[Contender],
    ) -> None:
        """Raise ``InputError`` if sets and heads do not fit; ``FailedRowsError``."""
        check_contenders(contenders)
        for each in contenders:
            check_preparation(store, own, each.head)
        check_labelled(own.require_usable(), "conformal")
        if other is not None:
            check_alike(own, other)
            check_labelled(other.require_usable(), "conformal")
