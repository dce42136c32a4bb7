"""Recognition and calibration by groups of rows, from stored features, one shard at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any, TypeVar

import dask
import numpy as np
import pandas as pd
from dask.delayed import delayed
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from stages.errors import InputError
from stages.metrics.calibration import METRICS
from stages.metrics.sums import CalibrationSums, merged, sums
from stages.reflection.losses import softmax
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
    tick: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """Metrics of f in each group of rows, computed by Dask from the logits of a shard at a time.

    Args:
        feature_set: complete.
        by: sample columns that group the rows; none for one group of all.
        metrics: names from ``stages.metrics.calibration.METRICS``.
        where: column -> values; other rows are left out.
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
    job = _Job(feature_set, by, dict(where or {}))
    found: dict[Group, CalibrationSums] = {}
    for part in each_shard(feature_set, job.sums_of, tick):
        for group, more in part.items():
            found[group] = merged([found[group], more] if group in found else [more])
    if not found:
        raise InputError(f"no row of {feature_set.name} fits {dict(where or {})}")
    groups = sorted(found, key=lambda group: [(value is nan, value) for value in group])
    table = table_of({group: found[group] for group in groups}, by=by, metrics=metrics)
    table.attrs["n_left_out"] = n_left_out(found)
    return table


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


def rows_by_group(samples: pd.DataFrame, by: Sequence[str]) -> dict[Group, NDArray[np.int64]]:
    """The rows of each group, ascending, groups in the order in which they first appear.

    All rows are one group where no column groups them. Missing numbers are one value, ``math.nan``
    itself, so that their groups are found again in other shards.
    """
    codes = np.zeros(len(samples), np.int64)
    for column in by:
        of_column, values = pd.factorize(samples[column], use_na_sentinel=False)
        codes, _ = pd.factorize(codes * len(values) + of_column)
    counts = np.bincount(codes)
    order, starts = np.argsort(codes, kind="stable"), np.cumsum(counts) - counts
    firsts = samples[list(by)].iloc[order[starts]].itertuples(index=False, name=None)
    groups = [tuple(nan if value != value else value for value in first) for first in firsts]
    rows_of = np.split(order, starts[1:])[: len(counts)]
    return dict(zip(groups if by else [()] * len(counts), rows_of, strict=True))


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
    by: tuple[str, ...]
    where: dict[str, Sequence[Any]]

    def sums_of(self, shard: Shard) -> dict[Group, CalibrationSums]:
        """The sums of the groups that have rows in a shard."""
        columns = list(dict.fromkeys(["label", *self.by, *self.where]))
        samples = self.feature_set.read_samples(shard, columns).to_pandas()
        keep = np.ones(len(samples), dtype=bool)
        for column, values in self.where.items():
            keep &= samples[column].isin(list(values)).to_numpy()
        if not keep.any():
            return {}
        logits = self.feature_set.read_chunk("logits", shard)[keep].astype(np.float64)
        kept = samples[keep]
        probabilities, labels = softmax(logits), kept["label"].to_numpy()
        return {
            group: sums(probabilities[rows], labels[rows])
            for group, rows in rows_by_group(kept, self.by).items()
        }


def _ticked(work: Callable[[Shard], _T], tick: Callable[[int], None], shard: Shard) -> _T:
    found = work(shard)
    tick(shard.n_rows)
    return found


@contextmanager
def _single_threaded_torch() -> Iterator[None]:
    """One core a product, and as many as before when it is over."""
    torch = sys.modules.get("torch")  # a query does without: importing it takes longer than asking
    n_threads = torch.get_num_threads() if torch else 0
    _one_core()
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(n_threads)


def _one_core() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # a thread that was there already keeps its own number


def _check_names(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"there is no {what} '{unknown[0]}': choose from {', '.join(known)}")
