"""The analyse stage: what Lemma 1, Theorem 1 and Eq. 10 really give on stored features.

Everything comes from the features and logits of a set, in closed form; see ``quantities``.
"""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from pipeline.journal import Journal
from pipeline.progress import Progress
from stages.applications.means import Means, group_means
from stages.applications.pictures import encoded, fisher_picture, gradient_picture, panel
from stages.applications.quantities import definitions
from stages.applications.recognition import Group
from stages.errors import InputError
from stages.reflection.losses import LOSSES, checked_loss
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import fingerprint

VERSION = 1
THEOREM_LOSSES = ("ce", "mse-m")
CELLS = ("corruption", "severity")
_N_PICTURES = 3


@dataclass(frozen=True)
class Choice:
    """What is analysed, and how.

    Attributes:
        feature_sets: of one model; the first gives the picture.
        by: sample columns that group the rows, where a set has them.
        losses: for Theorem 1.
        n_rows: evenly spaced rows of each set; all where it is None.
        row: whose gradients are drawn; the first rows that are right, of three classes, if None.
    """

    feature_sets: tuple[FeatureSet, ...]
    by: tuple[str, ...] = CELLS
    losses: tuple[str, ...] = THEOREM_LOSSES
    n_rows: int | None = None
    row: int | None = None

    def __post_init__(self) -> None:
        _check_one_model(self.feature_sets)
        for loss in self.losses:
            checked_loss(loss, M=0.0, variant="single-pass")
        columns = {name for each in self.feature_sets for name, _ in each.schema.columns}
        if unknown := [name for name in self.by if name not in columns and name not in CELLS]:
            raise InputError(f"no column '{unknown[0]}': choose from {', '.join(sorted(columns))}")
        last = self.feature_sets[0].n_rows - 1
        if self.row is not None and not 0 <= self.row <= last:
            raise InputError(f"row {self.row}: expected one of 0 to {last}, the rows of the set")

    @property
    def plan(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines the result."""
        params = {
            "by": list(self.by),
            "losses": list(self.losses),
            "n_rows": self.n_rows,
            "row": self.row,
        }
        return {
            "stage": {"name": "analyse", "version": VERSION, "params": params},
            "inputs": {"features": [each.plan for each in self.feature_sets]},
        }

    def columns_of(self, feature_set: FeatureSet) -> tuple[str, ...]:
        """The grouping columns that a set has."""
        there = [name for name, _ in feature_set.schema.columns]
        return tuple(name for name in self.by if name in there)


@dataclass(frozen=True)
class Analysis:
    """``by_group`` has a row for each group of each set, ``average`` one for each set.

    Their columns: ``features``, the grouping columns, ``n_rows``, then the quantities that
    ``facts["definitions"]`` explains. The average counts each group once.
    """

    artifact: Artifact
    by_group: pd.DataFrame
    average: pd.DataFrame
    facts: Mapping[str, Any]  # Any: JSON


def result_of(store: FeatureStore, choice: Choice) -> Artifact:
    """Where the result of a choice is kept, whether it is there yet or not."""
    name = f"{choice.feature_sets[0].plan['name']}-analysis-{fingerprint(choice.plan)}"
    return store.artifact("result", name)


def analyse(store: FeatureStore, choice: Choice, *, journal: Journal) -> Analysis:
    """Make the result of a choice, or read it where it was made before.

    Raises:
        InputError, StoreError: see the messages.
    """
    artifact = result_of(store, choice)
    if not artifact.is_settled():
        journal.begin()
        store.prepare()
        _make(artifact, choice)
    by_group, average = (
        pd.read_parquet(io.BytesIO(artifact.read(f"{name}.parquet")))
        for name in ("by-group", "average")
    )
    return Analysis(artifact, by_group, average, artifact.card())


def _make(artifact: Artifact, choice: Choice) -> None:
    artifact.claim(choice.plan)
    started = time.monotonic()
    losses, where_from = _with_M(choice)
    found = {each.name: _means(each, choice, losses) for each in choice.feature_sets}
    by_group = _frame(choice, found)
    average = _average(by_group, list(definitions(losses)))
    rows = [choice.row] if choice.row is not None else rows_to_draw(choice.feature_sets[0])
    files = {
        "by-group.parquet": by_group.to_parquet(index=False),
        "average.parquet": average.to_parquet(index=False),
        **_pictures(choice, by_group, rows),
    }
    model = choice.feature_sets[0].plan["inputs"]["model"]
    facts = {
        "title": _title(choice, found),
        "features": [each.name for each in choice.feature_sets],
        "model": model["name"],
        "dataset": [each.plan["inputs"]["source"]["name"] for each in choice.feature_sets],
        "definitions": definitions(losses),
        "averaged_over": "groups, each counted once",
        "losses": losses,
        "M_from": where_from,
        "drawn_rows": rows,
        "left_out": {
            name: sum(total.n_left_out for total in groups.values())
            for name, groups in found.items()
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("intro-pipe", "numpy")},
        },
        "seconds": round(time.monotonic() - started, 3),
    }
    artifact.write(files, facts)


def rows_to_draw(feature_set: FeatureSet, n_classes: int = _N_PICTURES) -> list[int]:
    """The first row that the network gets right of each of the first classes.

    The first row that was read, where none of these classes has a right one or has labels at all.
    """
    found: dict[int, int] = {}
    read: list[int] = []
    for shard in feature_set.shard_set.shards:
        logits = feature_set.read_chunk("logits", shard)
        labels = feature_set.read_samples(shard).to_pandas()["label"].to_numpy()
        is_read = np.isfinite(logits).all(axis=1)
        read += [shard.start + int(row) for row in np.flatnonzero(is_read)[:1]]
        is_right = is_read & (np.where(is_read[:, None], logits, 0).argmax(axis=1) == labels)
        for label in set(range(n_classes)) - found.keys():
            if (rows := np.flatnonzero(is_right & (labels == label))).size:
                found[label] = shard.start + int(rows[0])
        if len(found) == n_classes:
            break
    return [found[label] for label in sorted(found)] or read[:1]


def _check_one_model(feature_sets: Sequence[FeatureSet]) -> None:
    first, *rest = (each.plan["inputs"]["model"] for each in feature_sets)
    for other in rest:
        if other["weights_sha256"] != first["weights_sha256"]:
            raise InputError(
                f"the sets were made with two models, '{first['name']}' "
                f"({first['weights_sha256'][:12]}) and '{other['name']}' "
                f"({other['weights_sha256'][:12]}): analyse one model's features together"
            )


def _with_M(choice: Choice) -> tuple[dict[str, float | None], str]:  # noqa: N802 - the paper's name
    """Each loss with its ``M``, and in words where that is from."""
    feature_set = choice.feature_sets[0]
    M, where_from = feature_set.plan["inputs"]["model"].get("M"), "the model's card"
    if M is None:
        where_from = f"the mean of the largest logit over {feature_set.name}"
        largest = feature_set.array("logits").max(axis=1)
        M = float(np.nanmean(largest.compute(scheduler="threads"), dtype=np.float64))
    return {loss: M if LOSSES[loss].needs_M else None for loss in choice.losses}, where_from


def _means(
    feature_set: FeatureSet, choice: Choice, losses: Mapping[str, float | None]
) -> dict[Group, Means]:
    title = f"analyse {feature_set.plan['name']}"
    with Progress(title, feature_set.n_rows, unit="rows") as progress:
        return group_means(
            feature_set,
            losses,
            by=choice.columns_of(feature_set),
            n_rows=choice.n_rows,
            tick=progress.advance,
        )


def _frame(choice: Choice, found: Mapping[str, Mapping[Group, Means]]) -> pd.DataFrame:
    """A row for each group; a grouping column that a set does not have is empty there."""
    columns = {each.name: choice.columns_of(each) for each in choice.feature_sets}
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
    used = [name for name in choice.by if any(name in here for here in columns.values())]
    frame = pd.DataFrame(rows)
    frame[used] = frame[used].convert_dtypes()  # whole numbers stay whole beside an empty one
    return frame[["features", *used, *(name for name in frame if name not in ("features", *used))]]


def _average(by_group: pd.DataFrame, quantities: list[str]) -> pd.DataFrame:
    groups = by_group.groupby("features", sort=False)
    counts = groups.agg(n_groups=("n_rows", "size"), n_rows=("n_rows", "sum"))
    return counts.join(groups[quantities].mean()).reset_index()


def _pictures(choice: Choice, by_group: pd.DataFrame, rows: Sequence[int]) -> dict[str, bytes]:
    """Name -> bytes of each picture, as SVG and as PNG."""
    feature_set = choice.feature_sets[0]
    names = feature_set.plan["inputs"]["model"].get("class_names") or ()
    figures = {"gradients": gradient_picture([panel(feature_set, row, names) for row in rows])}
    if "severity" in by_group and by_group["severity"].notna().any():
        figures["fisher"] = fisher_picture(by_group)
    return {
        f"{name}.{form}": encoded(figure, form)
        for name, figure in figures.items()
        for form in ("svg", "png")
    }


def _title(choice: Choice, found: Mapping[str, Mapping[Group, Means]]) -> str:
    parts = []
    for each in choice.feature_sets:
        groups = found[each.name]
        n_rows = sum(total.n_rows for total in groups.values())
        by = " and ".join(choice.columns_of(each))
        many = f", mean over {len(groups)} groups of {by}" if len(groups) > 1 else ""
        parts.append(f"{each.plan['name']} ({n_rows:,} rows{many})")
    return " beside ".join(parts)
