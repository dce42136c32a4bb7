"""The stage fit-laplace: a Gaussian over the weights of f's last layer, from stored features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from pipeline.make import ArtifactJob
from pipeline.progress import Progress
from pipeline.stage import Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName, OutputName
from stages.errors import InputError
from stages.introspection.heads import (
    Fit,
    TrainingFeatures,
    factors_in_memory,
    fit_job,
    labels_of,
    model_name,
)
from stages.introspection.preparation import check_same_network
from stages.reflection.feature_plan import FeaturePlan
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan

if TYPE_CHECKING:
    from stages.introspection.laplace import Block, Full, Kronecker


class FitLaplace(Stage):
    """Fit a Laplace approximation of f's last layer (Daxberger et al., 2021).

    It turns the last layer into a Gaussian over its weights, so that a prediction is less confident
    for features that the training rows did not determine. The result is a head like a temperature.
    """

    verb = "fit-laplace"
    makes = "head"
    examples = (
        "fit-laplace --features cifar10-train@resnet18",
        "fit-laplace --features cifar10-train@resnet18 --structure kfac "
        "--validation cifar10-val@resnet18",
    )

    features: TrainingFeatures
    structure: Literal["full", "kfac"] = Field(
        "full",
        description="Structure of the precision of the weights. full: all pairs of weights, for at "
        "most 6,000 weights. kfac: a Kronecker product of classes and features, for any number.",
    )
    prior: Annotated[FiniteFloat, Field(gt=0)] | None = Field(
        None,
        description="Precision of the Gaussian prior of the weights. (default: the one with the "
        "largest marginal likelihood of the training rows)",
    )
    validation: FeatureSetName | None = Field(
        None,
        description="Labelled features that f was not trained on: choose the prior with the "
        "smallest negative log-likelihood of these rows.",
    )
    name: OutputName | None = Field(
        None, description="Name of the head. (default: MODEL-laplace-STRUCTURE)"
    )

    @model_validator(mode="after")
    def _has_one_prior(self) -> Self:
        if self.prior is not None and self.validation is not None:
            raise ValueError("--prior is given, so --validation has no use: omit one of them")
        return self

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The fit.

        Raises:
            InputError: no labelled rows, another network, or too many weights for ``full``.
            NotFoundError: the model, whose weights the marginal likelihood needs, was deleted.
        """
        store = workspace.store
        feature_set = store.open(self.features)
        validation = None if self.validation is None else store.open(self.validation)
        plan, model = self.plan(feature_set, validation), model_name(feature_set)
        plain = f"{model}-laplace-{self.structure}"
        name = workspace.output_name("head", self.name, plain, plain, plan)
        if validation is not None:
            check_same_network(feature_set, validation, "--validation")
        return fit_job(
            store, name, plan, feature_set, lambda: self._fit(store, feature_set, validation)
        )

    def plan(self, feature_set: FeatureSet, validation: FeatureSet | None) -> Plan:
        """Everything that determines the posterior."""
        names = [each.name for each in (feature_set, validation) if each is not None]
        params = {"structure": self.structure, "prior": self.prior}
        return {
            "stage": {"name": self.verb, "version": 1, "params": params},
            "inputs": {"features": names if validation is not None else feature_set.name},
        }

    def _fit(
        self, store: FeatureStore, feature_set: FeatureSet, validation: FeatureSet | None
    ) -> Fit:
        from stages.introspection.laplace import CURVATURES, POSTERIOR_KEY, posterior_bytes
        from stages.sensing.stored_layer import stored_layer

        model = FeaturePlan.of(feature_set.plan).model
        layer = stored_layer(store, model.name, model.weights_sha256)
        sums = _Sums()
        with Progress(f"fit {self.structure}", feature_set.n_rows, unit="rows") as progress:
            blocks = sums.blocks(feature_set.require_usable(), progress)
            curvature = CURVATURES[self.structure].of(blocks, has_bias=layer.bias is not None)
        squared = float((layer.weight**2).sum())
        squared += 0.0 if layer.bias is None else float((layer.bias**2).sum())
        prior, prior_from, facts = self._prior(curvature, sums, squared, validation)
        facts |= {
            "predictor": "laplace",
            "reads": "features",
            "structure": self.structure,
            "prior": prior,
            "prior_from": prior_from,
            "has_bias": layer.bias is not None,
            "n_parameters": len(curvature.eigenvalues),
        }
        return Fit(sums.n_rows, facts, {POSTERIOR_KEY: posterior_bytes(curvature.posterior(prior))})

    def _prior(
        self,
        curvature: Full | Kronecker,
        sums: _Sums,
        squared_norm: float,
        validation: FeatureSet | None,
    ) -> tuple[float, str, dict[str, Any]]:  # Any: JSON
        """The precision, how it was chosen, and facts of the card."""
        from stages.introspection.prior_precision import best_prior, log_marginal_likelihood

        def evidence(prior: float) -> float:
            return log_marginal_likelihood(
                curvature.eigenvalues, squared_norm, sums.log_likelihood, prior
            )

        if self.prior is not None:
            return self.prior, "given", {"evidence": evidence(self.prior)}
        if validation is None:
            found = best_prior(lambda prior: -evidence(prior))
            return found, "evidence", {"evidence": evidence(found)}
        nll = _validation_loss(curvature, validation)
        found = best_prior(nll)
        facts = {"evidence": evidence(found), "validation_nll": nll(found)}
        return found, "validation", facts


class _Sums:
    """The blocks of a training set, and what is summed while they are read."""

    def __init__(self) -> None:
        self.n_rows, self.log_likelihood = 0, 0.0

    def blocks(self, feature_set: FeatureSet, progress: Progress) -> Iterator[Block]:
        """Features and logits of the labelled rows without NaN, shard by shard."""
        import numpy as np

        from stages.introspection.prior_precision import log_likelihood_of
        from stages.introspection.reading import usable_rows

        for shard in feature_set.shard_set.shards:
            features = feature_set.read_chunk("features", shard)
            logits = feature_set.read_chunk("logits", shard)
            labels = np.asarray(feature_set.read_samples(shard, ("label",))["label"], np.int64)
            kept = usable_rows(labels, features, logits)
            self.n_rows += int(kept.sum())
            self.log_likelihood += log_likelihood_of(logits[kept], labels[kept])
            if kept.any():
                yield features[kept], logits[kept]
            progress.advance(shard.n_rows)


def _validation_loss(curvature: Full | Kronecker, validation: FeatureSet) -> Any:
    """Prior -> mean negative log-likelihood of the labelled rows under the probit approximation."""
    from stages.introspection.prior_precision import probit_nll
    from stages.introspection.reading import usable_rows

    labels = labels_of(validation.require_usable())
    features, logits = factors_in_memory(validation, "laplace")
    kept = usable_rows(labels, features, logits)
    if not kept.any():
        raise InputError(
            f"--validation {validation.name}: expected labelled rows without NaN, found none; use "
            "a split that has labels"
        )
    features, logits, labels = features[kept], logits[kept], labels[kept]
    return lambda prior: probit_nll(curvature.posterior(prior), features, logits, labels)
