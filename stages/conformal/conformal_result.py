"""Results of the stage conformal.

A result has ``average``, ``by-group``, ``by-class``, ``by-size`` and ``thresholds.parquet``; its
card records inputs, parameters and versions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isinf, nan
from typing import Any

import numpy as np
import pandas as pd

from pipeline.make import Output
from pipeline.progress import Progress
from stages.conformal.conformity import METHODS, expected_coverage
from stages.conformal.set_calibration import Calibration, Method, Thresholds
from stages.conformal.set_counts import SIZES, Counts, facts_of, size_name
from stages.introspection.compared import Judge, probabilities_of
from stages.introspection.contenders import Contender
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.groups import cell_columns
from stages.stored_card import StoredCard
from stages.versions import versions
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet

TABLES = ("average", "by_group", "by_class", "by_size", "thresholds")
HELD_OUT = "held out"
"""Name of the rows of the calibration set that did not calibrate."""

DEFINITIONS: dict[str, str] = {
    "coverage": "share of rows whose set holds the label",
    "size": "mean number of classes in a set",
    "empty": "share of empty sets",
    "worst_class": "lowest coverage of a class",
    "size_gap": (
        "largest |coverage - (1 - alpha)| over the sets of sizes "
        f"{', '.join(size_name(*each) for each in SIZES)} (Angelopoulos et al. 2021)"
    ),
    "expected": (
        "interval that holds the coverage of as many exchangeable rows with a probability of 95 %: "
        "beta-binomial with k = ⌈(n + 1)(1 - alpha)⌉ and n + 1 - k, for n calibration rows and "
        "scores without ties"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformalCard(StoredCard):
    """What was calibrated on which rows, and judged on which.

    Attributes:
        calibration, features: feature sets; ``features`` is empty for the held-out rows alone.
        calibration_rows: rows that calibrated.
        rows: name of a judged set -> its rows.
        left_out_rows: the same -> rows without a label or a prediction.
        cells: columns of the groups.
        unbounded: predictor -> scores, with the class if by class, for which there were too few
            rows, so that sets hold every class.
        method: parameters, as JSON.
        seeds: label -> seeds.
        heads: label -> name of the head.
    """

    title: str
    calibration: str
    features: str
    model: str
    calibration_rows: int
    rows: Mapping[str, int]
    left_out_rows: Mapping[str, int]
    cells: tuple[str, ...]
    unbounded: Mapping[str, tuple[str, ...]]
    method: Mapping[str, Any]
    seeds: Mapping[str, tuple[int, ...]]
    heads: Mapping[str, str]
    definitions: Mapping[str, str]
    versions: Mapping[str, str]
    seconds: float

    @property
    def alpha(self) -> float:
        """Share of rows whose set may miss the label."""
        return float(self.method["alpha"])


@dataclass(frozen=True, slots=True)
class Conformity:
    """A stored result. Every table but ``average`` has the columns ``predictor`` and ``seed``."""

    artifact: Artifact
    card: ConformalCard
    average: pd.DataFrame
    by_group: pd.DataFrame
    by_class: pd.DataFrame
    by_size: pd.DataFrame
    thresholds: pd.DataFrame


def open_conformity(result: Artifact) -> Conformity:
    """Open a finished result; raises ``NotFoundError``, ``DamagedError``."""
    frames = [result.read_frame(f"{name.replace('_', '-')}.parquet") for name in TABLES]
    return Conformity(result, ConformalCard.of(result), *frames)


def conformed(
    store: FeatureStore,
    sets: tuple[FeatureSet, FeatureSet | None],
    contenders: Sequence[Contender],
    method: Method,
    by: Sequence[str],
) -> Output:
    """The tables and the card of prediction sets of f and of heads.

    Args:
        store: the store.
        sets: the calibration set, and another one to judge.
        contenders: the heads.
        method: how sets are made.
        by: columns of the groups; if empty, corruption and severity.
    """
    started, (own, other) = time.monotonic(), sets
    job = Calibration(own, probabilities_of(store, contenders), method)
    n_rows = own.n_rows * (1 if method.share == 1 else 2) + (0 if other is None else other.n_rows)
    counted: dict[str, dict[tuple[Judge, str], Counts]] = {}
    columns: dict[str, tuple[str, ...]] = {}
    with Progress("conformal", n_rows, unit="rows") as progress:
        thresholds = job.thresholds(progress.advance)
        if method.share < 1:
            columns[HELD_OUT] = cell_columns(own, by)
            counted[HELD_OUT] = job.held_out(thresholds, columns[HELD_OUT], progress.advance)
        if other is not None:
            name = other.plan["name"]
            columns[name] = cell_columns(other, by)
            counted[name] = job.judged(other, thresholds, columns[name], progress.advance)
    tables = _tables(job, thresholds, counted, columns)
    first = next(iter(thresholds.values()))
    n_calibrated = int(first.n_rows.sum() if method.is_by_class else first.n_rows[0])
    totals = {name: next(iter(found.values())).total for name, found in counted.items()}
    sizes = {HELD_OUT: own.n_rows - n_calibrated}
    sizes |= {other.plan["name"]: other.n_rows} if other else {}
    card = ConformalCard(
        title=_title(own, other, method),
        calibration=own.name,
        features="" if other is None else other.name,
        model=FeaturePlan.of(own.plan).model.name,
        calibration_rows=n_calibrated,
        rows={name: int(total[0]) for name, total in totals.items()},
        left_out_rows={name: sizes[name] - int(total[0]) for name, total in totals.items()},
        cells=tuple(dict.fromkeys(name for each in columns.values() for name in each)),
        unbounded=_unbounded(thresholds, by_class=method.is_by_class),
        method=asdict(method),
        seeds=_seeds(job.judges),
        heads={each.label: each.head.name for each in contenders},
        definitions={**DEFINITIONS, **{name: METHODS[name] for name in method.names}},
        versions=versions(),
        seconds=0.0,
    )
    files = {f"{name.replace('_', '-')}.parquet": tables[name] for name in TABLES}
    seconds = round(time.monotonic() - started, 1)
    return (
        {key: table.to_parquet(index=False) for key, table in files.items()},
        asdict(replace(card, seconds=seconds)),
    )


def _tables(
    job: Calibration,
    thresholds: Thresholds,
    counted: Mapping[str, Mapping[tuple[Judge, str], Counts]],
    columns: Mapping[str, tuple[str, ...]],
) -> dict[str, pd.DataFrame]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for name, by_key in counted.items():
        for key in _ordered(job):
            counts = by_key[key]
            names = {"set": name, **_names(key)}
            rows["average"].append({**names, **_average(job, thresholds, key, counts)})
            rows["by_group"] += _by_group(job, thresholds, key, (counts, columns[name], names))
            rows["by_class"] += _by_class(job, counts, names)
            rows["by_size"] += [
                {**names, "sizes": size_name(*size), **facts_of(found)}
                for size, found in zip(SIZES, counts.by_size, strict=True)
                if found[0]
            ]
    rows["thresholds"] = list(_threshold_rows(job, thresholds))
    frames = {name: pd.DataFrame(found) for name, found in rows.items()}
    keys = ["set", "predictor", "method"]
    over_seeds = frames["average"].drop(columns="seed").groupby(keys, sort=False, as_index=False)
    return {**frames, "average": over_seeds.mean()}


def _ordered(job: Calibration) -> list[tuple[Judge, str]]:
    """The order of tables: by score, then by predictor."""
    return [(judge, name) for name in job.method.names for judge in job.judges]


def _names(key: tuple[Judge, str]) -> dict[str, Any]:
    (label, seed), method = key
    return {"predictor": label, "seed": seed, "method": method}


def _expected(
    job: Calibration, thresholds: Thresholds, key: tuple[Judge, str], n_rows: int
) -> dict[str, float]:
    """The expected interval; none with a threshold for each class, whose mixture is unknown."""
    if job.method.is_by_class:
        return {"low": nan, "high": nan}
    low, high = expected_coverage(int(thresholds[key].n_rows[0]), n_rows, job.method.alpha)
    return {"low": low, "high": high}


def _average(
    job: Calibration, thresholds: Thresholds, key: tuple[Judge, str], counts: Counts
) -> dict[str, Any]:
    facts = facts_of(counts.total)
    return {
        **facts,
        **_expected(job, thresholds, key, int(facts["n_rows"])),
        "worst_class": counts.worst_class(),
        "size_gap": counts.size_gap(job.method.alpha),
    }


def _by_group(
    job: Calibration,
    thresholds: Thresholds,
    key: tuple[Judge, str],
    found: tuple[Counts, tuple[str, ...], Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    counts, columns, names = found
    groups = sorted(counts.by_group, key=lambda group: [(value is nan, value) for value in group])
    for group in groups:
        facts = facts_of(counts.by_group[group])
        expected = _expected(job, thresholds, key, int(facts["n_rows"]))
        yield {**names, **dict(zip(columns, group, strict=True)), **facts, **expected}


def _by_class(
    job: Calibration, counts: Counts, names: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    class_names = dict(enumerate(FeaturePlan.of(job.feature_set.plan).source.class_names or ()))
    for label in np.flatnonzero(counts.by_class[:, 0]).tolist():
        known = {"label": label, "class": class_names.get(label, "")}
        yield {**names, **known, **facts_of(counts.by_class[label])}


def _threshold_rows(job: Calibration, thresholds: Thresholds) -> Iterator[dict[str, Any]]:
    for key, found in thresholds.items():
        labels = range(job.n_classes) if job.method.is_by_class else [-1]
        for label in labels:
            at = max(label, 0)
            numbers = {"n_rows": int(found.n_rows[at]), "threshold": float(found.values[at])}
            yield {**_names(key), "label": label, **numbers}


def _unbounded(thresholds: Thresholds, *, by_class: bool) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for ((label, _), method), each in thresholds.items():
        classes = [at for at, value in enumerate(each.values) if isinf(value)]
        if classes:
            named = [f"{method} (class {at})" for at in classes] if by_class else [method]
            found[label] = tuple(dict.fromkeys([*found.get(label, ()), *named]))
    return found


def _seeds(judges: Mapping[Judge, object]) -> dict[str, tuple[int, ...]]:
    seeds: dict[str, tuple[int, ...]] = {}
    for label, seed in judges:
        seeds[label] = (*seeds.get(label, ()), seed)
    return seeds


def _title(own: FeatureSet, other: FeatureSet | None, method: Method) -> str:
    judged = f", judged on {other.plan['name']}" if other else ""
    return (
        f"Prediction sets that miss the label in {method.alpha:.0%} of rows, calibrated on "
        f"{own.plan['name']}{judged}"
    )
