"""Results of the stage evaluate.

A result has ``by-group``, ``average``, ``differences`` and ``bins.parquet``, the tables of
`stages.evaluation.judgement.Judgement`; its card records inputs, parameters and versions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.make import Output
from pipeline.terminal import counted
from stages.evaluation.judgement import Judgement, Predictor, cell_columns, judged
from stages.evaluation.recognition import class_names_of
from stages.introspection.comparison_card import Cells, ComparisonCard, Dataset
from stages.introspection.contenders import Contender
from stages.introspection.head_card import head_card
from stages.introspection.predictors import predictors, sensing_probabilities
from stages.metrics.bootstrap import Resampling
from stages.metrics.definitions import DEFINITIONS, REFERENCE, statistics_of
from stages.metrics.sums import N_BINS
from stages.reflection.feature_plan import FeaturePlan
from stages.versions import versions
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet

TABLES = ("by_group", "average", "differences", "bins")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A stored result; the tables are those of `stages.evaluation.judgement`."""

    artifact: Artifact
    card: ComparisonCard
    by_group: pd.DataFrame
    average: pd.DataFrame
    differences: pd.DataFrame
    bins: pd.DataFrame


def open_evaluation(result: Artifact) -> Evaluation:
    """Open a finished result; raises ``NotFoundError``, ``DamagedError``."""
    card = ComparisonCard.of(result)
    return Evaluation(result, card, *(result.read_frame(_key(name)) for name in TABLES))


def evaluated(
    store: FeatureStore,
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    *,
    by: Sequence[str],
    classes: NDArray[np.int64] | None,
    resampling: Resampling,
    tick: Callable[[int], None],
) -> Output:
    """The tables and the card of f beside heads.

    Args:
        by: sample columns whose values are the cells; if empty, those of `cell_columns`.
        classes: classes over which each predictor is evaluated in addition to all; ``None`` for
            none.
        resampling: the bootstrap over images; with fewer than 100 resamples, no intervals.
        tick: called with the number of rows of each finished shard.
    """
    cells, started = tuple(by) or cell_columns(feature_set), time.monotonic()
    judges = _predictors(store, contenders)
    if classes is not None:
        judges += [_over(each, classes) for each in judges]
    found = judged(feature_set, judges, resampling, cells, tick=tick)
    if "label" in cells:
        found = replace(found, by_group=_with_class_names(feature_set, found.by_group))
    files = {_key(name): getattr(found, name).to_parquet(index=False) for name in TABLES}
    card = _card(feature_set, contenders, judges, resampling, cells, found)
    return files, replace(card, seconds=round(time.monotonic() - started, 1)).to_dict()


def _with_class_names(feature_set: FeatureSet, by_group: pd.DataFrame) -> pd.DataFrame:
    """The table with a column ``class`` after ``label``; it is empty where there is no name."""
    names = class_names_of(feature_set)
    table = by_group.copy()
    classes = [names.get(label, "") for label in table["label"]]
    table.insert(list(table.columns).index("label") + 1, "class", classes)
    return table


def _predictors(store: FeatureStore, contenders: Sequence[Contender]) -> list[Predictor]:
    return [
        Predictor(REFERENCE, 0, sensing_probabilities),
        *(
            Predictor(each.label, seed, predict)
            for each in contenders
            for seed, predict in predictors(store, each.head).items()
        ),
    ]


def _over(judge: Predictor, classes: NDArray[np.int64]) -> Predictor:
    """The predictor over some of the classes: their probabilities, which sum to one again."""

    def predict(features: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.float64]:
        all_classes = np.asarray(judge.predict(features, logits), np.float64)
        found = np.zeros_like(all_classes)
        found[:, classes] = all_classes[:, classes]
        with np.errstate(invalid="ignore"):  # no probability at all: the row counts as failed
            found /= found.sum(axis=1, keepdims=True)
        return found

    return Predictor(f"{judge.label} ({len(classes)} classes)", judge.seed, predict)


def _card(
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    judges: Sequence[Predictor],
    resampling: Resampling,
    cells: tuple[str, ...],
    found: Judgement,
) -> ComparisonCard:
    plan = FeaturePlan.of(feature_set.plan)
    n_cells = len(found.by_group.drop_duplicates(list(cells))) if cells else 1
    seeds: dict[str, tuple[int, ...]] = {}
    for each in judges:
        seeds[each.label] = (*seeds.get(each.label, ()), each.seed)
    left_out = {label: n // len(seeds[label]) for label, n in found.n_left_out.items()}
    return ComparisonCard(
        title=_title(feature_set, cells, n_cells, left_out[REFERENCE]),
        features=feature_set.name,
        model=plan.model.name,
        dataset=Dataset(plan.source.name, plan.source.split, plan.source.fingerprint),
        rows=feature_set.n_rows,
        cells=Cells(cells, n_cells),
        contenders={each.label: head_card(each.head) for each in contenders},
        seeds=seeds,
        left_out_rows=left_out,
        n_bins=N_BINS,
        n_resamples=resampling.n_resamples,
        bootstrap_seed=resampling.seed,
        definitions=DEFINITIONS,
        statistics=statistics_of(cells),
        versions=versions(),
        seconds=0.0,
    )


def _title(feature_set: FeatureSet, cells: Sequence[str], n_cells: int, n_left_out: int) -> str:
    title = f"{feature_set.plan['name']}, {feature_set.n_rows:,} rows"
    if cells:
        title += f", mean over {n_cells} groups of {' and '.join(cells)}"
    if n_left_out:
        title += f"; {counted(n_left_out, 'row')} left out: no label, or not read"
    return title


def _key(table: str) -> str:
    return f"{table.replace('_', '-')}.parquet"
