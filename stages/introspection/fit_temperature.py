"""The stage fit-temperature: temperatures of f or of a head, fitted on features new to it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from pipeline.fields import Ref, Written
from pipeline.make import ArtifactJob
from pipeline.stage import Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName, OutputName
from stages.introspection import temperature
from stages.introspection.contenders import checksums_of
from stages.introspection.heads import Fit, fit_job, labels_of, model_name
from stages.introspection.preparation import check_model, check_preparation
from stages.reflection.feature_plan import FeaturePlan
from store.artifacts import Artifact
from store.featureset import FeatureSet
from store.plan import Plan


class FitTemperature(Stage):
    """Fit the temperature that divides the logits of f, or of a head (Guo et al., 2017).

    It minimises the negative log-likelihood of the labels. A head has a temperature for each seed.
    """

    verb = "fit-temperature"
    makes = "head"
    examples = (
        "fit-temperature --features cifar10-test@resnet18",
        "fit-temperature --features cifar10-test@resnet18 --head resnet18-h",
    )

    features: Annotated[
        FeatureSetName,
        Field(description="Labelled features that neither f nor the head was trained on."),
    ]
    head: Annotated[str, Ref(("head",)), Written(metavar="HEAD")] | None = Field(
        None,
        description="Trained head whose logits are divided. The result is a head that predicts the "
        "same classes with other confidences. (default: f)",
    )
    name: OutputName | None = Field(
        None,
        description="Name of the result. (default: MODEL-temperature, or HEAD-tempered)",
    )

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The fit.

        Raises:
            InputError: no labels, or a likelihood without a maximum; or the head is of another
                network, not a trained one, or has a temperature already.
        """
        store = workspace.store
        feature_set = store.open(self.features)
        head = None if self.head is None else store.artifact("head", self.head)
        if head is not None:
            check_model(feature_set, head)
        plain = f"{head.name}-tempered" if head else f"{model_name(feature_set)}-temperature"
        plan = self.plan(feature_set, head)
        name = workspace.output_name("head", self.name, plain, plain, plan)

        def fit() -> Fit:
            feature_set.require_usable()
            if head is None:
                return _fit_to_f(feature_set)
            from stages.introspection.tempered_head import fit_tempered_head

            check_preparation(store, feature_set, head, reads_further=True)
            return fit_tempered_head(head, feature_set)

        return fit_job(store, name, plan, feature_set, fit)

    def plan(self, feature_set: FeatureSet, head: Artifact | None = None) -> Plan:
        """Everything that determines the temperatures."""
        inputs: dict[str, Any] = {"features": feature_set.name}
        if head is not None:
            inputs["head"] = {"plan": head.plan(), "files": checksums_of(head)}
        return {"stage": {"name": self.verb, "version": 1}, "inputs": inputs}


def _fit_to_f(feature_set: FeatureSet) -> Fit:
    found = temperature.fit(feature_set.read("logits"), labels_of(feature_set))
    facts = {
        "predictor": "temperature",
        "reads": "logits",
        "split": FeaturePlan.of(feature_set.plan).source.split,
        "temperature": found.value,
        "nll_before": found.nll_before,
        "nll_after": found.nll_after,
    }
    return Fit(found.n_rows, facts)
