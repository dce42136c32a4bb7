"""The stage detect-failures: which confidence finds the errors of f and of heads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, model_validator

from pipeline.artifact_jobs import ArtifactJobs
from pipeline.fields import OneOf, Written
from pipeline.make import ArtifactJob, Output
from pipeline.progress import Progress
from pipeline.stage import Preview, Several, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName, Resamples
from stages.errors import InputError
from stages.introspection.contenders import Contender, contenders_of, planned_heads
from stages.introspection.heads import Heads
from stages.introspection.preparation import check_same_network
from stages.judging.judged_sets import Also, check_judged, jobs_of
from stages.scores.known_scores import BASELINE, SCORES
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

VERSION = 1
CONFIDENCES = tuple(
    name for name, kind in SCORES.items() if not kind.is_perturbed and name != "confidence"
)
"""Scores that may be confidences; `confidence` itself orders rows as `msp` does."""

DEFAULT = (
    *(BASELINE, "margin", "entropy", "energy", "max-logit", "gradnorm", "exgrad", "gradtrust"),
)
FITTED = tuple(name for name in CONFIDENCES if SCORES[name].fit is not None)


class DetectFailures(Stage):
    """Detect the errors of f and of heads by their confidence, with risk-coverage curves.

    A classifier that rejects its least confident rows has a lower risk on the others. All
    confidences follow from stored features; no image goes through a network.
    """

    verb = "detect-failures"
    makes = "result"
    examples = (
        "detect-failures --features cifar10-test@resnet18 --also cifar10c@resnet18",
        "detect-failures --features cifar10-test@resnet18 --confidence msp,exgrad,knn "
        "--training cifar10-train@resnet18",
    )

    features: Annotated[FeatureSetName, Field(description="Feature set of the store.")]
    also: Also = ()
    heads: Heads = None
    confidences: Annotated[
        Several[Annotated[str, OneOf(CONFIDENCES)]],
        Field(min_length=1),
        Written("--confidence", "LIST"),
    ] = Field(
        DEFAULT,
        description=f"Confidences, separated by commas: {', '.join(CONFIDENCES)}. "
        f"{', '.join(FITTED)} also need --training.",
    )
    training: FeatureSetName | None = Field(
        None, description="Features of the training images, for confidences that are fitted."
    )
    resamples: Resamples = 200
    seed: NonNegativeInt = Field(0, description="Seed of the bootstrap.")

    @model_validator(mode="after")
    def _has_its_rows(self) -> Self:
        fitted = [name for name in self.confidences if SCORES[name].fit is not None]
        if fitted and self.training is None:
            raise ValueError(
                f"--confidence {fitted[0]}: expected --training, features that it is fitted to"
            )
        if not fitted and self.training is not None:
            raise ValueError(
                f"--training: none of the confidences is fitted; add one of {', '.join(FITTED)}"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The confidences, `BASELINE` first."""
        return tuple(dict.fromkeys((BASELINE, *self.confidences)))

    def job(self, workspace: Workspace) -> ArtifactJob | ArtifactJobs:
        """The comparison on each feature set.

        Raises:
            InputError: labels clash, a head does not fit or has no logits, or no row has a label.
        """
        return jobs_of((self.features, *self.also), partial(self._job_on, workspace.store))

    def _job_on(self, store: FeatureStore, name: str) -> ArtifactJob:
        feature_set = store.open(name).require_complete()
        training = None if self.training is None else store.open(self.training)
        contenders = contenders_of(store, feature_set, self.heads)
        plan, title = self.plan(feature_set, contenders, training), feature_set.plan["name"]
        result = store.artifact("result", f"{title}-failures-{fingerprint(plan)}")

        def compute() -> Output:
            from stages.failures.failure_result import failures_found
            from stages.metrics.bootstrap import Resampling

            resampling = Resampling(self.resamples, self.seed)
            with Progress(f"failures of {title}", feature_set.n_rows, unit="rows") as progress:
                return failures_found(
                    store,
                    feature_set,
                    contenders,
                    self.names,
                    training,
                    resampling,
                    progress.advance,
                )

        what = f"rank the errors on {feature_set.name} by {', '.join(self.names)}: {result.name}"
        return ArtifactJob(
            store,
            result,
            plan,
            title=f"failures of {title}",
            preview=Preview(what, {"result": result.name}),
            compute=compute,
            check=lambda: self._check(store, feature_set, contenders, training),
        )

    def plan(
        self,
        feature_set: FeatureSet,
        contenders: Sequence[Contender],
        training: FeatureSet | None,
    ) -> Plan:
        """Everything that determines the result; the seed counts only with resamples."""
        bootstrap = {"n_resamples": self.resamples, "seed": self.seed if self.resamples else 0}
        sets = [each.plan for each in (feature_set, training) if each is not None]
        return {
            "stage": {
                "name": self.verb,
                "version": VERSION,
                "params": {"confidences": list(self.names), "bootstrap": bootstrap},
            },
            "inputs": {"features": sets, "heads": planned_heads(contenders)},
        }

    def _check(
        self,
        store: FeatureStore,
        feature_set: FeatureSet,
        contenders: Sequence[Contender],
        training: FeatureSet | None,
    ) -> None:
        from stages.scores.predictor import check_scores

        check_judged(store, feature_set, contenders, "failures")
        if taken := [each.label for each in contenders if each.label in self.names]:
            raise InputError(
                f"failures: '{taken[0]}' is a confidence and the label of a head: name the head as "
                "LABEL=NAME"
            )
        for each in contenders:
            check_scores(each.head, self.names)
        if training is not None:
            check_same_network(feature_set, training.require_usable(), "--training")
