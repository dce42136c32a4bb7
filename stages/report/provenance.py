"""Where a report's numbers come from, and what falls short of the paper or of three seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.introspection.head import HeadSpec
from stages.metrics.bootstrap import MIN_RESAMPLES
from stages.report.paper import other_data
from stages.report.results import Judged
from store.catalog import FeatureStore
from store.errors import NotFoundError

Row = dict[str, str]

PAPER_F = {"epochs": 200, "augmentation": "flip", "precision": "fp32"}
PAPER_H = {
    "epochs": 200,
    "weight_decay": 5e-3,
    "precision": "fp32",
    "rows": "all",
    "batch_rows": 128,
}
"""What the paper trains with; batch and precision, which it does not name, as we read it."""

ENOUGH_SEEDS = 3
_UNTOLD = ("network", "n_classes", "feature_dim", "reads", "layers", "seeds", "seed")


def results_used(judged: Sequence[Judged]) -> list[Row]:
    """A row for each result: what was judged, on how many rows, in how long."""
    moves = [_moves_of(found.card.get("perturbations", {})) for found in judged]
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
            **({"images moved by": moved} if any(moves) else {}),
        }
        for found, moved in zip(judged, moves, strict=True)
    ]


def _moves_of(perturbations: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How the images of each side were moved: an attack, ODIN; nothing for plain ones."""
    told = []
    for side, steps in perturbations.items():
        moves = [
            ", ".join(
                f"{name} {_short(value)}" if name != "target" else "through a head"
                for name, value in step.items()
                if value is not None
            )
            for step in steps
        ]
        told += [f"{side}: {'; then '.join(moves)}"] if moves else []
    return ". ".join(told)


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
    store: FeatureStore, judged: Sequence[Judged], table: pd.DataFrame | None
) -> list[str]:
    """What a reader must know before comparing: data, recipe, seeds, rows left out."""
    return [
        *_other_data(judged, table),
        *_other_recipe(store, judged, table),
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
        f"Other data: the paper's numbers are of all of {', '.join(theirs)}, ours of "
        f"{'; '.join(ours)}. Compare gains, not levels."
    ]


def _other_recipe(
    store: FeatureStore, judged: Sequence[Judged], table: pd.DataFrame | None
) -> list[str]:
    """How those were trained beside whom a number of the paper stands."""
    if table is None:
        return []
    beside = set(table.loc[table["paper"].notna(), "contender"])
    here = {}
    for found in judged:
        if "f" in beside:
            recipe = _training_of(store, found).get("recipe", {})
            here[str(found.card["model"])] = _other_facts(recipe, PAPER_F)
        for label in beside & set(found.heads):
            head = found.heads[label]
            if head.get("predictor", "mlp") == "mlp":
                facts = {**head.get("params", {}), "rows": head.get("rows", "all")}
                here[label] = here.get(label) or _other_facts(facts, PAPER_H)
    told = [f"{name}: {facts}" for name, facts in sorted(here.items()) if facts]
    if not told:
        return []
    return [
        f"Other training, in brackets the paper's (batch and precision as we read it): "
        f"{'; '.join(told)}."
    ]


def _other_facts(facts: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {_short(facts[name])} ({_short(value)})"
        for name, value in theirs.items()
        if facts.get(name, value) != value
    )


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
    if table is None or all(found.card["n_resamples"] >= MIN_RESAMPLES for found in judged):
        return []
    return [f"Some results have no intervals: fewer than {MIN_RESAMPLES} resamples."]


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
    layers = "-".join(map(str, HeadSpec.from_dict(spec).sizes))
    compact = f"rank {spec['rank']}, " if spec.get("rank") else ""
    return f"{compact}{layers} on {reads}"


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
