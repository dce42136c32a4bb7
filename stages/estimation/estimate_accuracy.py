"""The stage estimate-accuracy: the accuracy of groups of rows without their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeInt

from pipeline.fields import OneOf, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Distinct, Preview, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName
from stages.estimation.estimators import ESTIMATORS
from stages.introspection.contenders import (
    Contender,
    check_contenders,
    contenders_of,
    planned_heads,
)
from stages.introspection.heads import Heads, check_labelled
from stages.introspection.preparation import check_alike, check_preparation
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.groups import cell_columns, check_columns
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

VERSION = 1


class EstimateAccuracy(Stage):
    """Estimate the accuracy of each group of rows without its labels, for f and for heads.

    A labelled source set, which f must not have been trained on, says how accuracy and confidence
    belong together. Where the rows have labels after all, the estimates are judged by them.
    """

    verb = "estimate-accuracy"
    makes = "result"
    examples = ("estimate-accuracy --source cifar10-test@resnet18 --features cifar10c@resnet18",)

    source: Annotated[
        FeatureSetName,
        Field(description="Labelled features that f was not trained on, to learn from."),
    ]
    features: Annotated[FeatureSetName, Field(description="Features whose accuracy is estimated.")]
    heads: Heads = None
    methods: Annotated[
        Distinct[Annotated[str, OneOf(tuple(ESTIMATORS))]],
        Field(min_length=1),
        Written("--method", "LIST"),
    ] = Field(
        tuple(ESTIMATORS),
        description=f"Estimators, separated by commas: {', '.join(ESTIMATORS)}.",
    )
    by: Distinct[str] = Field(
        (),
        description="Sample columns, separated by commas, whose values define the groups. "
        "(default: corruption and severity, if the set has them)",
    )
    seed: NonNegativeInt = Field(0, description="Seed of the random pseudo-labels of gdscore.")

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The estimates.

        Raises:
            InputError: the sets or heads belong to several networks, or a column does not exist.
        """
        store = workspace.store
        source, target = store.open(self.source), store.open(self.features)
        check_columns(self.verb, [target], self.by)
        by = cell_columns(target, self.by)
        contenders = contenders_of(store, target, self.heads)
        plan = self.plan(source, target, contenders)
        name = f"{target.plan['name']}-accuracy-{fingerprint(plan)}"

        def compute() -> Output:
            from stages.estimation.estimation_result import estimated

            return estimated((source, target), contenders, self.methods, by, self.seed)

        notes = []
        if source.name == target.name:
            notes.append(
                "the source is the set whose accuracy is estimated: the errors are too small"
            )
        if FeaturePlan.of(source.plan).source.split == "train":
            notes.append(
                "the source is made of training images, on which f is more accurate and more "
                "confident than on new ones"
            )
        return ArtifactJob(
            store,
            store.artifact("result", name),
            plan,
            title=f"estimate accuracy of {target.plan['name']}",
            preview=Preview(f"estimate accuracies: {name}", {"result": name}, notes),
            compute=compute,
            check=lambda: self._check(store, source, target, contenders),
        )

    def plan(self, source: FeatureSet, target: FeatureSet, contenders: Sequence[Contender]) -> Plan:
        """Everything that determines the result."""
        params = self.model_dump(mode="json", include={"methods", "by", "seed"})
        return {
            "stage": {"name": self.verb, "version": VERSION, "params": params},
            "inputs": {
                "features": [source.plan, target.plan],
                "heads": planned_heads(contenders),
            },
        }

    def _check(
        self,
        store: FeatureStore,
        source: FeatureSet,
        target: FeatureSet,
        contenders: Sequence[Contender],
    ) -> None:
        """Raise ``InputError`` if sets and heads do not fit; ``FailedRowsError``."""
        check_contenders(contenders)
        check_alike(source, target)
        for each in contenders:
            check_preparation(store, target, each.head)
        check_labelled(source.require_usable(), "estimate-accuracy")
        target.require_usable()
