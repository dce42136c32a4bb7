"""Results of the stage detect-failures.

A result has ``by-group``, ``average`` and ``curves.parquet``, the tables of
`stages.failures.ranked.RankedTables`; its card records inputs, parameters and versions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.make import Output
from stages.failures.ranked import Confidence, Ranked, RankedTables, ranked
from stages.introspection.comparison_card import Cells, ComparisonCard, Dataset
from stages.introspection.contenders import Contender
from stages.introspection.head_card import head_card
from stages.judging.judged_result import title_of
from stages.metrics.bootstrap import Resampling
from stages.metrics.definitions import REFERENCE, SELECTIVE, STATISTICS
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.groups import cell_columns
from stages.scores.factors import TrainingRows
from stages.scores.known_scores import BASELINE, SCORES, Kind
from stages.scores.predictor import (
    Predictor,
    head_predictors,
    sensing_predictor,
    training_rows,
)
from stages.versions import versions
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet

TABLES = ("by_group", "average", "curves")


@dataclass(frozen=True, slots=True)
class Failures:
    """A stored result; the tables are those of `stages.failures.ranked`."""

    artifact: Artifact
    card: ComparisonCard
    by_group: pd.DataFrame
    average: pd.DataFrame
    curves: pd.DataFrame


def open_failures(result: Artifact) -> Failures:
    """Open a finished result; raises ``NotFoundError``, ``DamagedError``."""
    card = ComparisonCard.of(result)
    return Failures(result, card, *(result.read_frame(_key(name)) for name in TABLES))


def failures_found(
    store: FeatureStore,
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    names: Sequence[str],
    training: FeatureSet | None,
    resampling: Resampling,
    tick: Callable[[int], None],
) -> Output:
    """The tables and the card.

    Args:
        store: store of the rows.
        feature_set: labelled rows.
        contenders: heads beside f.
        names: scores that are confidences.
        training: features of training rows, for scores that are fitted.
        resampling: the bootstrap over images.
        tick: called with the number of rows of each finished shard.
    """
    started, cells = time.monotonic(), cell_columns(feature_set)
    heads = head_predictors(store, feature_set, contenders)
    networks = _networks([sensing_predictor(store, feature_set), *heads], names, training)
    found = ranked(feature_set, networks, resampling, cells, tick=tick)
    card = _card(feature_set, contenders, names, training, resampling, found)
    files = {_key(name): getattr(found, name).to_parquet(index=False) for name in TABLES}
    return files, {**card.to_dict(), "seconds": round(time.monotonic() - started, 1)}


def _networks(
    predictors: Sequence[Predictor], names: Sequence[str], training: FeatureSet | None
) -> list[Ranked]:
    return [
        Ranked(
            each.label,
            each.seed,
            None if each.label == REFERENCE else each.last_layer,
            _confidences(each, names, training),
        )
        for each in predictors
    ]


def _confidences(
    predictor: Predictor, names: Sequence[str], training: FeatureSet | None
) -> dict[str, Confidence]:
    """Scores, fitted to the training rows of a network if needed, high for certain rows."""

    @cache
    def rows() -> TrainingRows:
        assert training is not None  # checked by the stage
        return training_rows(predictor, training)

    return {
        name: partial(_oriented, SCORES[name], SCORES[name].fitted(rows, predictor.load_linear))
        for name in names
    }


def _oriented(
    kind: Kind,
    score: Confidence,
    features: NDArray[Any],
    logits: NDArray[Any],
) -> NDArray[np.float64]:
    return kind.certain(score(features, logits))


def _card(
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    names: Sequence[str],
    training: FeatureSet | None,
    resampling: Resampling,
    found: RankedTables,
) -> ComparisonCard:
    plan, cells = FeaturePlan.of(feature_set.plan), cell_columns(feature_set)
    heads = {each.label: head_card(each.head) for each in contenders}
    return ComparisonCard(
        title=title_of(feature_set, cells, found.n_cells, found.n_left_out),
        features=feature_set.name,
        model=plan.model.name,
        dataset=Dataset(plan.source.name, plan.source.split, plan.source.fingerprint),
        rows=feature_set.n_rows,
        cells=Cells(cells, found.n_cells),
        contenders=heads,
        seeds={REFERENCE: (0,), **{label: head.seeds for label, head in heads.items()}},
        left_out_rows={REFERENCE: found.n_left_out},
        n_resamples=resampling.n_resamples,
        bootstrap_seed=resampling.seed,
        definitions={**SELECTIVE, **_definitions(names, list(heads), training)},
        statistics={**STATISTICS, "gain": GAIN},
        versions=versions(),
        seconds=0.0,
    )


GAIN = f"mean less that of f ranked by {BASELINE}, on the same rows"


def _definitions(
    names: Sequence[str], labels: Sequence[str], training: FeatureSet | None
) -> Mapping[str, str]:
    told = {}
    for name in names:
        fitted = f"; fitted to {training.name}" if training and SCORES[name].fit else ""
        told[name] = SCORES[name].definition + fitted
    of_heads = {
        label: f"as a confidence in f: probability that {label} gives to the class that f predicts"
        for label in labels
    }
    return told | of_heads


def _key(table: str) -> str:
    return f"{table.replace('_', '-')}.parquet"
