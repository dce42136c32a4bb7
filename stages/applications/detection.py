"""The ood stage: two sets told apart by one detector, f beside heads, kept as a result.

A result holds ``by-group``, ``average`` and ``differences.parquet``, in the form of those of
`stages.applications.evaluation`: what shows the one shows the other.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.journal import Journal
from stages.applications.averages import REFERENCE, average_table, difference_table
from stages.applications.detectors import DETECTORS, checked_detectors
from stages.applications.evaluation import (
    Contender,
    check_contenders,
    facts_of,
    planned_heads,
    versions,
)
from stages.errors import InputError
from stages.introspection.predictors import LastLayer, OfModel, divided, factors
from stages.metrics.bootstrap import Resampling
from stages.metrics.definitions import DETECTION, STATISTICS
from stages.metrics.detection import CURVE_METRICS, Scores, curve_of, detection_summary
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

VERSION = 1
SHOWN = ("fpr95", "detection_error", "auroc")
"""The columns of the paper's tables."""

DEFAULT_ROWS = 10_000
_TABLES = ("by_group", "average", "differences")
_RESAMPLES_AT_ONCE = 50
_OUTSIDE = 2**32
"""Added to the rows of the out-of-distribution set: their bootstrap weights are others."""


@dataclass(frozen=True)
class Sides:
    """What is told apart: sets of one network, or their plans.

    Attributes:
        inside: features of in-distribution images.
        outside: features of others.
        training: those of the images that f was trained on, for detectors that are fitted.
    """

    inside: OfModel
    outside: OfModel
    training: OfModel | None = None

    @property
    def name(self) -> str:
        """``cifar10 against svhn``."""
        return f"{_source(self.inside)['name']} against {_source(self.outside)['name']}"

    @property
    def all(self) -> list[OfModel]:
        """Those that there are."""
        sets = (self.inside, self.outside, self.training)
        return [each for each in sets if each is not None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How sides are compared: by which detector, on how many rows of each, how often resampled."""

    detector: str
    rows: int = DEFAULT_ROWS
    n_resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        checked_detectors((self.detector,))
        if self.rows < 2:
            raise InputError(f"ood: expected at least 2 rows of each set, found {self.rows}")


@dataclass(frozen=True)
class Detection:
    """A result as it was kept; the tables have the columns of an evaluation's."""

    artifact: Artifact
    card: dict[str, Any]  # Any: JSON
    by_group: pd.DataFrame
    average: pd.DataFrame
    differences: pd.DataFrame


def detect(
    store: FeatureStore,
    sides: Sides,
    contenders: Sequence[Contender],
    comparison: Comparison,
    *,
    journal: Journal,
) -> Detection:
    """Tell the sides apart by f and by each contender; a second time the result is read.

    Both sides have as many rows: those of the smaller one, or ``rows``, drawn by the seed. Rows
    without finite vectors are left out before.

    Raises:
        InputError: sets of several networks, that do not fit the detector, or without rows.
    """
    check_sides(sides, contenders, comparison)
    result = result_of(store, sides, contenders, comparison)
    if not result.is_settled():
        journal.begin()
        store.prepare()
        result.claim(result_plan(sides, contenders, comparison))
        _make(result, sides, contenders, comparison)
    return open_detection(result)


def result_of(
    store: FeatureStore, sides: Sides, contenders: Sequence[Contender], comparison: Comparison
) -> Artifact:
    """Where the result lies, or will; raises ``NotFoundError`` for a missing head."""
    plan = result_plan(sides, contenders, comparison)
    outside = _source(sides.outside)["name"]
    name = f"{sides.inside.plan['name']}-against-{outside}-{comparison.detector}"
    return store.artifact("result", f"{name}-{fingerprint(plan)}")


def open_detection(result: Artifact) -> Detection:
    """A finished result; raises ``NotFoundError``, ``DamagedError``."""
    tables = {
        name: pd.read_parquet(io.BytesIO(result.read(f"{name.replace('_', '-')}.parquet")))
        for name in _TABLES
    }
    return Detection(result, result.card(), **tables)


def result_plan(sides: Sides, contenders: Sequence[Contender], comparison: Comparison) -> Plan:
    """Everything that determines the result."""
    n, seed = comparison.n_resamples, comparison.seed
    params = {
        "detector": comparison.detector,
        "rows": comparison.rows,
        "seed": seed,
        "n_resamples": n,
    }
    return {
        "stage": {"name": "ood", "version": VERSION, "params": params},
        "inputs": {
            "features": [each.plan for each in sides.all],
            "heads": planned_heads(contenders),
        },
    }


def check_sides(sides: Sides, contenders: Sequence[Contender], comparison: Comparison) -> None:
    """Raise ``InputError`` for sets and heads that cannot be compared so; needs only plans."""
    weights = {each.plan["inputs"]["model"]["weights_sha256"] for each in sides.all}
    if len(weights) > 1:
        raise InputError(
            f"ood {sides.name}: expected features of one network, found those of "
            f"{', '.join(sorted(each.name for each in sides.all))}"
        )
    check_contenders(sides.inside, contenders)
    detector = DETECTORS[comparison.detector]
    if detector.fit is not None and sides.training is None:
        raise InputError(f"ood: {comparison.detector} is fitted, and needs training features")
    for each in (sides.inside, sides.outside):
        is_moved = [step["kind"] for step in perturbations_of(each)][-1:] == ["odin"]
        if is_moved != detector.is_perturbed:
            wanted = "moved by ODIN" if detector.is_perturbed else "as they are"
            raise InputError(
                f"ood: {comparison.detector} reads features of images {wanted}, and {each.name} "
                "has others"
            )


def perturbations_of(found: OfModel) -> list[dict[str, Any]]:  # Any: JSON
    """What the images of a set went through, in order; nothing for plain ones."""
    steps: list[dict[str, Any]] = found.plan["stage"]["params"].get("perturbations", [])
    return steps


def _make(
    result: Artifact, sides: Sides, contenders: Sequence[Contender], comparison: Comparison
) -> None:
    started = time.monotonic()
    data = _Data.of(sides, comparison)
    judges: dict[str, dict[int, LastLayer | None]] = {REFERENCE: {0: None}}
    judges |= {each.label: dict(factors(each.head)) for each in contenders}
    rows: list[dict[str, Any]] = []
    resampled: dict[str, NDArray[np.float64]] = {}
    for label, seeds in judges.items():
        values = []
        for seed, factors_of in seeds.items():
            inside, outside = data.scores(comparison.detector, factors_of)
            found = detection_summary(inside, outside)
            rows.append({"predictor": label, "seed": seed, "n_rows": data.n_rows, **found})
            values.append(data.resampled(inside, outside))
        resampled[label] = np.mean(values, axis=0)
    by_group = pd.DataFrame(rows)
    by_seed = by_group.set_index(["predictor", "seed"])[list(DETECTION)]
    tables = {
        "by-group": by_group,
        "average": average_table(by_seed, resampled),
        "differences": difference_table(by_seed, resampled),
    }
    card = _card(sides, contenders, comparison, data, judges)
    card["seconds"] = round(time.monotonic() - started, 1)
    result.write(
        {f"{name}.parquet": table.to_parquet(index=False) for name, table in tables.items()}, card
    )


_Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Features and logits."""


@dataclass(frozen=True)
class _Data:
    """The vectors that are compared, and the weights of their resamples."""

    inside: _Pair
    outside: _Pair
    training: tuple[_Pair, NDArray[np.int64]] | None
    weights: NDArray[np.uint8]
    n_left_out: int

    @classmethod
    def of(cls, sides: Sides, comparison: Comparison) -> _Data:
        """The same number of rows of both sides."""
        pairs, usable = [], []
        for each in (sides.inside, sides.outside):
            pair = _read(each)
            kept = np.flatnonzero(
                np.isfinite(pair[0]).all(axis=1) & np.isfinite(pair[1]).all(axis=1)
            )
            if not len(kept):
                raise InputError(f"ood: {each.name} has no row whose image could be read")
            pairs.append(pair)
            usable.append(kept)
        n_rows = min(comparison.rows, *map(len, usable))
        chosen = [
            np.sort(np.random.default_rng([comparison.seed, side]).permutation(kept)[:n_rows])
            for side, kept in enumerate(usable)
        ]
        resampling = Resampling(comparison.n_resamples, comparison.seed)
        images = np.concatenate([chosen[0], chosen[1] + _OUTSIDE])
        inside, outside = ((f[at], z[at]) for (f, z), at in zip(pairs, chosen, strict=True))
        n_left_out = sum(len(f) - len(kept) for (f, _), kept in zip(pairs, usable, strict=True))
        is_fitted = DETECTORS[comparison.detector].fit is not None
        training = _training(sides) if is_fitted else None
        return cls(inside, outside, training, resampling.weights(images), n_left_out)

    @property
    def n_rows(self) -> int:
        """Of each side."""
        return len(self.inside[0])

    def scores(self, name: str, factors_of: LastLayer | None) -> tuple[Scores, Scores]:
        """Those of both sides by f itself, or by a head."""
        detector = DETECTORS[name]
        turn = factors_of or partial(divided, detector.temperature)
        score = detector.score
        if detector.fit is not None:
            assert self.training is not None  # what check_sides has seen
            (training, of_training), labels = self.training
            score = detector.fit(*turn(training, of_training), labels)
        assert score is not None  # a detector scores, or is fitted
        return score(*turn(*self.inside)), score(*turn(*self.outside))

    def resampled(self, inside: Scores, outside: Scores) -> NDArray[np.float64]:
        """The metrics of `DETECTION` in each resample; NaN for those that are not resampled."""
        n_resamples = self.weights.shape[1]
        found = np.full((len(DETECTION), n_resamples), np.nan)
        for start in range(0, n_resamples, _RESAMPLES_AT_ONCE):
            some = slice(start, start + _RESAMPLES_AT_ONCE)
            curve = curve_of(inside, outside, self.weights[:, some])
            for at, metric in enumerate(CURVE_METRICS.values()):
                found[at, some] = metric(curve)
        return found


def _read(found: OfModel) -> _Pair:
    assert isinstance(found, FeatureSet)  # not a plan: it is there by now
    return found.read("features"), found.read("logits")


def _training(sides: Sides) -> tuple[_Pair, NDArray[np.int64]]:
    assert isinstance(sides.training, FeatureSet)  # what check_sides has seen
    labels = sides.training.samples()["label"].to_numpy(np.int64)
    return _read(sides.training), labels


def _source(found: OfModel) -> dict[str, Any]:  # Any: JSON
    source: dict[str, Any] = found.plan["inputs"]["source"]
    return source


def _card(
    sides: Sides,
    contenders: Sequence[Contender],
    comparison: Comparison,
    data: _Data,
    judges: dict[str, dict[int, LastLayer | None]],
) -> dict[str, Any]:  # Any: JSON
    source = _source(sides.inside)
    return {
        "title": f"{sides.name} by {comparison.detector}, {data.n_rows:,} images of each",
        "features": sides.inside.name,
        "against": sides.outside.name,
        "training": sides.training.name if sides.training and data.training else None,
        "model": sides.inside.plan["inputs"]["model"]["name"],
        "dataset": {
            "name": sides.name,
            "split": source.get("split"),
            "fingerprint": source.get("fingerprint"),
        },
        "rows": data.n_rows,
        "cells": {"columns": [], "count": 1},
        "detector": comparison.detector,
        "perturbations": {
            side: perturbations_of(found)
            for side, found in (("inside", sides.inside), ("outside", sides.outside))
        },
        "contenders": {each.label: facts_of(each.head) for each in contenders},
        "seeds": {label: list(seeds) for label, seeds in judges.items()},
        "left_out_rows": dict.fromkeys(judges, data.n_left_out),
        "n_resamples": comparison.n_resamples,
        "bootstrap_seed": comparison.seed,
        "definitions": {
            comparison.detector: DETECTORS[comparison.detector].definition,
            **DETECTION,
        },
        "statistics": STATISTICS,
        "versions": versions(),
    }
