"""The result of iqa: agreement of scores with opinions, and with the level of a distortion."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.metrics.agreement import (
    CORRELATIONS,
    Start,
    agreement,
    differs,
    fit_mapping,
    intervals,
    spearman,
)
from stages.metrics.bootstrap import Resampling
from stages.quality.measures import MEASURES, column_of
from stages.stored_card import StoredCard
from store.artifacts import Artifact
from store.featureset import FeatureSet

STARTS: tuple[Start, ...] = get_args(Start)
MIN_GROUPS = 10
"""With fewer references, single pairs are resampled: a handful of references says little."""

TABLES = ("agreement", "significance", "monotony", "levels", "pairs")
"""The tables of a result, each a Parquet file; empty ones are left out."""

MONOTONY = (
    "mean over references of -Spearman's rank correlation of level and score of the distorted "
    "images: 1 if the score always falls as the distortion grows, -1 if it always rises"
)


@dataclass(frozen=True, slots=True)
class QualityCard(StoredCard):
    """The card of a result, in its order.

    Attributes:
        scores: name of the stored set with one row per pair.
        dataset: name of the pairs.
        opinions: what the opinions are, in words; empty if there are none.
        measures: names in `MEASURES`.
        n_pairs, n_failed: pairs, and those that some measure could not compare.
        n_references: references.
        resampled: what the bootstrap resamples, "references" or "pairs".
        mappings: measure -> start -> the five parameters.
    """

    scores: str
    dataset: str
    opinions: str
    measures: tuple[str, ...]
    n_pairs: int
    n_failed: int
    n_references: int
    resampled: str
    mappings: Mapping[str, Mapping[str, tuple[float | None, ...]]]


def read_table(result: Artifact, name: str) -> pd.DataFrame:
    """A table of a result; an empty frame if it has none. Raises ``DamagedError``."""
    key = f"{name}.parquet"
    return result.read_frame(key) if key in result.files() else pd.DataFrame()


def result_of(
    scores: FeatureSet,
    measures: Sequence[str],
    opinions: str,
    resampling: Resampling,
    tick: Callable[[], object] = lambda: None,
) -> tuple[dict[str, bytes], dict[str, Any]]:  # Any: JSON
    """Files and card of the result of some scores.

    Args:
        scores: the stored scores of pairs.
        measures: names in `MEASURES`.
        opinions: what the opinions are, in words; empty if there are none.
        resampling: of the intervals.
        tick: called after each measure.
    """
    frame = scores.samples()
    groups, references = pd.factorize(frame["reference"])
    resamples_groups = len(references) >= MIN_GROUPS
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES[:4]}
    mappings: dict[str, dict[str, list[float]]] = {}
    for name in measures:
        if opinions:
            drawn = groups if resamples_groups else np.arange(len(frame))
            rows, mappings[name] = _agreement(frame, name, drawn, resampling)
            tables["agreement"] += rows
        tables["monotony"] += _monotony(frame, name)
        tables["levels"] += _levels(frame, name)
        tick()
    tables["significance"] = list(_significance(tables["agreement"]))
    frames = {name: pd.DataFrame(rows) for name, rows in tables.items()}
    frames["pairs"] = frame[[*_FACTS, *map(column_of, measures)]].reset_index(drop=True)
    files = {f"{name}.parquet": _parquet(each) for name, each in frames.items() if len(each)}
    return files, {
        "scores": scores.name,
        "dataset": scores.plan["inputs"]["source"]["name"],
        "opinions": opinions,
        "measures": list(measures),
        "n_pairs": len(frame),
        "n_failed": int((frame["status"] != "ok").sum()),
        "n_references": len(references),
        "resampled": "references" if resamples_groups else "pairs",
        "mappings": mappings,
    }


_FACTS = ("reference", "distorted", "distortion", "level", "mos", "std")


def _agreement(
    frame: pd.DataFrame, name: str, groups: NDArray[Any], resampling: Resampling
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Rows of a measure's agreement, and its mappings.

    Pairs without an opinion or without a finite score are left out: those that failed, and equal
    images under PSNR.
    """
    scores, opinions, std = (
        frame[column].to_numpy(np.float64) for column in (column_of(name), "mos", "std")
    )
    kept = np.isfinite(scores) & np.isfinite(opinions)
    scores, opinions, std = scores[kept], opinions[kept], std[kept]
    _, own_groups = np.unique(groups[kept], return_inverse=True)
    rows, mappings = [], {}
    for start in STARTS:
        mapping = fit_mapping(scores, opinions, start)
        mapped = mapping(scores)
        values = agreement(scores, mapped, opinions, std)
        ends = dict.fromkeys(values, (nan, nan))
        if resampling.n_resamples:
            ends = intervals(scores, mapped, opinions, std, own_groups, resampling)
        mappings[start] = [each if np.isfinite(each) else None for each in mapping.parameters]
        for metric, value in values.items():
            low, high = ends[metric]
            facts = {"measure": name, "start": start, "n_pairs": len(scores), "metric": metric}
            rows.append({**facts, "value": value, "low": low, "high": high})
    return rows, mappings  # type: ignore[return-value]  # None stands for NaN in JSON


def _significance(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each pair of measures and each correlation, whether the first is significantly higher."""
    by_key = {(row["measure"], row["start"], row["metric"]): row for row in rows}
    for (measure, start, metric), row in by_key.items():
        others = [key for key in by_key if key[1:] == (start, metric) and key[0] != measure]
        for other in others if metric in CORRELATIONS else ():
            n = min(row["n_pairs"], by_key[other]["n_pairs"])
            verdict = differs(row["value"], by_key[other]["value"], n)
            facts = {"measure": measure, "other": other[0], "start": start, "metric": metric}
            yield {**facts, "verdict": verdict}


def _monotony(frame: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """Per distortion, how the scores of each reference follow the level; three levels at least."""
    rows = []
    column = column_of(name)
    for distortion, part in _levelled(frame, column).groupby("distortion", sort=False):
        found = [
            -spearman(each["level"].to_numpy(np.float64), each[column].to_numpy(np.float64))
            for _, each in part.groupby("reference", sort=False)
            if each["level"].nunique() >= 3
        ]
        if found:
            pooled = -spearman(*(part[key].to_numpy(np.float64) for key in ("level", column)))
            values = np.array(found)
            finite = values[np.isfinite(values)]
            rows.append(
                {
                    "measure": name,
                    "distortion": distortion,
                    "n_references": len(found),
                    "monotony": float(finite.mean()) if finite.size else nan,
                    "always_falls": float(np.mean(values > 1 - 1e-9)),
                    "pooled": pooled,
                }
            )
    return rows


def _levels(frame: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """Mean score per distortion and level."""
    column = column_of(name)
    means = _levelled(frame, column).groupby(["distortion", "level"], sort=False)[column].mean()
    found = means.rename("mean").reset_index().to_dict("records")
    return [{"measure": name, **{str(key): value for key, value in row.items()}} for row in found]


def _levelled(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """The pairs with a level whose score is a number; infinite ones are kept for ranks."""
    return frame[(frame["level"] >= 0) & frame[column].notna()]


def _parquet(frame: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.to_parquet(sink, index=False)
    return sink.getvalue()


def titles(measures: Sequence[str]) -> dict[str, str]:
    """Name -> title of each measure."""
    return {name: MEASURES[name].title for name in measures}
