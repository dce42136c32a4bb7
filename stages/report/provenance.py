"""Where the numbers of a report come from, and how they deviate from the paper's conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from pipeline.loop import History, history_of
from stages.introspection.comparison_card import BesideSet
from stages.introspection.head_card import (
    FittedLaplace,
    FittedTemperature,
    HeadCard,
    TrainedNetwork,
    Votes,
)
from stages.introspection.reading import Reading
from stages.metrics.bootstrap import MIN_RESAMPLES
from stages.reflection.feature_plan import FeaturePlan
from stages.report.paper import other_data
from stages.report.results import Judged
from stages.sensing.card import ModelCard
from stages.sensing.methods.method_params import AugMix, in_words, value_in_words
from stages.sensing.models import models_of
from stages.sensing.train_params import TrainParams, planned_params
from stages.sensing.trained import TrainedModel, is_trained_here
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import NotFoundError, StoreError

Row = dict[str, str]

PAPER_F = {"epochs": 200, "augmentation": "flip", "precision": "fp32"}
PUBLISHED_AUGMIX = {"epochs": 100, "augmentation": "crop_flip", "precision": "fp32"}
PAPER_H = {
    "epochs": 200,
    "weight_decay": 5e-3,
    "precision": "fp32",
    "rows": "all",
    "batch_rows": 128,
}
"""The paper's training; batch size and precision are our reading, as the paper omits them."""

ENOUGH_SEEDS = 3
_HIDDEN = ("network", "n_classes", "feature_dim", "reads", "layers", "seeds", "seed")


def results_used(judged: Sequence[Judged]) -> list[Row]:
    """One row per result: what was evaluated, on how many rows, and how long it took."""
    moves = [_moves_of(found.card.perturbations) for found in judged]
    return [
        {
            **{name: str(value) for name, value in found.axes.items()},
            "result": found.name,
            "data set": f"{found.dataset}, {found.card.dataset.split or 'no split'}",
            "rows": f"{found.card.rows:,}",
            "cells": f"{found.card.cells.count:,}",
            "features": found.card.features,
            "resamples": f"{found.card.n_resamples:,}",
            "seconds": f"{found.card.seconds:,.1f}",
            **({"images moved by": moved} if any(moves) else {}),
            **_beside(judged, found.card.beside),
        }
        for found, moved in zip(judged, moves, strict=True)
    ]


def _beside(judged: Sequence[Judged], beside: BesideSet | None) -> Row:
    """The second feature set, and which predictors read it; no columns if no result has one."""
    if all(found.card.beside is None for found in judged):
        return {}
    features, labels = (beside.features, "; ".join(beside.labels)) if beside else ("", "")
    return {"other features": features, "evaluated on them": labels}


def _moves_of(perturbations: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How the images of each side were perturbed (attack, ODIN); empty for unmodified images."""
    parts = []
    for side, steps in perturbations.items():
        moves = [
            ", ".join(
                f"{name} {value_in_words(value)}" if name != "target" else "through a head"
                for name, value in step.items()
                if value is not None
            )
            for step in steps
        ]
        parts += [f"{side}: {'; then '.join(moves)}"] if moves else []
    return ". ".join(parts)


def networks_used(store: FeatureStore, judged: Sequence[Judged]) -> list[Row]:
    """One row per sensing network: its weights, and its recipe if it was trained in this store.

    A network that another model was trained from has a row too.
    """
    rows: dict[tuple[str, str], Row] = {}
    of_f = [(found.model, found.card.model, found.network) for found in judged]
    beside = [found.beside[0] for found in judged if found.beside is not None]
    of_f += [(model, model.name, model.network or model.name) for model in beside]
    waiting = [(facts.weights_sha256, name, network) for facts, name, network in of_f]
    for weights, name, network in waiting:  # grows on the way
        if (name, weights) in rows:
            continue
        model, trained = store.artifact("model", name), _training_of(store, name, weights)
        words, start = _start_of(store, model) if trained else ("", None)
        waiting += [(start.weights_sha256, start.name, start.network)] if start else []
        rows[name, weights] = {
            "model": name,
            "network": network,
            "weights": weights[:12] or "unknown: the features were deleted",
            "trained from": words,
            "recipe": _recipe_of(trained.recipe) if trained else "trained elsewhere",
            "test accuracy": _fraction(trained.test_accuracy if trained else None),
            "trained in": _duration(history_of(model) if trained else []),
        }
    return list(rows.values())


def heads_used(store: FeatureStore, judged: Sequence[Judged]) -> list[Row]:
    """One row per head: what it reads, its layers, parameters and seeds."""
    rows = {}
    for found in judged:
        for label, head in found.heads.items():
            rows[label, head.name] = {
                "contender": label,
                "head": head.name,
                "kind": _kind_of(head),
                "seeds": ", ".join(map(str, found.card.seeds.get(label, ()))),
                "parameters": _parameters_of(head),
                "trained in": _duration(_history_of(store, head.name)),
            }
    return list(rows.values())


def versions_used(judged: Sequence[Judged]) -> dict[str, str]:
    """Versions of each library; several if the results were made with different ones."""
    found: dict[str, list[str]] = {}
    for one in judged:
        for name, version in one.card.versions.items():
            found.setdefault(name, []).append(version)
    return {name: ", ".join(dict.fromkeys(versions)) for name, versions in found.items()}


def shortcomings(
    store: FeatureStore, judged: Sequence[Judged], table: pd.DataFrame | None
) -> list[str]:
    """What a reader must know before comparing: data, recipe, seeds and excluded rows."""
    return [
        *_other_data(judged, table),
        *_other_recipe(store, judged, table),
        *_chosen(store, judged),
        *_few_seeds(judged),
        *_left_out(judged),
        *_no_intervals(judged, table),
    ]


def _other_data(judged: Sequence[Judged], table: pd.DataFrame | None) -> list[str]:
    if table is None:
        return []
    theirs = sorted({name for name in table["paper_dataset"] if name})
    if not theirs:
        return []
    ours = sorted({other_data(name, found.card) for name in theirs for found in judged} - {""})
    return [
        f"Other data: the paper's numbers are for all of {', '.join(theirs)}, ours for "
        f"{'; '.join(ours)}. Compare gains, not levels."
    ]


def _other_recipe(
    store: FeatureStore, judged: Sequence[Judged], table: pd.DataFrame | None
) -> list[str]:
    """How contenders shown beside a number of the paper were trained differently."""
    if table is None:
        return []
    beside = set(table.loc[table["paper"].notna(), "contender"])
    here = {}
    for found in judged:
        if "f" in beside:
            trained = _training_of(store, found.card.model, found.model.weights_sha256)
            recipe = asdict(trained.recipe) if trained else {}
            is_augmix = trained is not None and isinstance(trained.recipe.method, AugMix)
            theirs = PUBLISHED_AUGMIX if is_augmix else PAPER_F
            here[found.card.model] = _other_facts(recipe, theirs)
        for label in beside & set(found.heads):
            network = found.heads[label].predictor
            if isinstance(network, TrainedNetwork):
                facts = {**network.params.to_dict(), "rows": network.rows}
                here[label] = here.get(label) or _other_facts(facts, PAPER_H)
    parts = [f"{name}: {facts}" for name, facts in sorted(here.items()) if facts]
    if not parts:
        return []
    return [
        f"Other training (the paper's in brackets; batch and precision as we read it): "
        f"{'; '.join(parts)}."
    ]


def _other_facts(facts: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value_in_words(facts[name])} ({value_in_words(value)})"
        for name, value in theirs.items()
        if facts.get(name, value) != value
    )


def _chosen(store: FeatureStore, judged: Sequence[Judged]) -> list[str]:
    """Contenders of which an epoch or a temperature was chosen on other than training images."""
    chosen = {
        f"{label} (on {features})"
        for found in judged
        for label, head in found.heads.items()
        for features in _chosen_on(head)
        if not _is_for_training(store, features)
    }
    if not chosen:
        return []
    return [
        f"An epoch or a temperature is chosen on labelled images for {', '.join(sorted(chosen))}: "
        "results on these images, and on corrupted versions of them, are optimistic."
    ]


def _chosen_on(head: HeadCard) -> Iterator[str]:
    match head.predictor:
        case FittedTemperature():
            yield head.features
        case TrainedNetwork() as network:
            yield from filter(None, (network.selected_on, network.tempered_on))


def _is_for_training(store: FeatureStore, features: str) -> bool:
    """Whether a feature set has the training images of its data set; False if it was deleted."""
    try:
        return FeaturePlan.of(store.resolve(features).plan).source.split == "train"
    except StoreError:
        return False


def _few_seeds(judged: Sequence[Judged]) -> list[str]:
    few = {
        f"{label} ({len(found.card.seeds[label])})"
        for found in judged
        for label, head in found.heads.items()
        if head.kind == "mlp" and len(found.card.seeds[label]) < ENOUGH_SEEDS
    }
    return [f"Fewer than {ENOUGH_SEEDS} seeds: {', '.join(sorted(few))}."] if few else []


def _left_out(judged: Sequence[Judged]) -> list[str]:
    return [
        f"{n_rows:,} rows of {found.card.features_of(label)} are excluded for {label}: no label, "
        "unreadable, or no finite prediction."
        for found in judged
        for label, n_rows in found.card.left_out_rows.items()
        if n_rows
    ]


def _no_intervals(judged: Sequence[Judged], table: pd.DataFrame | None) -> list[str]:
    if table is None or all(found.card.n_resamples >= MIN_RESAMPLES for found in judged):
        return []
    return [f"Some results have no intervals: fewer than {MIN_RESAMPLES} resamples."]


def _start_of(store: FeatureStore, model: Artifact) -> tuple[str, ModelCard | None]:
    """What a training began with, and the model whose weights these are, if the store has it."""
    weights = model.plan()["inputs"].get("weights")
    if weights is None:
        return "random weights", None
    card = next((each for each in models_of(store) if each.weights_sha256 == weights), None)
    return (card.name, card) if card else ("other weights", None)


def _training_of(store: FeatureStore, name: str, weights_sha256: str) -> TrainedModel | None:
    """How a network was trained; ``None`` if it was not trained in this store."""
    model = store.artifact("model", name)
    try:
        trained = TrainedModel.of(model) if is_trained_here(model) else None
    except NotFoundError:
        return None
    is_same = trained and trained.card.weights_sha256 == weights_sha256
    return trained if is_same else None


def _history_of(store: FeatureStore, head: str) -> History:
    try:
        return history_of(store.artifact("head", head))
    except NotFoundError:
        return []


def _kind_of(head: HeadCard) -> str:
    match head.predictor:
        case FittedTemperature(temperature):
            return f"f's logits divided by {temperature:.4f}"
        case FittedLaplace(structure, prior):
            return f"{structure} Laplace approximation of f's last layer, prior {prior:.4g}"
        case Votes(k, reading, temperature):
            how = f", votes exp(cosine / {temperature:g})" if temperature else ""
            return f"{k} nearest neighbours on {_reading_of(reading)}{how}"
        case TrainedNetwork(spec):
            compact = f"rank {spec.rank}, " if spec.rank else ""
            return f"{compact}{'-'.join(map(str, spec.sizes))} on {_reading_of(spec.reading)}"


def _reading_of(reading: Reading) -> str:
    bias = ", with the bias" if reading.bias_gradient else ""
    how = f"reflection ({reading.loss}, {reading.variant}{bias})"
    reads = reading.reads.replace("reflection", how)
    if reading.is_standardised and not reading.has_gradient:
        return f"{reads}, standardised"
    return reads if reading.scaling == "none" else f"{reads}, {reading.scaling}"


def _parameters_of(head: HeadCard) -> str:
    match head.predictor:
        case TrainedNetwork(spec, params) as network:
            shown = {
                "M": spec.M,
                "dropout": spec.dropout,
                "temperature": network.temperatures,
            }
            shown = {name: value for name, value in shown.items() if value}
            return _listed({**shown, **params.to_dict()})
        case Votes(reading=reading) if reading.M:
            return _listed({"M": reading.M})
    return ""


def _recipe_of(recipe: TrainParams) -> str:
    facts = planned_params(recipe)
    if "method" in facts:
        facts["method"] = in_words(recipe.method)
    return _listed(facts)


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value_in_words(value)}"
        for name, value in facts.items()
        if name not in _HIDDEN and value is not None
    )


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _duration(history: Sequence[Mapping[str, float]]) -> str:
    seconds = sum(unit.get("seconds", 0.0) for unit in history)
    if not seconds:
        return ""
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
