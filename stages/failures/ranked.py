"""Rank the rows of each cell by every confidence of every predictor, and average over the cells.

A ranking is a confidence of a predictor, for one of its seeds. Its metrics are not sums over rows,
so the confidences of a cell are kept until its last row was read: 9 bytes for each row and ranking
of the unfinished cells. All rankings use the same resamples of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import InputError
from stages.introspection.predictors import LastLayer
from stages.judging.judgement import images_of
from stages.metrics.bootstrap import Resampling, interval
from stages.metrics.definitions import REFERENCE
from stages.metrics.finite import finite_rows
from stages.metrics.selective import SELECTIVE_METRICS, risk_curve, risks_at
from stages.reflection.reduction import Group, each_shard, group_sizes, rows_by_group
from stages.scores.known_scores import BASELINE
from store.featureset import FeatureSet
from store.shards import Shard

COVERAGE_STEPS = np.arange(1, 101) / 100
"""Coverages of the stored curves."""

_RESAMPLES_AT_ONCE = 50

Confidence = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]
"""Maps the input and output of a last layer to confidences ``[n]``, high for certain rows."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """A network whose errors are ranked.

    Attributes:
        label: label of its contender.
        seed: one of its seeds.
        layer: input and output of its last layer; ``None`` for f itself.
        confidences: name -> confidence, oriented.
    """

    label: str
    seed: int
    layer: LastLayer | None
    confidences: Mapping[str, Confidence]


class Ranking(NamedTuple):
    """Whose errors are ranked, by which confidence, for which seed."""

    predictor: str
    confidence: str
    seed: int


@dataclass(frozen=True)
class RankedTables:
    """Result of `ranked`.

    Attributes:
        by_group: one row per ranking and cell: ``n_rows`` and the metrics.
        average: one row per predictor, confidence and metric; ``gain`` is the difference to f's
            `BASELINE`.
        curves: mean risk over cells and seeds, by predictor, confidence and coverage.
        n_left_out: rows without a label or a finite prediction.
        n_cells: number of cells.
    """

    by_group: pd.DataFrame
    average: pd.DataFrame
    curves: pd.DataFrame
    n_left_out: int
    n_cells: int


def ranked(
    feature_set: FeatureSet,
    networks: Sequence[Ranked],
    resampling: Resampling,
    by: tuple[str, ...],
    *,
    tick: Callable[[int], None] = lambda _: None,
) -> RankedTables:
    """Rank the rows of each cell; the first network is f, and has the confidence `BASELINE`.

    Every head is also a confidence in the predictions of f, under its label: the probability that
    it gives to the class which f predicts.

    Raises:
        InputError: a confidence is NaN for a row with finite features, or resamples are requested
            but the source images of the rows are unknown.
    """
    reading = _Reading(feature_set, tuple(networks), by, resampling)
    cells = _Cells(by, group_sizes(feature_set, by), resampling.n_resamples)
    for part in each_shard(feature_set, reading.parts_of, tick):
        cells.take(part)
    return cells.tables()


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows of a cell.

    Attributes:
        n_rows: number of rows, those that do not count included.
        weights: weights of the counted rows, ``[n, n_resamples]``.
        correct: whether each counted row is predicted correctly, by label and seed.
        confidences: confidence of each counted row, by ranking.
    """

    n_rows: int
    weights: NDArray[np.uint8]
    correct: Mapping[tuple[str, int], NDArray[np.bool_]]
    confidences: Mapping[Ranking, NDArray[np.float64]]


@dataclass(frozen=True)
class _Reading:
    feature_set: FeatureSet
    networks: tuple[Ranked, ...]
    by: tuple[str, ...]
    resampling: Resampling

    def parts_of(self, shard: Shard) -> dict[Group, _Part]:
        """The rows of each cell in a shard, with their confidences."""
        samples = self.feature_set.read_samples(shard).to_pandas()
        features, logits = (
            self.feature_set.read_chunk(name, shard) for name in ("features", "logits")
        )
        labels = samples["label"].to_numpy()
        counts = np.flatnonzero(finite_rows(features, logits) & (labels >= 0))
        correct, confidences = self._confidences(features[counts], logits[counts], labels[counts])
        weights = np.empty((len(counts), 0), np.uint8)
        if self.resampling.n_resamples:
            rows = np.arange(shard.start, shard.stop)
            weights = self.resampling.weights(images_of(samples, rows)[counts])
        parts = {}
        for group, of_group in rows_by_group(samples, self.by).items():
            at = np.flatnonzero(np.isin(counts, of_group, assume_unique=True))
            parts[group] = _Part(
                len(of_group),
                weights[at],
                {key: each[at] for key, each in correct.items()},
                {key: each[at] for key, each in confidences.items()},
            )
        return parts

    def _confidences(
        self, features: NDArray[Any], logits: NDArray[Any], labels: NDArray[np.int64]
    ) -> tuple[dict[tuple[str, int], NDArray[np.bool_]], dict[Ranking, NDArray[np.float64]]]:
        predicted = logits.argmax(axis=1)
        correct, found = {}, {}
        for each in self.networks:
            f, z = (features, logits) if each.layer is None else each.layer(features, logits)
            correct[each.label, each.seed] = z.argmax(axis=1) == labels
            for name, confidence in each.confidences.items():
                ranking = Ranking(each.label, name, each.seed)
                found[ranking] = _without_nan(ranking, confidence(f, z))
            if each.label != REFERENCE:
                ranking = Ranking(REFERENCE, each.label, each.seed)
                found[ranking] = _without_nan(ranking, _log_probability(z, predicted))
        return correct, found


def _log_probability(logits: NDArray[Any], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """``log p_c`` of one class ``c`` of each row, also where ``p_c`` itself rounds to 1."""
    z = logits.astype(np.float64)
    rows = np.arange(len(z))
    others = z - z[rows, classes, np.newaxis]
    others[rows, classes] = -np.inf
    found: NDArray[np.float64] = -np.logaddexp(0.0, np.logaddexp.reduce(others, axis=1))
    return found


def _without_nan(ranking: Ranking, values: NDArray[np.float64]) -> NDArray[np.float64]:
    if n_bad := int(np.isnan(values).sum()):
        raise InputError(
            f"failures: '{ranking.confidence}' of '{ranking.predictor}' is not a number for "
            f"{n_bad:,} of {len(values):,} rows with finite features: omit it from --confidence, "
            "or its head from --head"
        )
    return values


@dataclass
class _Cells:
    """Unfinished cells as rows, and finished cells as numbers."""

    by: tuple[str, ...]
    n_rows: Mapping[Group, int]
    n_resamples: int
    at_work: dict[Group, list[_Part]] = field(default_factory=dict)
    by_group: list[dict[str, Any]] = field(default_factory=list)  # Any: names and numbers
    risks: list[pd.DataFrame] = field(default_factory=list)
    resampled: dict[Ranking, _RunningMean] = field(default_factory=dict)
    n_counted: int = 0

    def take(self, parts: Mapping[Group, _Part]) -> None:
        """Add the rows of a shard; complete cells become numbers."""
        for group, part in parts.items():
            found = [*self.at_work.pop(group, []), part]
            if sum(each.n_rows for each in found) == self.n_rows[group]:
                self._finish(group, found)
            else:
                self.at_work[group] = found

    def _finish(self, group: Group, parts: Sequence[_Part]) -> None:
        cell = dict(zip(self.by, group, strict=True))
        weights = np.concatenate([each.weights for each in parts])
        correct = {
            key: np.concatenate([each.correct[key] for each in parts]) for key in parts[0].correct
        }
        self.n_counted += len(weights)
        for ranking in parts[0].confidences:
            confidence = np.concatenate([each.confidences[ranking] for each in parts])
            seed = ranking.seed if (ranking.predictor, ranking.seed) in correct else 0
            is_correct = correct[ranking.predictor, seed]
            curve = risk_curve(confidence, is_correct)
            found = {name: float(each(curve)[0]) for name, each in SELECTIVE_METRICS.items()}
            self.by_group.append({**ranking._asdict(), **cell, "n_rows": len(weights), **found})
            risks = risks_at(COVERAGE_STEPS, curve)[:, 0]
            self.risks.append(
                pd.DataFrame({**ranking._asdict(), "coverage": COVERAGE_STEPS, "risk": risks})
            )
            mean = self.resampled.setdefault(ranking, _RunningMean())
            mean.add(_resampled(confidence, is_correct, weights))

    def tables(self) -> RankedTables:
        """The tables, once every cell is done."""
        by_group = pd.DataFrame(self.by_group)
        keys = ["predictor", "confidence"]
        curves = pd.concat(self.risks, ignore_index=True)
        return RankedTables(
            by_group,
            average_of(by_group, {key: mean.value for key, mean in self.resampled.items()}),
            curves.groupby([*keys, "coverage"], sort=False)["risk"].mean().reset_index(),
            sum(self.n_rows.values()) - self.n_counted,
            len(self.n_rows),
        )


def _resampled(
    confidence: NDArray[np.float64], is_correct: NDArray[np.bool_], weights: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Each metric in each resample, ``[n_metrics, n_resamples]``."""
    n_resamples = weights.shape[1]
    found = np.full((len(SELECTIVE_METRICS), n_resamples), np.nan)
    for start in range(0, n_resamples, _RESAMPLES_AT_ONCE):
        some = slice(start, start + _RESAMPLES_AT_ONCE)
        curve = risk_curve(confidence, is_correct, weights[:, some])
        found[:, some] = [metric(curve) for metric in SELECTIVE_METRICS.values()]
    return found


class _RunningMean:
    """The mean of arrays of one shape over cells, ignoring values that are not finite."""

    def __init__(self) -> None:
        self._total: NDArray[np.float64] | float = 0.0
        self._count: NDArray[np.int64] | int = 0

    def add(self, values: NDArray[np.float64]) -> None:
        is_number = np.isfinite(values)
        self._total = self._total + np.where(is_number, values, 0.0)
        self._count = self._count + is_number

    @property
    def value(self) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            mean: NDArray[np.float64] = np.asarray(self._total) / np.asarray(self._count)
        return mean


def average_of(
    by_group: pd.DataFrame, resampled: Mapping[Ranking, NDArray[np.float64]]
) -> pd.DataFrame:
    """One row per predictor, confidence and metric, with intervals; gains are over f's `BASELINE`.

    Args:
        by_group: metrics by ranking and cell.
        resampled: ranking -> metrics, averaged over cells, ``[n_metrics, n_resamples]``.
    """
    names, keys = list(SELECTIVE_METRICS), ["predictor", "confidence"]
    by_seed = by_group.groupby([*keys, "seed"], sort=False)[names].mean()
    seeds: dict[tuple[str, str], list[int]] = {}
    for predictor, confidence, seed in by_seed.index:
        seeds.setdefault((predictor, confidence), []).append(seed)
    means = {
        key: np.mean([resampled[Ranking(*key, seed)] for seed in found], axis=0)
        for key, found in seeds.items()
    }
    base = REFERENCE, BASELINE
    rows = []
    for key, found in seeds.items():
        of_seeds = by_seed.loc[[(*key, seed) for seed in found]]
        of_base = by_seed.loc[[(*base, seed) for seed in seeds[base]]].mean()
        for at, name in enumerate(names):
            value = float(of_seeds[name].mean())
            low, high = interval(value, means[key][at])
            row = {**dict(zip(keys, key, strict=True)), "metric": name, "mean": value}
            row |= {"std": float(of_seeds[name].std()), "n_seeds": len(found)}
            gain = value - float(of_base[name]) if key != base else np.nan
            ends = interval(gain, means[key][at] - means[base][at])
            row |= {"low": low, "high": high, "gain": gain, "gain_low": ends[0]}
            rows.append(row | {"gain_high": ends[1]})
    return pd.DataFrame(rows)
