"""Means of quantities over groups of rows, computed by shard and merged in the order of shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.analysis.quantities import Quantities, row_quantities
from stages.metrics.finite import finite_rows
from stages.reflection.reduction import Group, each_shard, rows_by_group
from store.featureset import FeatureSet
from store.shards import Shard

_BLOCK_ELEMENTS = 2**19
"""Probabilities processed at once, 4 MiB in float64; a handful of such arrays exist at a time."""


@dataclass(frozen=True)
class Means:
    """Sums of quantities over rows; a row without a quantity is excluded from its mean.

    Attributes:
        n_rows: number of rows that were read.
        n_left_out: number of further rows whose image could not be read.
        totals, counts: sum of each quantity, and the number of rows that have it.
    """

    n_rows: int
    n_left_out: int
    totals: Mapping[str, float]
    counts: Mapping[str, int]

    @property
    def means(self) -> dict[str, float]:
        """Mean of each quantity; NaN if no row has it."""
        return {
            name: total / self.counts[name] if self.counts[name] else float("nan")
            for name, total in self.totals.items()
        }


def means_of(quantities: Quantities, n_rows: int, n_left_out: int) -> Means:
    """Sums over one block of rows."""
    finite = {name: values[np.isfinite(values)] for name, values in quantities.items()}
    return Means(
        n_rows,
        n_left_out,
        {name: float(values.sum()) for name, values in finite.items()},
        {name: len(values) for name, values in finite.items()},
    )


def merged(parts: Iterable[Means]) -> Means:
    """Sums over one or more blocks."""
    first, *rest = parts
    totals, counts = dict(first.totals), dict(first.counts)
    for part in rest:
        for name in totals:
            totals[name] += part.totals[name]
            counts[name] += part.counts[name]
    everyone = [first, *rest]
    return Means(
        sum(part.n_rows for part in everyone),
        sum(part.n_left_out for part in everyone),
        totals,
        counts,
    )


def group_means(
    feature_set: FeatureSet,
    losses: Mapping[str, float | None],
    *,
    by: Sequence[str] = (),
    n_rows: int | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> dict[Group, Means]:
    """Mean quantities of each group of rows, sorted; memory is bounded by the shards in progress.

    Args:
        feature_set: a complete set.
        losses: loss -> its ``M``, for Theorem 1.
        by: sample columns that group the rows; empty for a single group.
        n_rows: number of rows to use, evenly spaced; all by default.
        tick: called with the number of rows of each finished shard.
    """
    job = _Job(feature_set, dict(losses), tuple(by), spaced(feature_set.n_rows, n_rows))
    means: dict[Group, Means] = {}
    for part in each_shard(feature_set, job.means_of, tick):
        for group, found in part.items():
            means[group] = merged([means[group], found] if group in means else [found])
    return {group: means[group] for group in sorted(means)}


def spaced(n_rows: int, n_wanted: int | None) -> NDArray[np.int64]:
    """Evenly spaced row numbers, ascending; all if ``n_wanted`` is None or at least ``n_rows``.

    >>> spaced(10, 4).tolist()
    [0, 2, 5, 7]
    """
    if n_wanted is None or n_wanted >= n_rows:
        return np.arange(n_rows)
    return np.arange(n_wanted) * n_rows // n_wanted


@dataclass(frozen=True)
class _Job:
    feature_set: FeatureSet
    losses: dict[str, float | None]
    by: tuple[str, ...]
    rows: NDArray[np.int64]

    def means_of(self, shard: Shard) -> dict[Group, Means]:
        """Means of the groups that have rows in a shard."""
        wanted = self.rows[(self.rows >= shard.start) & (self.rows < shard.stop)] - shard.start
        if not len(wanted):
            return {}
        samples = self.feature_set.read_samples(shard).to_pandas().iloc[wanted]
        features, logits = (
            self.feature_set.read_chunk(name, shard)[wanted] for name in ("features", "logits")
        )
        labels = samples["label"].to_numpy(np.int64)
        return {
            group: merged(self._blocks(features[rows], logits[rows], labels[rows]))
            for group, rows in rows_by_group(samples, self.by).items()
        }

    def _blocks(
        self,
        features: NDArray[np.float32],
        logits: NDArray[np.float32],
        labels: NDArray[np.int64],
    ) -> Iterator[Means]:
        block_rows = max(1, _BLOCK_ELEMENTS // max(features.shape[1], logits.shape[1]))
        for start in range(0, len(features), block_rows):
            rows = slice(start, start + block_rows)
            f, z, y = features[rows], logits[rows], labels[rows]
            is_read = finite_rows(f, z)
            found = row_quantities(f[is_read], z[is_read], y[is_read], self.losses)
            n_read = int(is_read.sum())
            yield means_of(found, n_read, len(z) - n_read)
