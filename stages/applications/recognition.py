"""Recognition and calibration of f and H, by groups of rows, from stored features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import pandas as pd
from dask.delayed import delayed
from numpy.typing import NDArray

from stages.errors import InputError
from stages.metrics.calibration import METRICS, CalibrationSums, merged, sums_by_group
from stages.reflection.losses import softmax
from store.featureset import FeatureSet
from store.shards import Shard

Group = tuple[Any, ...]
"""The values of the grouping columns, in their order."""

Predict = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""Features ``[n, d]`` and logits ``[n, N]`` to probabilities ``[n, N]``."""


def sensing_probabilities(
    features: NDArray[np.float32],  # noqa: ARG001 - what every predictor is given
    logits: NDArray[np.float32],
) -> NDArray[np.float64]:
    """What f itself says: the softmax of its logits, in float64."""
    return softmax(logits.astype(np.float64)).astype(np.float64, copy=False)


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
    feature_set.require_complete()
    job = _Job(feature_set, predict, tuple(by), dict(where or {}), tick)
    tasks = [delayed(job.sums_of)(shard) for shard in feature_set.shard_set.shards]
    parts: list[dict[Group, CalibrationSums]] = list(dask.compute(*tasks, scheduler="threads"))
    groups = sorted({group for part in parts for group in part})
    return {group: merged(part[group] for part in parts if group in part) for group in groups}


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
            "n_rows": total.n_rows,
            **{name: METRICS[name](total) for name in metrics},
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
    tick: Callable[[int], None]

    def sums_of(self, shard: Shard) -> dict[Any, CalibrationSums]:
        """The sums of the groups that have rows in a shard."""
        samples = self.feature_set.read_samples(shard).to_pandas()
        keep = np.ones(len(samples), dtype=bool)
        for column, values in self.where.items():
            keep &= samples[column].isin(list(values)).to_numpy()
        if not keep.any():
            self.tick(shard.n_rows)
            return {}
        probabilities = self.predict(
            self.feature_set.read_chunk("features", shard)[keep],
            self.feature_set.read_chunk("logits", shard)[keep],
        )
        kept = samples[keep]
        groups: list[Any] = list(kept[list(self.by)].itertuples(index=False, name=None))
        if not self.by:
            groups = [()] * len(kept)
        sums: dict[Any, CalibrationSums] = dict(
            sums_by_group(probabilities, kept["label"].to_numpy(), groups)
        )
        self.tick(shard.n_rows)
        return sums


def _check_names(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"there is no {what} '{unknown[0]}': choose from {', '.join(known)}")
