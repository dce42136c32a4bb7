"""The stage fit-temperature: the temperature of f, fitted on features it was not trained on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.make import ArtifactJob
from pipeline.stage import Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName, OutputName
from stages.introspection import temperature
from stages.introspection.heads import Fit, fit_job, labels_of, model_name
from stages.reflection.feature_plan import FeaturePlan
from store.featureset import FeatureSet
from store.plan import Plan


class FitTemperature(Stage):
    """Fit the temperature that divides f's logits for calibration (Guo et al., 2017).

    It minimises the negative log-likelihood of the labels.
    """

    verb = "fit-temperature"
    makes = "head"
    examples = ("fit-temperature --features cifar10-test@resnet18",)

    features: Annotated[
        FeatureSetName, Field(description="Labelled features that f was not trained on.")
    ]
    name: OutputName | None = Field(
        None, description="Name of the fitted temperature. (default: MODEL-temperature)"
    )

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The fit. Raises ``InputError`` for no labels, or no best temperature."""
        store = workspace.store
        feature_set = store.open(self.features)
        plan, plain = self.plan(feature_set), f"{model_name(feature_set)}-temperature"
        name = workspace.output_name("head", self.name, plain, plain, plan)

        def fit() -> Fit:
            labels = labels_of(feature_set.require_usable())
            found = temperature.fit(feature_set.read("logits"), labels)
            facts = {
                "predictor": "temperature",
                "reads": "logits",
                "split": FeaturePlan.of(feature_set.plan).source.split,
                "temperature": found.value,
                "nll_before": found.nll_before,
                "nll_after": found.nll_after,
            }
            return Fit(found.n_rows, facts)

        return fit_job(store, name, plan, feature_set, fit)

    def plan(self, feature_set: FeatureSet) -> Plan:
        """Everything that determines the temperature."""
        return {
            "stage": {"name": self.verb, "version": 1},
            "inputs": {"features": feature_set.name},
        }
