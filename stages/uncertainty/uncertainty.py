"""The stage uncertainty: likelihood, calibration, entropy and mutual information of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from pipeline.artifact_jobs import ArtifactJobs
from pipeline.fields import LabelledList, Written
from pipeline.make import ArtifactJob, Output
from pipeline.progress import Progress
from pipeline.stage import Preview, Several, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName, Resamples
from stages.errors import InputError
from stages.introspection.contenders import Contender, contenders_of, planned_heads
from stages.introspection.heads import Heads
from stages.judging.judged_sets import Also, check_judged, jobs_of
from stages.metrics.definitions import REFERENCE
from stages.metrics.sums import N_BINS
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

if TYPE_CHECKING:
    from stages.uncertainty.judges import Sampling

VERSION = 1


class Uncertainty(Stage):
    """Measure the predictive uncertainty of f, heads, Laplace, MC dropout and ensembles.

    Likelihood, Brier scores, calibration error, entropy and mutual information by (corruption,
    severity), averaged, and compared on the same images. No image goes through a network.
    """

    verb = "uncertainty"
    makes = "result"
    examples = (
        "uncertainty --features cifar10c@resnet18 --head L=resnet18-laplace-full",
        "uncertainty --features cifar10-test@resnet18 --also cifar10c@resnet18 --dropout 0.1",
        "uncertainty --features cifar10-test@resnet18 --ensemble deep=f+resnet18-b",
    )

    features: Annotated[FeatureSetName, Field(description="Feature set of the store.")]
    also: Also = ()
    heads: Heads = None
    dropout: Several[Annotated[FiniteFloat, Field(gt=0, lt=1)]] = Field(
        (),
        description="Rates of MC dropout in front of f's last layer, separated by commas, such as "
        "0.1,0.2.",
    )
    ensembles: Annotated[
        LabelledList,
        Written("--ensemble", "[LABEL=]NAME+NAME", is_repeated=True),
    ] = Field(
        (),
        description="Mean of the predictions of several members; may be repeated. A NAME is f, the "
        "label of a head (all its seeds), or another model with features of the same images.",
    )
    samples: PositiveInt = Field(
        100, description="Samples per row of Laplace approximations and of dropout."
    )
    predictive: Literal["probit", "mc"] = Field(
        "probit",
        description="Probabilities of Laplace approximations. probit: scaled logits, as in other "
        "commands. mc: the mean over the samples.",
    )
    resamples: Resamples = 1000
    seed: NonNegativeInt = Field(0, description="Seed of the samples and the bootstrap.")

    @model_validator(mode="after")
    def _has_each_once(self) -> Self:
        labels = [each.label for each in self.ensembles]
        if len(set(labels)) < len(labels) or len(set(self.dropout)) < len(self.dropout):
            raise ValueError("uncertainty: expected each ensemble and each dropout rate once")
        return self

    def job(self, workspace: Workspace) -> ArtifactJob | ArtifactJobs:
        """The comparison on each feature set.

        Raises:
            InputError: labels clash, a head or an ensemble does not fit, or no row has a label.
            DataNotFoundError: a member of an ensemble does not exist.
        """
        return jobs_of((self.features, *self.also), partial(self._job_on, workspace.store))

    def _job_on(self, store: FeatureStore, name: str) -> ArtifactJob:
        from stages.uncertainty.judges import networks_in

        feature_set = store.open(name).require_complete()
        contenders = contenders_of(store, feature_set, self.heads)
        sampling = self._sampling()
        others = networks_in(store, feature_set, contenders, sampling)
        plan, title = self.plan(feature_set, contenders, others), feature_set.plan["name"]
        result = store.artifact("result", f"{title}-uncertainty-{fingerprint(plan)}")

        def compute() -> Output:
            return self._computed(store, feature_set, contenders, sampling)

        labels = ", ".join([REFERENCE, *(each.label for each in contenders), *sampling.labels])
        return ArtifactJob(
            store,
            result,
            plan,
            title=f"uncertainty of {title}",
            preview=Preview(
                f"compare the uncertainty of {labels} on {feature_set.name}: {result.name}",
                {"result": result.name},
            ),
            compute=compute,
            check=lambda: self._check(store, feature_set, contenders, sampling),
        )

    def plan(
        self,
        feature_set: FeatureSet,
        contenders: Sequence[Contender],
        others: Sequence[FeatureSet],
    ) -> Plan:
        """Everything that determines the result.

        ``others`` are the feature sets of other networks that ensembles read.
        """
        params = {
            "n_bins": N_BINS,
            "dropout": list(self.dropout),
            "ensembles": {each.label: each.name for each in self.ensembles},
            "samples": self.samples,
            "predictive": self.predictive,
            "seed": self.seed,
            "n_resamples": self.resamples,
        }
        return {
            "stage": {"name": self.verb, "version": VERSION, "params": params},
            "inputs": {
                "features": [each.plan for each in (feature_set, *others)],
                "heads": planned_heads(contenders),
            },
        }

    def _sampling(self) -> Sampling:
        from stages.uncertainty.judges import SEPARATOR, Sampling

        ensembles = {each.label: tuple(each.name.split(SEPARATOR)) for each in self.ensembles}
        return Sampling(self.dropout, ensembles, self.samples, self.predictive, self.seed)

    def _check(
        self,
        store: FeatureStore,
        feature_set: FeatureSet,
        contenders: Sequence[Contender],
        sampling: Sampling,
    ) -> None:
        """Raise ``InputError`` if labels clash, heads do not fit, or no row has a label."""
        check_judged(store, feature_set, contenders, "uncertainty", reads_further=True)
        labels = [REFERENCE, *(each.label for each in contenders), *sampling.labels]
        if clashing := [label for label in sampling.labels if labels.count(label) > 1]:
            raise InputError(
                f"uncertainty: '{clashing[0]}' is the label of two contenders: name ensembles as "
                "LABEL=NAME+NAME"
            )

    def _computed(
        self,
        store: FeatureStore,
        feature_set: FeatureSet,
        contenders: Sequence[Contender],
        sampling: Sampling,
    ) -> Output:
        """The tables and the card."""
        import time
        from dataclasses import replace

        from stages.judging.judged_result import card_of, files_of
        from stages.judging.judgement import judged
        from stages.metrics.bootstrap import Resampling
        from stages.metrics.definitions import DEFINITIONS, INFORMATION
        from stages.reflection.groups import cell_columns
        from stages.uncertainty.judges import judges_of, told_of

        started, cells = time.monotonic(), cell_columns(feature_set)
        judges = judges_of(store, feature_set, contenders, sampling)
        resampling, title = Resampling(self.resamples, self.seed), feature_set.plan["name"]
        with Progress(f"uncertainty of {title}", feature_set.n_rows, unit="rows") as progress:
            found = judged(feature_set, judges, resampling, cells, tick=progress.advance)
        card = card_of(feature_set, contenders, judges, resampling, cells, found)
        facts: dict[str, Any] = replace(
            card,
            definitions={**DEFINITIONS, **INFORMATION},
            statistics={**card.statistics, **told_of(contenders, sampling)},
            seconds=round(time.monotonic() - started, 1),
        ).to_dict()
        return files_of(found), facts
