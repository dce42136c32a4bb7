"""Results that judge predictors on the cells of a feature set: their files and their card.

A result has ``by-group``, ``average``, ``differences`` and ``bins.parquet``, the tables of
`stages.judging.judgement.Judgement`; its card records inputs, parameters and versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline.terminal import counted
from stages.introspection.comparison_card import BesideSet, Cells, ComparisonCard, Dataset
from stages.introspection.contenders import Contender
from stages.introspection.head_card import head_card
from stages.judging.beside import name_beside
from stages.judging.judgement import Judge, Judgement, OtherRows
from stages.metrics.bootstrap import Resampling
from stages.metrics.definitions import DEFINITIONS, REFERENCE, statistics_of
from stages.metrics.sums import N_BINS
from stages.reflection.feature_plan import FeaturePlan
from stages.versions import versions
from store.artifacts import Artifact
from store.featureset import FeatureSet

TABLES = ("by_group", "average", "differences", "bins")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A stored result; the tables are those of `stages.judging.judgement`."""

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


def files_of(found: Judgement) -> dict[str, bytes]:
    """The tables as Parquet files by key."""
    return {_key(name): getattr(found, name).to_parquet(index=False) for name in TABLES}


def card_of(
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    judges: Sequence[Judge],
    resampling: Resampling,
    cells: tuple[str, ...],
    found: Judgement,
    *,
    beside: OtherRows | None = None,
) -> ComparisonCard:
    """The card of a judgement, without its duration; ``contenders`` has the heads of both sets."""
    plan = FeaturePlan.of(feature_set.plan)
    if beside is not None:
        judges = [*judges, *beside.predictors]
    counted_cells = found.by_group[found.by_group["n_rows"] > 0]
    n_cells = len(counted_cells.drop_duplicates(list(cells))) if cells else 1
    seeds: dict[str, tuple[int, ...]] = {}
    for each in judges:
        seeds[each.label] = (*seeds.get(each.label, ()), each.seed)
    left_out = {label: n // len(seeds[label]) for label, n in found.n_left_out.items()}
    return ComparisonCard(
        title=title_of(feature_set, cells, n_cells, left_out[REFERENCE], beside),
        features=feature_set.name,
        beside=None if beside is None else _beside(beside),
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


def _beside(other: OtherRows) -> BesideSet:
    labels = dict.fromkeys(each.label for each in other.predictors)
    model = FeaturePlan.of(other.feature_set.plan).model.name
    return BesideSet(other.feature_set.name, model, tuple(labels))


def title_of(
    feature_set: FeatureSet,
    cells: Sequence[str],
    n_cells: int,
    n_left_out: int,
    beside: OtherRows | None = None,
) -> str:
    """The title of a result: its sets, what the means are taken over, and what was left out."""
    other = f" beside {name_beside(feature_set, beside.feature_set)}" if beside else ""
    title = f"{feature_set.plan['name']}{other}, {feature_set.n_rows:,} rows"
    if cells:
        title += f", mean over {n_cells} groups of {' and '.join(cells)}"
    if n_left_out:
        title += f"; {counted(n_left_out, 'row')} left out: no label, or not read"
    return title


def _key(table: str) -> str:
    return f"{table.replace('_', '-')}.parquet"
