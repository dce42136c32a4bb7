"""The evaluate stage: f beside H over a data set, as the paper averages them, kept as a result."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from pipeline.progress import Progress
from stages.applications.recognition import (
    Group,
    Predict,
    group_sums,
    n_left_out,
    sensing_probabilities,
    table_of,
)
from stages.introspection.head import predict_probabilities
from stages.introspection.heads import choose_head, open_head
from stages.metrics.calibration import N_BINS, CalibrationSums
from stages.metrics.definitions import DEFINITIONS
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import fingerprint

SHOWN = ("accuracy", "ece", "mce", "brier")
KEPT = tuple(DEFINITIONS)
VERSION = 1


@dataclass(frozen=True)
class Work:
    """What is to be judged: a feature set and a head that fit each other."""

    store: FeatureStore
    feature_set: FeatureSet
    head: Artifact

    @property
    def by(self) -> tuple[str, ...]:
        """The columns that group the rows: corruption and severity, where the data set has them."""
        columns = [name for name, _ in self.feature_set.schema.columns]
        return tuple(name for name in ("corruption", "severity") if name in columns)

    @property
    def plan(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines the result."""
        inputs = {"features": self.feature_set.plan, "head": self.head.plan()}
        return {"stage": {"name": "evaluate", "version": VERSION}, "inputs": inputs}

    @property
    def name(self) -> str:
        """What the result is called."""
        return f"{self.feature_set.plan['name']}-{self.head.name}-{fingerprint(self.plan)}"


@dataclass(frozen=True)
class Evaluation:
    """f and H by group; ``by_group`` has a row for each (predictor, group)."""

    name: str
    title: str
    by_group: pd.DataFrame
    average: pd.DataFrame
    location: str


def prepared(store: FeatureStore, features: str, head: str | None) -> Work:
    """The work of judging a head on features; the model's only head where none is named.

    Raises:
        InputError, StoreError: see ``FeatureStore.open`` and ``choose_head``.
    """
    feature_set = store.open(features)
    return Work(store, feature_set, choose_head(store, feature_set, head))


def evaluate(work: Work) -> Evaluation:
    """Judge f and H by (corruption, severity); keep the table, the sums and the definitions.

    The average is the plain mean over the groups of each group's metric, the paper's "averaged
    across 19 distortions and 5 levels" (Table 5).
    """
    loaded = open_head(work.head)

    def introspective(features: NDArray[Any], logits: NDArray[Any]) -> NDArray[Any]:
        return predict_probabilities(loaded, features, logits)

    predictors: dict[str, Predict] = {"f": sensing_probabilities, "H": introspective}
    sums = _sums(work.feature_set, predictors, work.by)
    tables = [
        table_of(found, by=work.by, metrics=KEPT).assign(predictor=name)
        for name, found in sums.items()
    ]
    by_group = pd.concat(tables, ignore_index=True)[["predictor", *work.by, "n_rows", *KEPT]]
    average = by_group.groupby("predictor", sort=False)[list(KEPT)].mean().reset_index()
    n_groups = len(sums["f"])
    title = f"{work.feature_set.plan['name']}, {work.feature_set.n_rows:,} rows" + (
        f", mean over {n_groups} groups of {' and '.join(work.by)}" if n_groups > 1 else ""
    )
    if left_out := n_left_out(sums["f"]):
        title += f"; {left_out:,} rows left out: no label, or not read"
    result = work.store.prepare().artifact("result", work.name)
    _keep(result, work.plan, by_group, average, sums)
    return Evaluation(work.name, title, by_group, average, result.storage.location)


def _sums(
    feature_set: FeatureSet, predictors: dict[str, Predict], by: Sequence[str]
) -> dict[str, dict[Group, CalibrationSums]]:
    n_rows = feature_set.n_rows * len(predictors)
    with Progress(f"evaluate {feature_set.plan['name']}", n_rows, unit="rows") as progress:
        return {
            name: group_sums(feature_set, predict, by=by, tick=progress.advance)
            for name, predict in predictors.items()
        }


def _keep(
    result: Artifact,
    plan: dict[str, Any],
    by_group: pd.DataFrame,
    average: pd.DataFrame,
    sums: dict[str, dict[Group, CalibrationSums]],
) -> None:
    result.claim(plan)
    sink = io.BytesIO()
    by_group.to_parquet(sink, index=False)
    facts = {
        "average": average.to_dict(orient="records"),
        "averaged_over": "groups, each counted once",
        "definitions": DEFINITIONS,
        "n_bins": N_BINS,
        "sums": {
            name: [{"group": list(group), **total.to_dict()} for group, total in found.items()]
            for name, found in sums.items()
        },
    }
    result.write({"by-group.parquet": sink.getvalue()}, facts)
