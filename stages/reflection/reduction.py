"""Reductions of stored features: one shard at a time, in threads, by groups of rows."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from math import nan
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.cpus import n_cpus
from store.featureset import FeatureSet
from store.shards import Shard

if TYPE_CHECKING:
    import pandas as pd

Group = tuple[Any, ...]  # Any: strings and numbers
"""The values of the grouping columns, in their order."""

_T = TypeVar("_T")
_Item = TypeVar("_Item")


def each_shard(
    feature_set: FeatureSet, work: Callable[[Shard], _T], tick: Callable[[int], None]
) -> Iterator[_T]:
    """The results of ``work`` for every shard, in their order, computed in one thread per CPU.

    At most two shards per thread are computed ahead, so memory does not grow with the set. Each
    thread uses one core: torch would split every small product over all cores, and the threads
    would compete.
    """
    shards = feature_set.require_complete().shard_set.shards
    return in_threads(partial(_ticked, work, tick), shards)


def in_threads(work: Callable[[_Item], _T], items: Sequence[_Item]) -> Iterator[_T]:
    """The results of ``work`` for items of any kind, computed as in `each_shard`."""
    waiting = iter(items)
    n_threads = n_cpus()
    with _single_threaded_torch(), ThreadPoolExecutor(n_threads, initializer=_one_core) as pool:
        running = deque(pool.submit(work, item) for item in islice(waiting, 2 * n_threads))
        try:
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(work, item) for item in islice(waiting, 1))
        finally:
            for each in running:
                each.cancel()


def rows_by_group(samples: pd.DataFrame, by: Sequence[str]) -> dict[Group, NDArray[np.int64]]:
    """The rows of each group in ascending order, with groups in order of first appearance.

    All rows are one group if there are no grouping columns. Missing numbers become one value,
    ``math.nan`` itself, so that their groups match those of other shards.
    """
    import pandas as pd  # here because a query does not need it, and importing it takes long

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


def group_sizes(feature_set: FeatureSet, by: Sequence[str]) -> Counter[Group]:
    """The number of rows of each group of a feature set; reads the columns ``by`` alone."""

    def of(shard: Shard) -> Mapping[Group, int]:
        if not by:
            return {(): shard.n_rows}
        samples = feature_set.read_samples(shard, tuple(by)).to_pandas()
        return {group: len(rows) for group, rows in rows_by_group(samples, by).items()}

    sizes: Counter[Group] = Counter()
    for counts in each_shard(feature_set, of, lambda _: None):
        sizes.update(counts)
    return sizes


def _ticked(work: Callable[[Shard], _T], tick: Callable[[int], None], shard: Shard) -> _T:
    found = work(shard)
    tick(shard.n_rows)
    return found


@contextmanager
def _single_threaded_torch() -> Iterator[None]:
    """Let torch use one core, and afterwards as many as before."""
    torch = sys.modules.get("torch")  # a query does not import it: that would take longer
    n_threads = torch.get_num_threads() if torch else 0
    _one_core()
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(n_threads)


def _one_core() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # an existing thread keeps its own number
