"""Results of the stage estimate-accuracy.

A result has ``by-group`` and ``quality.parquet``; its card records inputs, parameters and versions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import nan
from typing import Any

import pandas as pd

from pipeline.make import Output
from pipeline.progress import Progress
from stages.estimation.estimators import ESTIMATORS, QUALITY, Source, quality_of
from stages.estimation.group_estimates import Estimation
from stages.introspection.compared import Judge, last_layers_of
from stages.introspection.contenders import Contender
from stages.reflection.feature_plan import FeaturePlan
from stages.stored_card import StoredCard
from stages.versions import versions
from store.artifacts import Artifact
from store.featureset import FeatureSet


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimationCard(StoredCard):
    """What was estimated from which rows.

    Attributes:
        source, features: feature sets.
        cells: columns of the groups.
        n_groups: number of groups.
        left_out_rows: rows without a prediction.
        sources: what f and each head do on the source rows, by label; the first seed.
        seeds: label -> seeds.
        heads: label -> name of the head.
    """

    title: str
    source: str
    features: str
    model: str
    rows: int
    cells: tuple[str, ...]
    n_groups: int
    left_out_rows: int
    sources: Mapping[str, Source]
    seeds: Mapping[str, tuple[int, ...]]
    heads: Mapping[str, str]
    definitions: Mapping[str, str]
    versions: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimated:
    """A stored result.

    Attributes:
        by_group: one row per predictor, seed and group: ``n_rows``, ``n_labelled``, ``accuracy``
            (NaN without labels) and a column per estimator.
        quality: one row per predictor and estimator, see
            `stages.estimation.estimators.QUALITY`; empty without labels.
    """

    artifact: Artifact
    card: EstimationCard
    by_group: pd.DataFrame
    quality: pd.DataFrame


def open_estimated(result: Artifact) -> Estimated:
    """Open a finished result; raises ``NotFoundError``, ``DamagedError``."""
    frames = [result.read_frame(f"{name}.parquet") for name in ("by-group", "quality")]
    return Estimated(result, EstimationCard.of(result), *frames)


def estimated(
    sets: tuple[FeatureSet, FeatureSet],
    contenders: Sequence[Contender],
    names: tuple[str, ...],
    by: tuple[str, ...],
    seed: int,
) -> Output:
    """The tables and the card of the accuracies that are estimated for f and heads.

    Args:
        sets: the source, and the set whose groups are estimated.
        contenders: the heads.
        names: estimators.
        by: columns of the groups.
        seed: seed of the random pseudo-labels.
    """
    started, (source_set, target) = time.monotonic(), sets
    job = Estimation(last_layers_of(contenders), names, seed)
    n_rows = source_set.n_rows + target.n_rows
    with Progress("estimate accuracy", n_rows, unit="rows") as progress:
        sources = job.sources(source_set, progress.advance)
        found = list(job.rows(target, sources, by, progress.advance))
    by_group = _by_group(found, list(job.judges), by)
    seeds: dict[str, tuple[int, ...]] = {}
    for label, number in job.judges:
        seeds[label] = (*seeds.get(label, ()), number)
    of_f = by_group[by_group["predictor"] == next(iter(seeds))]
    card = EstimationCard(
        title=f"Accuracy of {target.plan['name']} without its labels, from "
        f"{source_set.plan['name']}",
        source=source_set.name,
        features=target.name,
        model=FeaturePlan.of(target.plan).model.name,
        rows=target.n_rows,
        cells=by,
        n_groups=len(of_f),
        left_out_rows=target.n_rows - int(of_f["n_rows"].sum()),
        sources={label: sources[label, found[0]] for label, found in seeds.items()},
        seeds=seeds,
        heads={each.label: each.head.name for each in contenders},
        definitions={name: ESTIMATORS[name].definition for name in names} | QUALITY,
        versions=versions(),
        seconds=round(time.monotonic() - started, 1),
    )
    tables = {"by-group": by_group, "quality": _quality(by_group, names)}
    files = {f"{name}.parquet": table.to_parquet(index=False) for name, table in tables.items()}
    return files, asdict(card)


def _by_group(
    found: Sequence[tuple[Judge, tuple[Any, ...], Mapping[str, float]]],
    judges: Sequence[Judge],
    by: tuple[str, ...],
) -> pd.DataFrame:
    def place(row: tuple[Judge, tuple[Any, ...], object]) -> Any:
        return judges.index(row[0]), [(value is nan, value) for value in row[1]]

    return pd.DataFrame(
        [
            {
                "predictor": label,
                "seed": seed,
                **dict(zip(by, group, strict=True)),
                **facts,
            }
            for (label, seed), group, facts in sorted(found, key=place)
        ]
    )


def _quality(by_group: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Mean over seeds of how well each estimator does, where accuracies are known."""
    known = by_group[by_group["n_labelled"] > 0]
    rows = [
        {
            "predictor": label,
            "method": name,
            **quality_of(name, own[name].to_numpy(float), own["accuracy"].to_numpy(float)),
        }
        for (label, _), own in known.groupby(["predictor", "seed"], sort=False)
        for name in names
    ]
    columns = ["predictor", "method", "n_groups", *QUALITY]
    found = pd.DataFrame(rows, columns=columns)
    mean = found.groupby(["predictor", "method"], sort=False, as_index=False).mean()
    return mean.astype({"n_groups": int})
