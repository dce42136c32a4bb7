"""Steps that make networks: train-sensing, and snapshot, a network on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import count

from pipeline.journal import Journal
from pipeline.loop import n_units_done
from pipeline.recipe_run import Task
from stages.errors import InputError
from stages.recipes.context import Context, Inputs
from stages.recipes.params import SnapshotParams, TrainSensingParams
from stages.recipes.tasks import task_of
from stages.sensing.build import build_network, located
from stages.sensing.models import (
    model_name,
    train_model,
    training_plan,
    training_sources,
)
from stages.sensing.recipe import TrainParams, params_from
from stages.sensing.snapshots import snapshot_epochs, snapshot_name, snapshot_plan
from stages.sensing.trust import require_trust
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import Plan, fingerprint


def training_task(context: Context, params: TrainSensingParams, _: Inputs) -> Task:
    """Train a network, or go on with it."""
    recipe = _train_params(params)
    train, test = training_sources(
        params.dataset, context.data_root, params.image_size, params.limit
    )
    plan = training_plan(recipe, context.hashed(train), params.last_layer)
    artifact = _model_of(context.store, recipe, plan, params.keep_every)

    def run(journal: Journal) -> None:
        train_model(
            context.store,
            artifact.name,
            recipe,
            train=train,
            test=test,
            device=context.device,
            last_layer=params.last_layer,
            journal=journal,
            keep_every=params.keep_every,
        )

    return task_of(artifact, plan, run, n_epochs=recipe.epochs)


def _train_params(params: TrainSensingParams) -> TrainParams:
    names = {each.name for each in dataclasses.fields(TrainParams)}
    changes = {name: value for name, value in params if name in names}
    recipe = params_from(params.preset, **changes)
    require_trust(recipe.network, "the recipe")
    return dataclasses.replace(recipe, network=located(recipe.network))


def _model_of(
    store: FeatureStore, recipe: TrainParams, plan: Plan, keep_every: int | None
) -> Artifact:
    """The model of that plan, or where it is to be made.

    With ``keep_every`` it must have its snapshots so far: they are made on the way only. Where
    some are lost, the next free name is that of the model to be trained again.
    """
    name = f"{model_name(recipe.network)}-{fingerprint(plan)[:8]}"
    if keep_every is None:
        return next(iter(store.made_by("model", plan)), store.artifact("model", name))
    epochs = snapshot_epochs(recipe.epochs, keep_every)
    possible = (store.artifact("model", each) for each in _names(f"{name}-every-{keep_every}"))
    mine = next(model for model in possible if not _has_lost(store, model, epochs))
    finished = (model for model in store.made_by("model", plan) if model.is_complete())
    fitting = (model for model in finished if not _has_lost(store, model, epochs))
    return mine if mine.is_complete() else next(fitting, mine)


def _names(name: str) -> Iterator[str]:
    """The name, then those for the same again."""
    yield name
    yield from (f"{name}-again-{number}" for number in count(1))


def _has_lost(store: FeatureStore, model: Artifact, epochs: range) -> bool:
    """Whether a training is past one of these epochs, and has no snapshot of it."""
    # Its last checkpoint still holds that epoch; a finished training has no checkpoint.
    n_gone = epochs.stop if model.is_complete() else n_units_done(model) - 1
    gone = (store.artifact("model", snapshot_name(model.name, n)) for n in epochs if n <= n_gone)
    return not all(snapshot.is_complete() for snapshot in gone)


def check_training(context: Context, params: TrainSensingParams, _: Inputs) -> None:
    """Raise ``InputError`` where the data set or the network is not there."""
    recipe = _train_params(params)
    train = training_sources(params.dataset, context.data_root, params.image_size, params.limit)[0]
    build_network(recipe.network, train.open().n_classes or None)


def snapshot_task(context: Context, params: SnapshotParams, inputs: Inputs) -> Task:
    """The network as it was after an epoch, which its training has kept."""
    model: Artifact = inputs["model"]
    artifact = context.store.artifact("model", snapshot_name(model.name, params.epoch))
    plan = snapshot_plan(model.plan(), params.epoch)

    def run(_: Journal) -> None:
        raise InputError(f"model '{model.name}' has kept no epoch {params.epoch}")

    return task_of(artifact, plan, run)


def check_snapshot(_: Context, params: SnapshotParams, needs: Inputs) -> None:
    """Raise ``InputError`` where the training does not keep that epoch."""
    training: TrainSensingParams = needs["model"]
    n_epochs = _train_params(training).epochs
    kept = snapshot_epochs(n_epochs, training.keep_every) if training.keep_every else ()
    if params.epoch not in kept:
        raise InputError(
            f"epoch {params.epoch} is not kept: the training has {n_epochs} epochs and keep_every "
            f"{training.keep_every or 'is not given'}, which keeps 1, 1 + keep_every and so on"
        )
