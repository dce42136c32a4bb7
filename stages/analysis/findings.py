"""The result of analyse: tables and figures of stored features.

Everything comes from the features and logits of a set, in closed form; see ``quantities``.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from pipeline.progress import Progress
from stages.analysis.means import Means, group_means
from stages.analysis.pictures import encoded, fisher_picture, gradient_picture, panel
from stages.analysis.quantities import definitions
from stages.data.resize import ONE_LAYOUT
from stages.errors import InputError
from stages.introspection.preparation import (
    labels_differ,
    models_differ,
    resized_differently,
)
from stages.metrics.finite import finite_rows
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.losses import LOSSES
from stages.reflection.reduction import Group
from stages.stored_card import StoredCard
from store.featureset import FeatureSet

BY_GROUP, AVERAGE = "by-group", "average"
"""Tables of the result: one row per group of each set, and one row per set.

Columns: ``features``, the grouping columns, ``n_rows``, then the quantities that the card defines.
The average weights all groups equally.
"""
_N_PICTURES = 3


@dataclass(frozen=True, slots=True)
class AnalysisCard(StoredCard):
    """The card of an analysis, in its order.

    Attributes:
        features, dataset: feature sets that were analysed, and their data sets.
        definitions: quantity -> its definition.
        losses: loss of Theorem 1 -> its ``M``; ``None`` if it has none.
        M_from: where ``M`` is from.
        drawn_rows: rows whose gradients are drawn.
        left_out: feature set -> number of rows that are left out.
    """

    title: str
    features: tuple[str, ...]
    model: str
    dataset: tuple[str, ...]
    definitions: Mapping[str, str]
    averaged_over: str
    losses: Mapping[str, float | None]
    M_from: str
    drawn_rows: tuple[int, ...]
    left_out: Mapping[str, int]
    versions: Mapping[str, str]
    seconds: float


def found_in(
    feature_sets: Sequence[FeatureSet],
    *,
    by: Sequence[str],
    losses: Sequence[str],
    n_rows: int | None,
    row: int | None,
) -> tuple[dict[str, bytes], dict[str, Any]]:  # Any: JSON
    """The files and facts of a result: tables, figures and their definitions.

    Args:
        feature_sets: sets of one model; figures are drawn for the first.
        by: sample columns to group the rows by, if a set has them.
        losses: losses for Theorem 1.
        n_rows: number of evenly spaced rows of each set; None for all.
        row: row whose gradients are drawn; None for the first correctly classified rows.
    """
    started = time.monotonic()
    first = feature_sets[0]
    with_M, where_from = _with_M(first, losses)
    found = {each.name: _means(each, by, with_M, n_rows) for each in feature_sets}
    by_group = _frame(feature_sets, by, found)
    average = _average(by_group, list(definitions(with_M)))
    rows = [row] if row is not None else rows_to_draw(first)
    files = {
        f"{BY_GROUP}.parquet": by_group.to_parquet(index=False),
        f"{AVERAGE}.parquet": average.to_parquet(index=False),
        **_pictures(first, by_group, rows),
    }
    card = AnalysisCard(
        title=_title(feature_sets, by, found),
        features=tuple(each.name for each in feature_sets),
        model=FeaturePlan.of(first.plan).model.name,
        dataset=tuple(FeaturePlan.of(each.plan).source.name for each in feature_sets),
        definitions=definitions(with_M),
        averaged_over="groups, each counted once",
        losses=with_M,
        M_from=where_from,
        drawn_rows=tuple(rows),
        left_out={
            name: sum(total.n_left_out for total in groups.values())
            for name, groups in found.items()
        },
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("intro-pipe", "numpy")},
        },
        seconds=round(time.monotonic() - started, 3),
    )
    return files, asdict(card)


def columns_of(feature_set: FeatureSet, by: Sequence[str]) -> tuple[str, ...]:
    """The grouping columns that a set has."""
    existing = [name for name, _ in feature_set.schema.columns]
    return tuple(name for name in by if name in existing)


def rows_to_draw(feature_set: FeatureSet) -> list[int]:
    """The first correctly classified row of each of the first classes.

    The first readable row if no such row exists or there are no labels.
    """
    found: dict[int, int] = {}
    read: list[int] = []
    for shard in feature_set.shard_set.shards:
        logits = feature_set.read_chunk("logits", shard)
        labels = feature_set.read_samples(shard).to_pandas()["label"].to_numpy()
        is_read = finite_rows(feature_set.read_chunk("features", shard), logits)
        read += [shard.start + int(row) for row in np.flatnonzero(is_read)[:1]]
        is_right = is_read & (np.where(is_read[:, None], logits, 0).argmax(axis=1) == labels)
        for label in set(range(_N_PICTURES)) - found.keys():
            if (rows := np.flatnonzero(is_right & (labels == label))).size:
                found[label] = shard.start + int(rows[0])
        if len(found) == _N_PICTURES:
            break
    return [found[label] for label in sorted(found)] or read[:1]


def check_one_model(feature_sets: Sequence[FeatureSet]) -> None:
    """Raise ``InputError`` unless all sets have the same network and preparation of images.

    One network may be in the store twice, with its outputs in two orders.
    """
    reference = FeaturePlan.of(feature_sets[0].plan)
    first = reference.model
    for feature_set in feature_sets[1:]:
        plan = FeaturePlan.of(feature_set.plan)
        other = plan.model
        if other.weights_sha256 != first.weights_sha256:
            raise InputError(
                f"the sets were made with two models, '{first.name}' "
                f"({first.weights_sha256[:12]}) and '{other.name}' "
                f"({other.weights_sha256[:12]}): analyse one model's features together"
            )
        different = models_differ(other, first)
        different += labels_differ(other.class_names, first.class_names)
        resized = resized_differently(plan.source, reference.source)
        ways_out = ["extract both with one --model"] * bool(different) + [ONE_LAYOUT] * bool(
            resized
        )
        if ways_out:
            raise InputError(
                f"the images of {feature_set.plan['name']} were prepared or labelled differently "
                f"from those of {feature_sets[0].plan['name']} ({'; '.join(different + resized)}): "
                f"{' and '.join(ways_out)}"
            )


def _with_M(  # noqa: N802 - the paper's name
    feature_set: FeatureSet, names: Sequence[str]
) -> tuple[dict[str, float | None], str]:
    """The ``M`` of each loss, and its origin in words."""
    M, where_from = FeaturePlan.of(feature_set.plan).model.M, "the model's card"
    if M is None:
        if feature_set.shard_set.n_failed_rows() == feature_set.n_rows:
            raise InputError(
                f"analyse {feature_set.name}: all rows failed, so there is nothing to analyse"
            )
        where_from = f"the mean of the largest logit over {feature_set.name}"
        largest = feature_set.array("logits").max(axis=1)
        M = float(np.nanmean(largest.compute(scheduler="threads"), dtype=np.float64))
    return {loss: M if LOSSES[loss].needs_M else None for loss in names}, where_from


def _means(
    feature_set: FeatureSet,
    by: Sequence[str],
    losses: Mapping[str, float | None],
    n_rows: int | None,
) -> dict[Group, Means]:
    title = f"analyse {feature_set.plan['name']}"
    with Progress(title, feature_set.n_rows, unit="rows") as progress:
        return group_means(
            feature_set,
            losses,
            by=columns_of(feature_set, by),
            n_rows=n_rows,
            tick=progress.advance,
        )


def _frame(
    feature_sets: Sequence[FeatureSet],
    by: Sequence[str],
    found: Mapping[str, Mapping[Group, Means]],
) -> pd.DataFrame:
    """One row per group; grouping columns that a set does not have are empty."""
    columns = {each.name: columns_of(each, by) for each in feature_sets}
    rows = [
        {
            "features": name,
            **dict(zip(columns[name], group, strict=True)),
            "n_rows": total.n_rows,
            **total.means,
        }
        for name, groups in found.items()
        for group, total in groups.items()
    ]
    used = [name for name in by if any(name in here for here in columns.values())]
    frame = pd.DataFrame(rows)
    frame[used] = frame[used].convert_dtypes()  # keeps integers next to missing values
    return frame[["features", *used, *(name for name in frame if name not in ("features", *used))]]


def _average(by_group: pd.DataFrame, quantities: list[str]) -> pd.DataFrame:
    groups = by_group.groupby("features", sort=False)
    counts = groups.agg(n_groups=("n_rows", "size"), n_rows=("n_rows", "sum"))
    return counts.join(groups[quantities].mean()).reset_index()


def _pictures(
    feature_set: FeatureSet, by_group: pd.DataFrame, rows: Sequence[int]
) -> dict[str, bytes]:
    """Name -> bytes of each figure, as SVG and as PNG."""
    names = FeaturePlan.of(feature_set.plan).model.class_names
    figures = {"gradients": gradient_picture([panel(feature_set, row, names) for row in rows])}
    if "severity" in by_group and by_group["severity"].notna().any():
        figures["fisher"] = fisher_picture(by_group)
    return {
        f"{name}.{form}": encoded(figure, form)
        for name, figure in figures.items()
        for form in ("svg", "png")
    }


def _title(
    feature_sets: Sequence[FeatureSet],
    by: Sequence[str],
    found: Mapping[str, Mapping[Group, Means]],
) -> str:
    parts = []
    for each in feature_sets:
        groups = found[each.name]
        n_rows = sum(total.n_rows for total in groups.values())
        columns = " and ".join(columns_of(each, by))
        many = f", mean over {len(groups)} groups of {columns}" if len(groups) > 1 else ""
        parts.append(f"{each.plan['name']} ({n_rows:,} rows{many})")
    return " beside ".join(parts)
