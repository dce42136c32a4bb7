"""The stage fit-neighbours: the k nearest rows of a training set vote."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat, PositiveInt

from pipeline.make import ArtifactJob
from pipeline.stage import Stage
from pipeline.workspace import Workspace
from stages.data.option_types import OutputName
from stages.introspection.head_card import Votes
from stages.introspection.heads import (
    VARIANT,
    Fit,
    Loss,
    TrainingFeatures,
    fit_job,
    model_name,
)
from stages.introspection.reading import Reading, Reads
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.losses import DEFAULT_LOSS, Variant
from stages.reflection.rank_one import Scaling
from store.featureset import FeatureSet
from store.plan import Plan


class FitNeighbours(Stage):
    """Fit a k-nearest-neighbour classifier by Euclidean distance or by cosine similarity.

    The probability of a class is its share of the votes. Nothing is copied: predictions read the
    training features from the store.
    """

    verb = "fit-neighbours"
    makes = "head"
    examples = (
        "fit-neighbours --features cifar10-train@resnet18 --reads reflection",
        "fit-neighbours --features cifar10-train@simclr --k 200 --temperature 0.5",
    )

    features: TrainingFeatures
    name: OutputName | None = Field(
        None, description="Name of the classifier. (default: MODEL-10nn-features)"
    )
    k: PositiveInt = Field(10, description="Number of neighbours that vote.")
    temperature: Annotated[FiniteFloat, Field(gt=0)] | None = Field(
        None,
        description="Temperature T of weighted votes: neighbours have the largest cosine "
        "similarity, and votes the weight exp(cosine / T). (default: Euclidean distance, equal "
        "votes)",
    )
    reads: Reads = Field(
        "features", description="Vectors to compare: features, reflection or features+logits."
    )
    loss: Loss = DEFAULT_LOSS
    variant: Variant = Field("single-pass", description=VARIANT)
    scaling: Scaling | None = Field(
        None,
        description="Scaling of each row: minmax, maxabs or none. (default: minmax for the "
        "reflection, else none)",
    )

    def reading(self, feature_set: FeatureSet) -> Reading:
        """The vectors that are compared."""
        model = FeaturePlan.of(feature_set.plan).model
        return Reading(
            n_classes=model.n_classes,
            feature_dim=model.feature_dim,
            reads=self.reads,
            loss=self.loss,
            variant=self.variant,
            scaling=self.scaling or ("minmax" if self.reads == "reflection" else "none"),
        )

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The fit; the card names the feature set.

        Raises:
            InputError: fewer than k labelled rows, or options that do not go together.
        """
        store = workspace.store
        feature_set = store.open(self.features)
        plan, model = self.plan(feature_set), model_name(feature_set)
        plain = f"{model}-{self.k}nn-{self.reads}" + "-weighted" * (self.temperature is not None)
        name = workspace.output_name("head", self.name, plain, f"{model}-neighbours", plan)

        def fit() -> Fit:
            from stages.introspection.predictors import neighbours_in

            votes = Votes(self.k, self.reading(feature_set), self.temperature)
            found = neighbours_in(feature_set.require_usable(), votes, "cpu")
            spec = {"k": self.k, **found.reading.to_dict()}
            facts = {"predictor": "neighbours", "reads": self.reads, "spec": spec}
            return Fit(len(found), {**facts, **self._weighting()})

        return fit_job(store, name, plan, feature_set, fit)

    def plan(self, feature_set: FeatureSet) -> Plan:
        """Everything that determines the votes; the name of the feature set has its hash."""
        reading = self.reading(feature_set).to_dict()
        params = {"k": self.k, "reading": reading, **self._weighting()}
        return {
            "stage": {"name": self.verb, "version": 1, "params": params},
            "inputs": {"features": feature_set.name},
        }

    def _weighting(self) -> dict[str, float]:
        """The temperature, if votes are weighted."""
        return {} if self.temperature is None else {"temperature": self.temperature}
