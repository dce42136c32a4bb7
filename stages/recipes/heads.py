"""Steps that make heads: train-head, fit-temperature, fit-neighbours."""

from __future__ import annotations

from typing import Any

from pipeline.journal import Journal
from pipeline.recipe_run import Task
from stages.introspection.heads import (
    fit_neighbours,
    fit_temperature,
    head_plan,
    head_spec,
    neighbours_plan,
    neighbours_reading,
    temperature_plan,
    train_head,
)
from stages.introspection.recipe import HeadParams
from stages.recipes.context import Context, Inputs
from stages.recipes.params import FitNeighboursParams, FitTemperatureParams, TrainHeadParams
from stages.recipes.tasks import task_of
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

READ_BY = {"reflection": "H", "features": "f", "features+logits": "fz"}
"""What a head is called that reads this."""


def head_task(context: Context, params: TrainHeadParams, inputs: Inputs) -> Task:
    """Train a head on the features."""
    features: FeatureSet = inputs["features"]
    spec = head_spec(
        features,
        layers=params.layers,
        reads=params.reads,
        loss=params.loss,
        variant=params.variant,
        scaling=params.scaling,
        dropout=params.dropout,
        rank=params.rank,
    )
    training = HeadParams(
        epochs=params.epochs,
        batch_rows=params.batch,
        learning_rate=params.lr,
        weight_decay=params.weight_decay,
        seeds=params.seeds,
        precision=params.precision,
    )
    plan = head_plan(features, spec, training, rows=params.rows)
    artifact = _head_of(context.store, features, READ_BY[params.reads], plan)

    def run(journal: Journal) -> None:
        train_head(
            context.store,
            features,
            artifact.name,
            spec,
            training,
            rows=params.rows,
            device=context.device,
            journal=journal,
        )

    return task_of(artifact, plan, run, n_epochs=params.epochs)


def temperature_task(context: Context, _: FitTemperatureParams, inputs: Inputs) -> Task:
    """Fit the temperature of f on the features."""
    features: FeatureSet = inputs["features"]
    plan = temperature_plan(features)
    artifact = _head_of(context.store, features, "temperature", plan)

    def run(journal: Journal) -> None:
        fit_temperature(context.store, features, artifact.name, journal=journal)

    return task_of(artifact, plan, run)


def neighbours_task(context: Context, params: FitNeighboursParams, inputs: Inputs) -> Task:
    """Let the nearest rows of the features vote."""
    features: FeatureSet = inputs["features"]
    read: dict[str, Any] = {  # Any: keyword arguments
        "reads": params.reads,
        "loss": params.loss,
        "variant": params.variant,
        "scaling": params.scaling,
    }
    plan = neighbours_plan(features, neighbours_reading(features, **read), k=params.k)
    artifact = _head_of(context.store, features, "neighbours", plan)

    def run(journal: Journal) -> None:
        fit_neighbours(context.store, features, artifact.name, k=params.k, **read, journal=journal)

    return task_of(artifact, plan, run)


def _head_of(store: FeatureStore, features: FeatureSet, what: str, plan: Plan) -> Artifact:
    """The head of that plan, or where it is to be made: ``resnet18-3f2a9c1e-H-81d0b2aa``."""
    model = features.plan["inputs"]["model"]["name"]
    mine = store.artifact("head", f"{model}-{what}-{fingerprint(plan)[:8]}")
    return mine if mine.is_complete() else next(iter(store.made_by("head", plan)), mine)
