"""The rows of a feature set as tables, with predictions and scores of f and of heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.errors import InputError
from stages.export.image_paths import check_images, image_path
from stages.metrics.finite import finite_rows
from stages.reflection.conditions import Condition, matching
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.reduction import each_shard
from stages.scores.asked_scores import Scored, column_of
from stages.scores.factors import Rows
from store.featureset import FeatureSet
from store.shards import Shard

STORED = ("row", "sample_id", "label", "prediction", "confidence", "status")
"""The sample columns that extraction adds to those of a data set."""

ANSWERS = ("prediction", "prediction_name")
"""Columns of each predictor beside its scores."""


@dataclass(frozen=True)
class Exported:
    """The rows to export, and what to add to their sample columns.

    Attributes:
        feature_set: a complete feature set.
        scored: f, and heads, with their scores; see `stages.scores.asked_scores`.
        where: conditions that the rows to export satisfy.
        sample_ids: samples to export; all if ``None``.
        images: folder of the images or beginning of their URLs; without it there are no paths.
        more: further columns, with a row for each row of the set, such as those of a curation.
    """

    feature_set: FeatureSet
    scored: Sequence[Scored]
    where: Sequence[Condition] = ()
    sample_ids: frozenset[str] | None = None
    images: str | None = None
    more: pa.Table | None = None

    @property
    def predictors(self) -> tuple[str, ...]:
        """The labels of f and of the heads."""
        return tuple(each.label for each in self.scored)

    @cached_property
    def model_name(self) -> str:
        """Name of the network."""
        return FeaturePlan.of(self.feature_set.plan).model.name

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the network's outputs, from the model, else from the data set, else numbers."""
        n_classes = self.feature_set.schema.array("logits").row_shape[0]
        return FeaturePlan.of(self.feature_set.plan).output_names(n_classes)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in their order."""
        stored = [name for name, _ in self.feature_set.schema.columns]
        first = [name for name in ("row", "sample_id") if name in stored]
        image = [] if self.images is None else ["image"]
        return tuple(dict.fromkeys([*first, *image, "label", *self._added_columns(), *stored]))

    def check(self) -> None:
        """Raise ``InputError`` if the rows cannot be exported.

        That is: the set has no column of labels, two columns would have the same name, some of
        ``sample_ids`` are not in the set, or ``images`` does not hold its images.
        """
        name, columns = self.feature_set.name, [c for c, _ in self.feature_set.schema.columns]
        if missing := sorted({"sample_id", "label"} - set(columns)):
            raise InputError(f"{name}: has no column {missing[0]}, only {', '.join(columns)}")
        names = Counter([*self._added_columns(), *(c for c in columns if c not in STORED)])
        if twice := [column for column, n in names.items() if n > 1]:
            raise InputError(
                f"{name}: expected different columns, found two named {twice[0]!r}: leave out the "
                "option that adds it, or name the head as LABEL=NAME"
            )
        if self.images is not None:
            check_images(self.images, next(self._ids_by_shard()), name)
        if self.sample_ids is not None:
            self._check_sample_ids(self.sample_ids)

    def tables(self, tick: Callable[[int], None] = lambda _: None) -> Iterator[pa.Table]:
        """Yield the selected rows in order, in one table per shard that has any.

        The tables have the sample columns and, if there are images, their path ``image``; the name
        of each label, ``label_name``; and for f and each head the columns ``prediction``,
        ``prediction_name`` and the scores, preceded by the label of the head, as in
        ``H_confidence``. In a failed row, or if a head's logits are not finite, the prediction is
        -1, its name null, and the scores are NaN.
        """
        tables = each_shard(self.feature_set, self._table, tick)
        return (table for table in tables if table is not None)

    def _ids_by_shard(self) -> Iterator[list[str]]:
        for shard in self.feature_set.shard_set.shards:
            yield self.feature_set.read_samples(shard, ["sample_id"])["sample_id"].to_pylist()

    def _check_sample_ids(self, sample_ids: frozenset[str]) -> None:
        missing = set(sample_ids)
        for ids in self._ids_by_shard():
            missing.difference_update(ids)
        if missing:
            raise InputError(
                f"--samples: {len(missing):,} of {len(sample_ids):,} samples are not in "
                f"{self.feature_set.name} (first: {min(missing)!r}; its ids look like "
                f"{next(self._ids_by_shard())[0]!r}): is this the list of another data set?"
            )

    def _added_columns(self) -> list[str]:
        of_predictors = [
            column
            for each in self.scored
            for column in (*(column_of(each.label, name) for name in ANSWERS), *each.columns)
        ]
        image = [] if self.images is None else ["image"]
        more = [] if self.more is None else self.more.column_names
        return [*image, "label_name", *of_predictors, *more]

    def _table(self, shard: Shard) -> pa.Table | None:
        samples = self.feature_set.read_samples(shard)
        rows = np.flatnonzero(self._is_selected(samples))
        if not rows.size:
            return None
        arrays = [self.feature_set.read_chunk(name, shard)[rows] for name in ("features", "logits")]
        columns = self._columns(samples.take(rows), *arrays)
        if self.more is not None:
            more = self.more.take(shard.start + rows)
            columns |= dict(zip(more.column_names, more.columns, strict=True))
        return pa.table({name: columns[name] for name in self.columns})

    def _is_selected(self, samples: pa.Table) -> NDArray[np.bool_]:
        where = [*self.where]
        if self.sample_ids is not None:
            where.append(Condition("sample_id", tuple(self.sample_ids)))
        return matching(samples, where)

    def _columns(self, samples: pa.Table, features: Rows, logits: Rows) -> dict[str, Any]:
        """The columns of some rows by name; Arrow arrays."""
        stored = dict(zip(samples.column_names, samples.columns, strict=True))
        found = {"label_name": self._named(stored["label"].to_numpy())}
        if self.images is not None:
            paths = [image_path(self.images, each) for each in stored["sample_id"].to_pylist()]
            found["image"] = pa.array(paths, pa.string())
        for each in self.scored:
            found |= self._answers(each, *each.last_layer(features, logits))
        return found | stored  # the prediction and the confidence of f are those of the store

    def _answers(self, scored: Scored, hidden: Rows, logits: Rows) -> dict[str, Any]:
        """The columns of a predictor, from the input and output of its last layer."""
        prediction = np.where(finite_rows(hidden, logits), logits.argmax(axis=1), -1)
        answers = zip(ANSWERS, (pa.array(prediction), self._named(prediction)), strict=True)
        columns = {column_of(scored.label, name): column for name, column in answers}
        values = map(pa.array, scored.values(hidden, logits))
        return {**columns, **dict(zip(scored.columns, values, strict=True))}

    def _named(self, classes: NDArray[np.int64]) -> pa.Array:
        names = self.class_names
        found = [names[each] if 0 <= each < len(names) else None for each in classes.tolist()]
        return pa.array(found, pa.string())
