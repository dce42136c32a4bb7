"""The job of the stage explain: open the inputs, choose rows and the layer, and plan the maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pipeline.errors import ResourceError
from pipeline.executors import Executor
from pipeline.make import ShardJob
from pipeline.progress import Progress
from pipeline.space import check_space
from pipeline.stage import Preview
from pipeline.terminal import counted, size
from pipeline.workspace import Workspace
from stages.data.planned_images import images_of_features
from stages.errors import InputError
from stages.explanation.layer_choice import chosen_layer, is_pooled
from stages.explanation.map_extraction import Explanation, check_questions
from stages.explanation.questions import LABEL, PREDICTION, Method, class_of, questions_of
from stages.explanation.stored_maps import names_of_outputs
from stages.explanation.target_layer import TargetLayer
from stages.introspection.contenders import Contender, choose_head, planned_heads
from stages.introspection.predictors import predictors
from stages.introspection.preparation import check_preparation
from stages.reflection.conditions import Condition, conditions
from stages.reflection.feature_plan import FeaturePlan, planned_model
from stages.reflection.footprint import footprint
from stages.scores.chosen_rows import Choice, ChosenRows, chosen_rows
from stages.sensing.card import ModelCard
from stages.sensing.model import Sensing, load_sensing, pixels_of
from stages.sensing.models import require_trusted_code, weights_path
from stages.sensing.probe import evaluating, noise_images
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint
from store.schema import Schema
from store.shardset import ShardSet

MAPS = "maps"
"""Kind of the sets, and their folder in the store."""

MAX_SHARD_ROWS, MAX_SHARD_BYTES = 1024, 64 * 2**20
"""Limits of the default size of a shard."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to explain, as the options of the stage `explain` say.

    Attributes:
        features: name of the feature set.
        methods: the maps, with the words of ``contrasts`` for Q.
        contrasts: see `questions.questions_of`.
        of_class: the explained class as a word.
        layer: name of a layer; None for the default.
        head: name of a head; None for none, or the only one if f and H must disagree.
        where: conditions as text.
        choice: which rows, but for ``where``.
        dataset: name or path of the images, if not those of the plan's name.
        batch_size, shard_rows, name: None for the defaults.
    """

    features: str
    methods: tuple[Method, ...]
    contrasts: tuple[str, ...]
    of_class: str
    layer: str | None
    head: str | None
    where: tuple[str, ...]
    choice: Choice
    dataset: str | None = None
    batch_size: int | None = None
    shard_rows: int | None = None
    name: str | None = None

    def complete_choice(self, schema: Schema) -> Choice:
        """Which rows; unlabelled ones are left out if the label is explained."""
        where = conditions(self.where, schema)
        if self.of_class == LABEL:
            where = (*where, Condition("label", (-1,), "!="))
        return replace(self.choice, where=where)


@dataclass(frozen=True)
class _Inputs:
    """The opened inputs of an explanation."""

    feature_set: FeatureSet
    card: ModelCard
    head: Contender | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the network's classes, else of the data set's, else numbers."""
        return names_of_outputs(self.card, FeaturePlan.of(self.feature_set.plan))


def explanation_job(asked: Asked, workspace: Workspace) -> ShardJob:
    """The job of a stage; raises what `Explain.job` does."""
    inputs = _inputs(asked, workspace)
    executor, device = workspace.workers()
    explanation = replace(_explanation(asked, workspace, inputs), device=device)
    store, plan = workspace.store, _plan(asked, explanation, inputs)
    name = f"{plan['name']}-{fingerprint(plan)}"

    def find() -> ShardSet | None:
        found = store.find(plan, MAPS)
        return None if found is None else found.shard_set

    def fit(n_shards: int) -> Callable[[ShardSet], Explanation]:
        check_space(store.location, store.preview(plan, MAPS)["bytes_to_write"])
        ready = _fitted(explanation, inputs, executor, n_shards)
        return lambda _: ready

    return ShardJob(
        plan,
        f"{MAPS}/{name}",
        name,
        f"explain {plan['name']}",
        _preview(workspace, explanation, plan, executor.description),
        executor,
        find,
        lambda: store.prepare().create(plan, MAPS).shard_set,
        fit,
        partial(require_trusted_code, inputs.card),
        opened=FeatureSet,
    )


def _inputs(asked: Asked, workspace: Workspace) -> _Inputs:
    store = workspace.store
    feature_set = store.open(asked.features)
    if FeaturePlan.of(feature_set.plan).perturbations:
        raise InputError(
            f"{feature_set.name}: its images were perturbed before the network saw them, and are "
            "not stored: explain the features of the same images without --odin and --attack"
        )
    card = planned_model(feature_set.plan)
    if card.batch_statistics is not None:
        raise InputError(
            f"{feature_set.name}: batch norm used the statistics of groups of images, so no image "
            "has an explanation of its own: explain features without --batch-statistics"
        )
    require_trusted_code(card)
    if asked.head is None and not asked.choice.disagree:
        return _Inputs(feature_set, card, None)
    head = choose_head(store, feature_set, asked.head)
    check_preparation(store, feature_set, head)
    return _Inputs(feature_set, card, Contender("H", head))


def _explanation(asked: Asked, workspace: Workspace, inputs: _Inputs) -> Explanation:
    feature_set, card = inputs.feature_set, inputs.card
    questions = questions_of(asked.methods, asked.contrasts, inputs.names)
    is_column = asked.of_class in (PREDICTION, LABEL) and asked.of_class not in inputs.names
    of_class = asked.of_class if is_column else class_of(asked.of_class, inputs.names, "--class")
    check_questions(questions, inputs.names, of_class)
    weights = weights_path(workspace.store, card.name)
    key = ("explained", card.name, card.weights_sha256, asked.layer)
    layer, in_closed_form = workspace.once(key, lambda: layer_of(card, weights, asked.layer))
    source = images_of_features(workspace, feature_set, asked.dataset)
    chosen = _chosen(asked, workspace, inputs)
    row_bytes = 4 * len(questions) * layer.grid[0] * layer.grid[1]
    fitting = max(1, min(MAX_SHARD_ROWS, MAX_SHARD_BYTES // row_bytes))
    return Explanation(
        source,
        card,
        weights,
        workspace.store.location,
        feature_set.name,
        chosen,
        questions,
        of_class,
        layer,
        in_closed_form,
        asked.shard_rows or fitting,
        batch_rows=asked.batch_size or 0,
    )


def _chosen(asked: Asked, workspace: Workspace, inputs: _Inputs) -> ChosenRows:
    feature_set = inputs.feature_set
    choice = asked.complete_choice(feature_set.schema)
    predict = None
    if inputs.head is not None:
        found = predictors(workspace.store, inputs.head.head)
        predict = next(iter(found.values()))  # the first of its seeds
    key = ("chosen", feature_set.name, repr(choice), inputs.head)

    def choose() -> ChosenRows:
        with Progress("choose rows", feature_set.n_rows, unit="rows") as progress:
            return chosen_rows(feature_set, choice, predict, progress.advance)

    return workspace.once(key, choose)


def layer_of(card: ModelCard, weights: str, name: str | None) -> tuple[TargetLayer, bool]:
    """The layer of a network, and whether f is its mean; found with images of noise."""
    images = noise_images((card.image_size, card.image_size))
    images = torch.cat([images, 255 - images])[:2]
    sensing: Sensing = load_sensing(card, weights, images=images, keeps_layers=True)
    with evaluating(sensing, card.image_size):
        pixels = pixels_of(card, images, torch.device("cpu"))
        layer = chosen_layer(sensing, pixels, name)
        return layer, is_pooled(sensing, layer, pixels)


def _plan(asked: Asked, explanation: Explanation, inputs: _Inputs) -> Plan:
    """Everything that determines the maps."""
    feature_set, theirs = inputs.feature_set, inputs.feature_set.plan
    choice = asked.complete_choice(feature_set.schema)
    heads = {"heads": planned_heads([inputs.head])} if inputs.head else {}
    return {
        "name": asked.name or theirs["name"],
        "stage": {
            "name": Explanation.name,
            "version": Explanation.version,
            "params": {
                "maps": [each.to_dict() for each in explanation.questions],
                "of_class": explanation.of_class,
                "layer": explanation.layer.name,
                "rows": choice.to_dict(),
            },
        },
        "inputs": {
            "source": theirs["inputs"]["source"],
            "model": theirs["inputs"]["model"],
            "features": feature_set.name,
            **heads,
        },
        "schema": explanation.schema(feature_set).to_json(),
        "n_rows": len(explanation.chosen.rows),
        "shard_rows": explanation.shard_rows,
    }


def _fitted(
    explanation: Explanation, inputs: _Inputs, executor: Executor, n_shards: int
) -> Explanation:
    """The work with the best batch size that fits into memory; raises ``ResourceError``."""
    source, memory = explanation.source.open(), executor.worker_memory(n_shards)
    found = footprint(
        source,
        explanation.card,
        explanation.schema(inputs.feature_set),
        min(explanation.shard_rows, len(explanation.chosen.rows)),
        precision="fp32",
        layer=None,
        is_perturbed=not explanation.in_closed_form,
        device=explanation.device,
    )
    if not (batch_rows := found.batch_rows(memory, explanation.batch_rows or None)):
        raise ResourceError(found.refusal(f"maps of {source.name}", memory))
    return replace(explanation, batch_rows=batch_rows, n_images=found.n_images(memory))


def _preview(workspace: Workspace, explanation: Explanation, plan: Plan, workers: str) -> Preview:
    found = workspace.store.preview(plan, MAPS)
    way = "one forward pass" if explanation.in_closed_form else "a backward pass for each map"
    facts: dict[str, Any] = {
        **found,
        "executor": workers,
        "layer": explanation.layer.name,
        "grid": list(explanation.layer.grid),
        "maps": plan["stage"]["params"]["maps"],
        "in_closed_form": explanation.in_closed_form,
        "left_out": {},
    }
    text = (
        f"explain {found['rows_to_do']:,} of {counted(found['n_rows'], 'row')} with "
        f"{counted(len(explanation.questions), 'map')} each, of layer {explanation.layer.name} by "
        f"{way} ({counted(found['shards_to_do'], 'shard')}, {size(found['bytes_to_write'])}) to "
        f"{found['location']}, with {workers}"
    )
    return Preview(text, facts)
