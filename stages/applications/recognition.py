"""Recognition and calibration by groups of rows, from stored features, one shard at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import dask
import numpy as np
import pandas as pd
import torch
from dask.delayed import delayed
from dask.system import CPU_COUNT

from stages.errors import InputError
from stages.introspection.predictors import Predict, sensing_probabilities
from stages.metrics.calibration import METRICS
from stages.metrics.sums import CalibrationSums, merged, sums_by_group
from store.featureset import FeatureSet
from store.shards import Shard

Group = tuple[Any, ...]  # Any: strings and numbers
"""The values of the grouping columns, in their order."""

_T = TypeVar("_T")


def query(
    feature_set: FeatureSet,
    *,
    by: Sequence[str] = (),
    metrics: Sequence[str] = ("accuracy",),
    where: Mapping[str, Sequence[Any]] | None = None,
    predict: Predict = sensing_probabilities,
    tick: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """Metrics of each group of rows, computed by Dask from one shard at a time.

    Args:
        feature_set: complete.
        by: sample columns that group the rows; none for one group of all.
        metrics: names from ``stages.metrics.calibration.METRICS``.
        where: column -> values; other rows are left out.
        predict: whose probabilities are judged; f's unless another is given.
        tick: told the rows of each shard that is done.

    Returns:
        A row for each group, sorted, with the grouping columns, ``n_rows`` and the metrics;
        ``attrs["n_left_out"]`` counts the rows without a label or without a prediction.

    Raises:
        InputError: an unknown column or metric, or no row left.
    """
    _check_names("column", [*by, *(where or {})], [name for name, _ in feature_set.schema.columns])
    _check_names("metric", metrics, list(METRICS))
    by, metrics = tuple(dict.fromkeys(by)), tuple(dict.fromkeys(metrics))
    sums = group_sums(feature_set, predict, by=by, where=where or {}, tick=tick)
    if not sums:
        raise InputError(f"no row of {feature_set.name} fits {dict(where or {})}")
    table = table_of(sums, by=by, metrics=metrics)
    table.attrs["n_left_out"] = n_left_out(sums)
    return table


def group_sums(
    feature_set: FeatureSet,
    predict: Predict,
    *,
    by: Sequence[str] = (),
    where: Mapping[str, Sequence[Any]] | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> dict[Group, CalibrationSums]:
    """The calibration sums of each group of rows; memory is bounded by the shards at work."""
    job = _Job(feature_set, predict, tuple(by), dict(where or {}))
    sums: dict[Group, CalibrationSums] = {}
    for part in each_shard(feature_set, job.sums_of, tick):
        for group, found in part.items():
            sums[group] = merged([sums[group], found] if group in sums else [found])
    return {group: sums[group] for group in sorted(sums)}


def each_shard(
    feature_set: FeatureSet, work: Callable[[Shard], _T], tick: Callable[[int], None]
) -> Iterator[_T]:
    """What ``work`` gives for every shard, in their order, from Dask's threads.

    A few shards a thread are computed ahead and no more, so memory does not grow with the set.
    Each thread computes on one core: torch would split every small product over all of them, and
    as many threads as that would get into each other's way.
    """
    shards = feature_set.require_complete().shard_set.shards
    n_ahead = 2 * CPU_COUNT
    with _single_threaded_torch(), ThreadPoolExecutor(CPU_COUNT, initializer=_one_core) as pool:
        for start in range(0, len(shards), n_ahead):
            tasks = [
                delayed(partial(_ticked, work, tick))(shard)
                for shard in shards[start : start + n_ahead]
            ]
            yield from dask.compute(*tasks, scheduler="threads", pool=pool)


def groups_of(samples: pd.DataFrame, by: Sequence[str]) -> list[Group]:
    """The group of each row; one for all where no column groups them."""
    if not by:
        return [()] * len(samples)
    return list(samples[list(by)].itertuples(index=False, name=None))


def n_left_out(sums: Mapping[Group, CalibrationSums]) -> int:
    """Rows that no metric counts: their image could not be read, or they have no label."""
    return sum(total.n_failed + total.n_unlabelled for total in sums.values())


def table_of(
    sums: Mapping[Group, CalibrationSums], *, by: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """A row for each group: the grouping columns, ``n_rows``, the metrics."""
    rows = [
        {
            **dict(zip(by, group, strict=True)),
            "n_rows": int(total.n_rows),
            **{name: float(METRICS[name](total)) for name in metrics},
        }
        for group, total in sums.items()
    ]
    return pd.DataFrame(rows, columns=[*by, "n_rows", *metrics])


@dataclass(frozen=True)
class _Job:
    feature_set: FeatureSet
    predict: Predict
    by: tuple[str, ...]
    where: dict[str, Sequence[Any]]

    def sums_of(self, shard: Shard) -> dict[Group, CalibrationSums]:
        """The sums of the groups that have rows in a shard."""
        samples = self.feature_set.read_samples(shard).to_pandas()
        keep = np.ones(len(samples), dtype=bool)
        for column, values in self.where.items():
            keep &= samples[column].isin(list(values)).to_numpy()
        if not keep.any():
            return {}
        probabilities = self.predict(
            self.feature_set.read_chunk("features", shard)[keep],
            self.feature_set.read_chunk("logits", shard)[keep],
        )
        kept = samples[keep]
        return sums_by_group(probabilities, kept["label"].to_numpy(), groups_of(kept, self.by))


def _ticked(work: Callable[[Shard], _T], tick: Callable[[int], None], shard: Shard) -> _T:
    found = work(shard)
    tick(shard.n_rows)
    return found


@contextmanager
def _single_threaded_torch() -> Iterator[None]:
    """One core a product, and as many as before when it is over."""
    n_threads = torch.get_num_threads()
    _one_core()
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _one_core() -> None:
    torch.set_num_threads(1)  # a thread that was there already keeps its own number


def _check_names(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"there is no {what} '{unknown[0]}': choose from {', '.join(known)}")
