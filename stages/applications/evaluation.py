"""The evaluate stage: f beside heads over a data set, as the paper averages them, kept as a result.

A result holds ``by-group``, ``average``, ``differences`` and ``bins.parquet``, the tables of
`stages.applications.judgement.Judgement`, and its card says of what, how and with which versions.
"""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.journal import Journal
from pipeline.progress import Progress
from stages.applications.averages import REFERENCE
from stages.applications.judgement import Judgement, Predictor, cell_columns, judged
from stages.errors import InputError
from stages.introspection.predictors import (
    OfModel,
    check_model,
    predictors,
    sensing_probabilities,
)
from stages.metrics.bootstrap import Resampling
from stages.metrics.definitions import DEFINITIONS, STATISTICS
from stages.metrics.sums import N_BINS
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint
from store.shards import Shard

SHOWN = ("accuracy", "ece", "mce", "brier")
VERSION = 2
TABLES = ("by_group", "average", "differences", "bins")


@dataclass(frozen=True, slots=True)
class Contender:
    """A head under the label that it has in tables."""

    label: str
    head: Artifact


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A result as it was kept; the tables are those of `stages.applications.judgement`."""

    artifact: Artifact
    card: dict[str, Any]  # Any: JSON
    by_group: pd.DataFrame
    average: pd.DataFrame
    differences: pd.DataFrame
    bins: pd.DataFrame


def evaluate(
    store: FeatureStore,
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    journal: Journal,
) -> Evaluation:
    """Judge f and the contenders by (corruption, severity); a second time the result is read.

    The average is the plain mean over the cells of each cell's metric, the paper's "averaged
    across 19 distortions and 5 levels" (Table 5).

    Args:
        store: keeps the result.
        feature_set: complete.
        contenders: finished heads of the network that made the features; none for f alone.
        n_resamples: of the bootstrap over images; fewer than 100 give no intervals.
        seed: of the bootstrap.
        journal: begins when there is something to compute.

    Raises:
        InputError: labels that clash, a head of another network, or no row with a label.
    """
    checked(feature_set.require_complete(), contenders)
    result = result_of(store, feature_set, contenders, n_resamples=n_resamples, seed=seed)
    if result.is_settled():
        return open_evaluation(result)
    resampling = Resampling(n_resamples, seed)
    journal.begin()
    store.prepare()
    result.claim(result_plan(feature_set, contenders, n_resamples, seed))
    started = time.monotonic()
    judges = _predictors(store, contenders)
    with Progress(f"evaluate {feature_set.plan['name']}", feature_set.n_rows, unit="rows") as shown:
        found = judged(feature_set, judges, resampling, tick=shown.advance)
    card = _card(feature_set, contenders, judges, resampling, found)
    card["seconds"] = round(time.monotonic() - started, 1)
    result.write(
        {_key(name): getattr(found, name).to_parquet(index=False) for name in TABLES}, card
    )
    return open_evaluation(result)


def result_of(
    store: FeatureStore,
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Artifact:
    """Where the result of `evaluate` lies, or will; raises ``NotFoundError`` for a missing head."""
    plan = result_plan(feature_set, contenders, n_resamples, seed)
    return store.artifact("result", f"{feature_set.plan['name']}-{fingerprint(plan)}")


def open_evaluation(result: Artifact) -> Evaluation:
    """A finished result; raises ``NotFoundError``, ``DamagedError``."""
    card = result.card()
    tables = {name: pd.read_parquet(io.BytesIO(result.read(_key(name)))) for name in TABLES}
    return Evaluation(result, card, **tables)


def checked(feature_set: FeatureSet, contenders: Sequence[Contender]) -> None:
    """Raise ``InputError`` for contenders that clash or do not fit, and for rows without labels."""
    check_contenders(feature_set, contenders)
    if not any(_has_labels(feature_set, shard) for shard in feature_set.shard_set.shards):
        raise InputError(
            f"evaluate {feature_set.name}: expected labelled rows, found none among "
            f"{feature_set.n_rows:,}; take a split that has labels"
        )


def check_contenders(feature_set: OfModel, contenders: Sequence[Contender]) -> None:
    """Raise ``InputError`` for contenders that clash, or belong to another network."""
    labels = [REFERENCE, *(each.label for each in contenders)]
    for label in labels:
        if not label.isprintable():
            raise InputError(
                f"contenders: expected labels of printable characters, found {label!r}: name "
                "heads as LABEL=NAME"
            )
        if not label or labels.count(label) > 1:
            raise InputError(
                f"contenders: expected a label of its own for each, and none '{REFERENCE}', "
                f"which is the network itself; found '{label}': name heads as LABEL=NAME"
            )
    for each in contenders:
        check_model(feature_set, each.head)


def _has_labels(feature_set: FeatureSet, shard: Shard) -> bool:
    return bool((feature_set.read_samples(shard)["label"].to_numpy() >= 0).any())


def result_plan(
    feature_set: FeatureSet, contenders: Sequence[Contender], n_resamples: int, seed: int
) -> Plan:
    """Everything that determines the result; without resamples the seed does not.

    Of each head its plan and the checksums of its files: another training of the same plan gives
    other weights. Raises ``NotFoundError`` for a head that is missing or not finished.
    """
    bootstrap = {"n_resamples": n_resamples, "seed": seed if n_resamples else 0}
    return {
        "stage": {
            "name": "evaluate",
            "version": VERSION,
            "params": {"n_bins": N_BINS, "bootstrap": bootstrap},
        },
        "inputs": {"features": feature_set.plan, "heads": planned_heads(contenders)},
    }


def planned_heads(contenders: Sequence[Contender]) -> list[Plan]:
    """What a plan says of heads: of each its own plan, and the checksums of its files."""
    return [
        {"label": each.label, "head": each.head.plan(), "files": _checksums(each.head)}
        for each in contenders
    ]


def _checksums(head: Artifact) -> dict[str, str]:
    return {key: vouched["sha256"] for key, vouched in sorted(head.card()["files"].items())}


def _predictors(store: FeatureStore, contenders: Sequence[Contender]) -> list[Predictor]:
    return [
        Predictor(REFERENCE, 0, sensing_probabilities),
        *(
            Predictor(each.label, seed, predict)
            for each in contenders
            for seed, predict in predictors(store, each.head).items()
        ),
    ]


def _card(
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    judges: Sequence[Predictor],
    resampling: Resampling,
    found: Judgement,
) -> dict[str, Any]:  # Any: JSON
    inputs, cells = feature_set.plan["inputs"], list(cell_columns(feature_set))
    n_cells = len(found.by_group.drop_duplicates(cells)) if cells else 1
    seeds: dict[str, list[int]] = {}
    for each in judges:
        seeds.setdefault(each.label, []).append(each.seed)
    left_out = {label: n // len(seeds[label]) for label, n in found.n_left_out.items()}
    return {
        "title": _title(feature_set, cells, n_cells, left_out[REFERENCE]),
        "features": feature_set.name,
        "model": inputs["model"]["name"],
        "dataset": {key: inputs["source"].get(key) for key in ("name", "split", "fingerprint")},
        "rows": feature_set.n_rows,
        "cells": {"columns": cells, "count": n_cells},
        "contenders": {each.label: facts_of(each.head) for each in contenders},
        "seeds": seeds,
        "left_out_rows": left_out,
        "n_bins": N_BINS,
        "n_resamples": resampling.n_resamples,
        "bootstrap_seed": resampling.seed,
        "definitions": DEFINITIONS,
        "statistics": STATISTICS,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    return {
        "intro-pipe": version("intro-pipe"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }


def _title(feature_set: FeatureSet, cells: Sequence[str], n_cells: int, n_left_out: int) -> str:
    title = f"{feature_set.plan['name']}, {feature_set.n_rows:,} rows"
    if cells:
        title += f", mean over {n_cells} groups of {' and '.join(cells)}"
    if n_left_out:
        title += f"; {n_left_out:,} rows left out: no label, or not read"
    return title


def facts_of(head: Artifact) -> dict[str, Any]:  # Any: JSON
    """What a head is, without its history."""
    card = head.card()
    told = ("predictor", "features", "spec", "params", "rows", "temperature")
    return {"head": head.name, **{key: card[key] for key in told if key in card}}


def _key(table: str) -> str:
    return f"{table.replace('_', '-')}.parquet"
