"""Where a report's numbers come from, and what falls short of the paper or of three seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.report.comparison import spoken
from stages.report.results import Judged
from store.catalog import FeatureStore
from store.errors import NotFoundError

Row = dict[str, str]

PAPER_EPOCHS = 200
ENOUGH_SEEDS = 3
_PAPER_RECIPE_TABLES = ("table-3", "table-5", "table-7", "table-8")
_UNTOLD = ("network", "n_classes", "feature_dim", "reads", "layers", "seeds", "seed")


def results_used(judged: Sequence[Judged]) -> list[Row]:
    """A row for each result: what was judged, on how many rows, in how long."""
    return [
        {
            **{name: str(value) for name, value in found.axes.items()},
            "result": found.name,
            "data set": f"{found.dataset}, {found.card['dataset'].get('split') or 'no split'}",
            "rows": f"{found.card['rows']:,}",
            "cells": f"{found.card['cells']['count']:,}",
            "features": str(found.card["features"]),
            "resamples": f"{found.card['n_resamples']:,}",
            "seconds": f"{found.card['seconds']:,.1f}",
        }
        for found in judged
    ]


def networks_used(store: FeatureStore, judged: Sequence[Judged]) -> list[Row]:
    """A row for each sensing network: its weights, and the recipe where it was trained here."""
    rows = {}
    for found in judged:
        name, weights = str(found.card["model"]), str(found.model.get("weights_sha256", ""))
        card = _training_of(store, found)
        rows[name, weights] = {
            "model": name,
            "network": found.network,
            "weights": weights[:12] or "not known: the features are gone",
            "recipe": _listed(card.get("recipe", {})) or "trained elsewhere",
            "test accuracy": _fraction(card.get("test_accuracy")),
            "trained in": _duration(card.get("history", [])),
        }
    return list(rows.values())


def heads_used(store: FeatureStore, judged: Sequence[Judged]) -> list[Row]:
    """A row for each head: what it reads, its layers, its parameters and seeds."""
    rows = {}
    for found in judged:
        for label, head in found.heads.items():
            rows[label, head["head"]] = {
                "contender": label,
                "head": str(head["head"]),
                "kind": _kind_of(head),
                "seeds": ", ".join(map(str, found.card["seeds"].get(label, []))),
                "parameters": _parameters_of(head),
                "trained in": _duration(_history_of(store, str(head["head"]))),
            }
    return list(rows.values())


def versions_used(judged: Sequence[Judged]) -> dict[str, str]:
    """Each library and its version; several where results were made with several."""
    found: dict[str, list[str]] = {}
    for one in judged:
        for name, version in one.card["versions"].items():
            found.setdefault(name, []).append(str(version))
    return {name: ", ".join(dict.fromkeys(versions)) for name, versions in found.items()}


def shortcomings(
    store: FeatureStore, judged: Sequence[Judged], table: pd.DataFrame | None, paper: str | None
) -> list[str]:
    """What a reader must know before comparing: data, recipe, seeds, rows left out."""
    return [
        *_other_data(judged, table),
        *(_other_recipe(store, judged) if paper in _PAPER_RECIPE_TABLES else []),
        *_few_seeds(judged),
        *_left_out(judged),
        *_no_intervals(judged, table),
        *_astray(table),
    ]


def _other_data(judged: Sequence[Judged], table: pd.DataFrame | None) -> list[str]:
    if table is None:
        return []
    theirs = sorted({name for name in table["paper_dataset"] if name})
    if not theirs:
        return []
    ours = sorted({found.dataset for found in judged} - set(theirs))
    return [
        f"Other data: the paper's numbers are of {', '.join(theirs)}, ours of {', '.join(ours)}. "
        "Compare gains, not levels."
    ]


def _other_recipe(store: FeatureStore, judged: Sequence[Judged]) -> list[str]:
    short = {
        f"{found.card['model']} for {recipe['epochs']}"
        for found in judged
        if (recipe := _training_of(store, found).get("recipe", {})).get("epochs", PAPER_EPOCHS)
        != PAPER_EPOCHS
    }
    short |= {
        f"{label} for {head['params']['epochs']}"
        for found in judged
        for label, head in found.heads.items()
        if head.get("params", {}).get("epochs", PAPER_EPOCHS) != PAPER_EPOCHS
    }
    if not short:
        return []
    return [
        f"Other training: the paper trains every network for {PAPER_EPOCHS} epochs, here "
        f"{', '.join(sorted(short))}."
    ]


def _few_seeds(judged: Sequence[Judged]) -> list[str]:
    few = {
        f"{label} ({len(found.card['seeds'][label])})"
        for found in judged
        for label, head in found.heads.items()
        if head.get("predictor") == "mlp" and len(found.card["seeds"][label]) < ENOUGH_SEEDS
    }
    return [f"Fewer than {ENOUGH_SEEDS} seeds: {', '.join(sorted(few))}."] if few else []


def _left_out(judged: Sequence[Judged]) -> list[str]:
    return [
        f"{n_rows:,} rows of {found.card['features']} are left out for {label}: no label, "
        "not read, or no finite prediction."
        for found in judged
        for label, n_rows in found.card["left_out_rows"].items()
        if n_rows
    ]


def _no_intervals(judged: Sequence[Judged], table: pd.DataFrame | None) -> list[str]:
    if table is None or all(found.card["n_resamples"] for found in judged):
        return []
    return ["Some results have no intervals: the bootstrap was left out."]


def _astray(table: pd.DataFrame | None) -> list[str]:
    if table is None:
        return []
    has_interval = table["gain_low"].notna() & table["gain_high"].notna()
    holds = table["gain"].between(table["gain_low"], table["gain_high"])
    metrics = table.loc[has_interval & ~holds, "metric"].unique()
    if not len(metrics):
        return []
    return [
        f"Some intervals of {', '.join(map(spoken, metrics))} do not hold their own estimate "
        "(resampling raises an error over small bins): they give no verdict."
    ]


def _training_of(store: FeatureStore, found: Judged) -> Mapping[str, Any]:
    """The card of a network that was trained in this store; empty for any other."""
    try:
        card = store.artifact("model", str(found.card["model"])).card()
    except NotFoundError:
        return {}
    return card if card["card"]["weights_sha256"] == found.model.get("weights_sha256") else {}


def _history_of(store: FeatureStore, head: str) -> Sequence[Mapping[str, float]]:
    try:
        card = store.artifact("head", head).card()
    except NotFoundError:
        return []
    found: Sequence[Mapping[str, float]] = card.get("history", [])
    return found


def _kind_of(head: Mapping[str, Any]) -> str:
    spec = head.get("spec", {})
    if head["predictor"] == "temperature":
        return f"f's logits divided by {head['temperature']:.4f}"
    reads = str(spec.get("reads", "reflection"))
    if reads == "reflection":
        reads = f"reflection ({spec['loss']}, {spec['variant']})"
    if (scaling := spec.get("scaling", "none")) != "none":
        reads += f", {scaling}"
    if head["predictor"] == "neighbours":
        return f"{spec['k']} nearest neighbours on {reads}"
    layers = "-".join(map(str, (_n_inputs(spec), *spec["layers"], spec["n_classes"])))
    return f"{layers} on {reads}"


def _n_inputs(spec: Mapping[str, Any]) -> int:
    width, n_classes = int(spec["feature_dim"]), int(spec["n_classes"])
    of = {"features": width, "features+logits": width + n_classes}
    return of.get(str(spec.get("reads")), width * n_classes)


def _parameters_of(head: Mapping[str, Any]) -> str:
    spec = {name: head.get("spec", {}).get(name) for name in ("M", "dropout")}
    told = {name: value for name, value in spec.items() if value}
    return _listed({**told, **head.get("params", {})})


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in facts.items()
        if name not in _UNTOLD and value is not None
    )


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "/".join(map(_short, value)) if isinstance(value, list | tuple) else str(value)


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _duration(history: Sequence[Mapping[str, float]]) -> str:
    seconds = sum(unit.get("seconds", 0.0) for unit in history)
    if not seconds:
        return ""
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
