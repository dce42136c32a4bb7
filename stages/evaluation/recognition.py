"""Recognition and calibration by groups of rows, from stored features, one shard at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import pandas as pd

from stages.errors import InputError
from stages.metrics.calibration import METRICS
from stages.metrics.sums import CalibrationSums, merged, sums
from stages.reflection.conditions import Condition, columns_of, matching
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.losses import softmax
from stages.reflection.reduction import Group, each_shard, rows_by_group
from store.featureset import FeatureSet
from store.shards import Shard

CLASS, LABEL = "class", "label"


def query(
    feature_set: FeatureSet,
    *,
    by: Sequence[str] = (),
    metrics: Sequence[str] = ("accuracy",),
    where: Sequence[Condition] = (),
    tick: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """Compute metrics of f in each group of rows from the logits, one shard per thread at a time.

    Args:
        feature_set: a complete feature set.
        by: sample columns to group the rows by, or ``class``, the name of the label; empty for a
            single group.
        metrics: names from ``stages.metrics.calibration.METRICS``.
        where: conditions that the rows to use satisfy.
        tick: called with the number of rows of each finished shard.

    Returns:
        One row per group, sorted, with the grouping columns, ``n_rows`` and the metrics;
        ``attrs["n_left_out"]`` counts the rows without a label or without a prediction.

    Raises:
        InputError: a column or metric is unknown, or no row remains.
    """
    stored, class_names = (
        [name for name, _ in feature_set.schema.columns],
        class_names_of(feature_set),
    )
    _check_names("column", by, [*stored, *([CLASS] if class_names else [])])
    _check_names("column", columns_of(where), stored)
    _check_names("metric", metrics, list(METRICS))
    asked, metrics = tuple(dict.fromkeys(by)), tuple(dict.fromkeys(metrics))
    by = tuple(dict.fromkeys(stored_column(feature_set, name) for name in asked))
    job = _Job(feature_set, by, tuple(where))
    found: dict[Group, CalibrationSums] = {}
    for part in each_shard(feature_set, job.sums_of, tick):
        for group, more in part.items():
            found[group] = merged([found[group], more] if group in found else [more])
    if not found:
        raise InputError(f"no row of {feature_set.name} matches {' and '.join(map(str, where))}")
    groups = sorted(found, key=lambda group: [(value is nan, value) for value in group])
    table = table_of({group: found[group] for group in groups}, by=by, metrics=metrics)
    if by != asked:
        table[CLASS] = [class_names.get(label, "") for label in table[LABEL]]
        table = table[[*asked, "n_rows", *metrics]]
    table.attrs["n_left_out"] = n_left_out(found)
    return table


def class_names_of(feature_set: FeatureSet) -> dict[int, str]:
    """Label -> name of the class; empty if the data set does not name its classes."""
    return dict(enumerate(FeaturePlan.of(feature_set.plan).source.class_names))


def stored_column(feature_set: FeatureSet, name: str) -> str:
    """The sample column of a name to group by: ``label`` for ``class``, unless that is stored."""
    is_stored = name in (column for column, _ in feature_set.schema.columns)
    return LABEL if name == CLASS and not is_stored else name


def n_left_out(sums: Mapping[Group, CalibrationSums]) -> int:
    """Number of rows excluded from all metrics: their image could not be read, or has no label."""
    return sum(total.n_failed + total.n_unlabelled for total in sums.values())


def table_of(
    sums: Mapping[Group, CalibrationSums], *, by: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """One row per group: the grouping columns, ``n_rows`` and the metrics."""
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
    where: tuple[Condition, ...]

    def sums_of(self, shard: Shard) -> dict[Group, CalibrationSums]:
        """The sums of the groups that have rows in a shard."""
        columns = list(dict.fromkeys(["label", *self.by, *columns_of(self.where)]))
        samples = self.feature_set.read_samples(shard, columns).to_pandas()
        keep = matching(samples, self.where)
        if not keep.any():
            return {}
        logits = self.feature_set.read_chunk("logits", shard)[keep].astype(np.float64)
        kept = samples[keep]
        probabilities, labels = softmax(logits), kept["label"].to_numpy()
        return {
            group: sums(probabilities[rows], labels[rows])
            for group, rows in rows_by_group(kept, self.by).items()
        }


def _check_names(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"unknown {what} '{unknown[0]}': choose from {', '.join(known)}")
