"""Evaluate predictors over the cells of a feature set: metrics, bins and resamples.

A cell is a group of rows, by default a (corruption, severity). All predictors are evaluated on a
shard while it is in memory. Once the last row of a cell has been read, its sums become a few
numbers, so only unfinished cells are held as sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import add
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import InputError
from stages.introspection.predictors import Predict
from stages.metrics.averages import average_table, difference_table
from stages.metrics.bootstrap import Resampling, resample
from stages.metrics.calibration import METRICS, summary
from stages.metrics.sums import CalibrationSums, JudgedRows, judge
from stages.reflection.groups import cell_columns
from stages.reflection.reduction import Group, each_shard, group_sizes, rows_by_group
from store.featureset import FeatureSet
from store.shards import Shard


class Rows(NamedTuple):
    """The rows of a shard: their range, features ``[n, d]`` and logits ``[n, N]`` of f."""

    shard: Shard
    features: NDArray[Any]
    logits: NDArray[Any]


class Predictions(NamedTuple):
    """What a judge says about rows.

    Attributes:
        probabilities: shape ``(n, N)``.
        information: mutual information between label and weights in nats, shape ``(n,)``; ``None``
            for a judge with one set of weights.
    """

    probabilities: NDArray[Any]
    information: NDArray[np.float64] | None = None


class Judge(Protocol):
    """A predictor to evaluate: the label of its contender, one of its seeds, and its answers."""

    @property
    def label(self) -> str:
        """Label in tables."""

    @property
    def seed(self) -> int:
        """One of the seeds of the contender."""

    def answer(self, rows: Rows) -> Predictions:
        """Predict rows."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """A judge that is a function of features and logits."""

    label: str
    seed: int
    predict: Predict

    def answer(self, rows: Rows) -> Predictions:
        """Predict rows; they have no mutual information."""
        return Predictions(self.predict(rows.features, rows.logits))


INFORMATION = "mutual_information"
"""Metric of judges with several sets of weights; see `stages.metrics.definitions`."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Result of `judged`.

    Attributes:
        by_group: one row per predictor, seed and cell: ``n_rows`` and the metrics.
        average: one row per predictor and metric; see `stages.metrics.definitions.STATISTICS`.
        differences: one row per pair of predictors and metric: ``predictor`` minus ``other`` on
            the same resamples, ``low`` and ``high``.
        bins: one row per predictor, seed, cell and confidence bin.
        n_left_out: label -> number of rows that no metric counts, summed over seeds.
    """

    by_group: pd.DataFrame
    average: pd.DataFrame
    differences: pd.DataFrame
    bins: pd.DataFrame
    n_left_out: dict[str, int]


class OtherRows(NamedTuple):
    """Another feature set of the same samples, and the predictors that read it.

    Attributes:
        rows: for each of its rows, the row of the same sample in the first set, shape ``(n,)``; see
            `stages.judging.beside.matched_rows`.
    """

    feature_set: FeatureSet
    predictors: Sequence[Judge]
    rows: NDArray[np.int64]


def judged(
    feature_set: FeatureSet,
    predictors: Sequence[Judge],
    resampling: Resampling,
    by: tuple[str, ...] | None = None,
    *,
    beside: OtherRows | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Judgement:
    """Evaluate predictors on every row, by cell; the first one is the reference for gains.

    The cells are the values of the sample columns ``by``, by default those of `cell_columns`. The
    tables have the metric `INFORMATION` if a judge gives it; it is 0 for the others. The predictors
    of ``beside`` follow in the tables. Their differences are paired, too: samples that failed in
    one of the sets are left out in both, and an image has the same weights in both.

    Raises:
        InputError: resamples are requested, but the source images of the rows are unknown.
    """
    by = cell_columns(feature_set) if by is None else by
    own = _Job(feature_set, tuple(predictors), by, resampling)
    jobs = [own]
    if beside is not None:
        other = beside.feature_set, tuple(beside.predictors)
        failed, failed_beside = _failed_rows(feature_set), _failed_rows(beside.feature_set)
        jobs = [
            replace(own, left_out=beside.rows[failed_beside]),
            _Job(*other, by, resampling, beside.rows, np.flatnonzero(np.isin(beside.rows, failed))),
        ]
    tables = _Tables(by)
    for job in jobs:
        n_rows = group_sizes(job.feature_set, by)
        for part in each_shard(job.feature_set, job.sums_of, tick):
            tables.take(job.predictors, n_rows, part)
    return tables.judgement([each for job in jobs for each in job.predictors])


def images_of(samples: pd.DataFrame, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of the source image of each of some samples.

    In a corrupted set it is the last part of the sample's name, ``fog/3/00042``: image 42 there is
    image 42 in ``snow/1``. In any other set each row is a separate image: its number is the row.

    Raises:
        InputError: a corrupted set whose samples have no such names.
    """
    if "corruption" not in samples:
        return rows
    try:
        return samples["sample_id"].str.rpartition("/")[2].to_numpy().astype(np.int64)
    except (KeyError, ValueError) as error:
        raise InputError(
            "bootstrap over images: expected samples named corruption/severity/number in a set "
            f"with corruptions, found another name ({error}): omit the intervals with 0 resamples"
        ) from error


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums of a predictor over some rows of a cell, and over its resamples.

    ``information`` is the sum over the rows, then that of each resample; ``None`` without any.
    """

    n_rows: int
    plain: CalibrationSums
    resampled: CalibrationSums
    information: NDArray[np.float64] | None = None

    def __add__(self, other: _Sums) -> _Sums:
        both = self.information, other.information
        return _Sums(
            self.n_rows + other.n_rows,
            self.plain + other.plain,
            self.resampled + other.resampled,
            None if both[0] is None or both[1] is None else both[0] + both[1],
        )

    def mean_information(self) -> NDArray[np.float64]:
        """Mean over the counted rows, then over those of each resample; NaN without any."""
        n_rows = np.append(self.plain.n_rows, self.resampled.n_rows)
        if self.information is None:
            return np.where(n_rows > 0, 0.0, np.nan)
        with np.errstate(invalid="ignore"):
            return self.information / n_rows


def _failed_rows(feature_set: FeatureSet) -> NDArray[np.int64]:
    failed = feature_set.shard_set.failed().values()
    return np.array([row for rows in failed for row in rows], np.int64)


@dataclass(frozen=True)
class _Job:
    """A feature set and its predictors.

    Attributes:
        rows: for each row, the row of the same sample in the first set; ``None`` for that set.
        left_out: rows whose samples failed in the other set.
    """

    feature_set: FeatureSet
    predictors: tuple[Judge, ...]
    by: tuple[str, ...]
    resampling: Resampling
    rows: NDArray[np.int64] | None = None
    left_out: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def sums_of(self, shard: Shard) -> dict[Group, list[_Sums]]:
        """Sums of the cells that have rows in a shard, in the order of the predictors."""
        samples = self.feature_set.read_samples(shard).to_pandas()
        arrays = (self.feature_set.read_chunk(name, shard) for name in ("features", "logits"))
        here = Rows(shard, *arrays)
        labels, weights = samples["label"].to_numpy(copy=True), self._weights(samples, shard)
        left_out = self.left_out[(self.left_out >= shard.start) & (self.left_out < shard.stop)]
        labels[left_out - shard.start] = -1  # as if it were unknown: `judge` leaves it out
        rows_of = rows_by_group(samples, self.by)
        weights_of = {group: weights[rows] for group, rows in rows_of.items()}
        sums: dict[Group, list[_Sums]] = {group: [] for group in rows_of}
        for predictor in self.predictors:  # one at a time, to free the predictions of each
            found = predictor.answer(here)
            judged_rows = judge(found.probabilities, labels)
            for group, rows in rows_of.items():
                own = judged_rows.take(rows)
                resampled = resample(own, weights_of[group])
                told = None
                if found.information is not None:
                    told = _sums_of(found.information[rows], own, weights_of[group])
                sums[group].append(_Sums(len(rows), own.sums(), resampled, told))
        return sums

    def _weights(self, samples: pd.DataFrame, shard: Shard) -> NDArray[np.uint8]:
        if self.resampling.n_resamples == 0:
            return np.empty((len(samples), 0), np.uint8)
        here = slice(shard.start, shard.stop)
        rows = np.arange(here.start, here.stop) if self.rows is None else self.rows[here]
        return self.resampling.weights(images_of(samples, rows))


def _sums_of(
    values: NDArray[np.float64], judged_rows: JudgedRows, weights: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Sum of values over the rows that count, then over those of each resample."""
    counted = np.where(judged_rows.is_counted, values, 0.0)
    return np.append(counted.sum(), counted @ weights.astype(np.float64))


@dataclass
class _Tables:
    """Unfinished cells as sums, and finished cells as numbers."""

    by: tuple[str, ...]
    at_work: dict[Group, list[_Sums]] = field(default_factory=dict)
    by_group: list[dict[str, Any]] = field(default_factory=list)  # Any: names and numbers
    bins: list[pd.DataFrame] = field(default_factory=list)
    n_left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.means: dict[str, _RunningMean] = {}
        self.metrics: tuple[str, ...] = ()

    def take(
        self,
        predictors: Sequence[Judge],
        n_rows: Mapping[Group, int],
        part: Mapping[Group, list[_Sums]],
    ) -> None:
        """Add a shard's sums; cells that have all of their ``n_rows`` become numbers."""
        for group, found in part.items():
            before = self.at_work.pop(group, None)
            sums = found if before is None else list(map(add, before, found))
            if sums[0].n_rows == n_rows[group]:
                self._finish(predictors, group, sums)
            else:
                self.at_work[group] = sums

    def judgement(self, predictors: Sequence[Judge]) -> Judgement:
        """The tables in the order of the predictors, once every cell is done."""
        order = {(each.label, each.seed): at for at, each in enumerate(predictors)}

        def sorted_by_predictor(table: pd.DataFrame) -> pd.DataFrame:
            keys = zip(table["predictor"], table["seed"], strict=True)
            at = pd.Series([order[key] for key in keys], index=table.index)
            columns = [*self.by, *(["bin"] if "bin" in table else [])]
            table = table.assign(at=at).sort_values(["at", *columns], ignore_index=True)
            return table.drop(columns="at")

        by_group = sorted_by_predictor(pd.DataFrame(self.by_group))
        bins = sorted_by_predictor(pd.concat(self.bins, ignore_index=True))
        by_seed = by_group.groupby(["predictor", "seed"], sort=False)[list(self.metrics)].mean()
        resampled = {label: mean.value for label, mean in self.means.items()}
        average, differences = (
            average_table(by_seed, resampled),
            difference_table(by_seed, resampled),
        )
        return Judgement(by_group, average, differences, bins, dict(self.n_left_out))

    def _finish(self, predictors: Sequence[Judge], group: Group, sums: list[_Sums]) -> None:
        cell = dict(zip(self.by, group, strict=True))
        is_informed = any(found.information is not None for found in sums)
        for each, found in zip(predictors, sums, strict=True):
            names = {"predictor": each.label, "seed": each.seed, **cell}
            total, values = found.plain, summary(found.plain)
            resampled = [metric(found.resampled) for metric in METRICS.values()]
            if is_informed:
                values[INFORMATION], *told = found.mean_information()
                resampled.append(np.array(told))
            self.metrics = tuple(values)
            self.by_group.append({**names, "n_rows": int(total.n_rows), **values})
            self.bins.append(_bins(total).assign(**names)[[*names, *_BIN_COLUMNS]])
            self.n_left_out[each.label] += total.n_failed + total.n_unlabelled
            of_cell = np.stack(resampled)
            self.means.setdefault(each.label, _RunningMean(of_cell.shape)).add(of_cell)


_BIN_COLUMNS = ("bin", "low", "high", "n_rows", "n_correct", "confidence_sum")


def _bins(total: CalibrationSums) -> pd.DataFrame:
    edges = np.arange(total.n_bins + 1) / total.n_bins
    columns = (
        np.arange(total.n_bins),
        edges[:-1],
        edges[1:],
        total.bin_counts.astype(np.int64),
        total.bin_correct.astype(np.int64),
        total.bin_confidence,
    )
    return pd.DataFrame(dict(zip(_BIN_COLUMNS, columns, strict=True)))


class _RunningMean:
    """The mean of arrays of one shape, ignoring values that are not finite.

    A small cell may be empty in a resample; then the others determine the mean.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._total = np.zeros(shape)
        self._count = np.zeros(shape, np.int64)

    def add(self, values: NDArray[np.float64]) -> None:
        is_number = np.isfinite(values)
        self._total += np.where(is_number, values, 0.0)
        self._count += is_number

    @property
    def value(self) -> NDArray[np.float64]:
        mean = np.full(self._total.shape, np.nan)
        np.divide(self._total, self._count, out=mean, where=self._count > 0)
        return mean
