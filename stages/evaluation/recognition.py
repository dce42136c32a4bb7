"""Recognition and calibration by groups of rows, from stored features, one shard at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.errors import InputError
from stages.metrics.calibration import METRICS, NEEDS
from stages.metrics.group_sums import Answers, group_sums
from stages.metrics.sums import SCORE_OF, CalibrationSums, merged
from stages.reflection.conditions import Condition, columns_of, matching
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.groups import Rows, group_codes, numbers
from stages.reflection.losses import softmax
from stages.reflection.reduction import Group, each_shard
from store.featureset import FeatureSet
from store.shards import Shard

if TYPE_CHECKING:
    import pandas as pd

CLASS, LABEL = "class", "label"
STORED = ("prediction", "confidence")
"""Sample columns from which most metrics follow without the logits."""


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        rows: one per group, sorted: the grouping columns, ``n_rows`` and the metrics.
        n_left_out: rows of the set without a label or without a prediction.
    """

    rows: Sequence[Mapping[str, Any]]
    n_left_out: int

    def frame(self) -> pd.DataFrame:
        """The rows as a data frame."""
        import pandas as pd

        return pd.DataFrame(self.rows)


def query(
    feature_set: FeatureSet,
    *,
    by: Sequence[str] = (),
    metrics: Sequence[str] = ("accuracy",),
    where: Sequence[Condition] = (),
    tick: Callable[[int], None] = lambda _: None,
) -> Answer:
    """Compute metrics of f in each group of rows, one shard per thread at a time.

    Metrics that follow from prediction, confidence and label are computed from these columns, the
    others from the logits.

    Args:
        feature_set: a complete feature set.
        by: sample columns to group the rows by, or ``class``, the name of the label; empty for a
            single group.
        metrics: names from ``stages.metrics.calibration.METRICS``.
        where: conditions that the rows to use satisfy.
        tick: called with the number of rows of each finished shard.

    Raises:
        InputError: a column or metric is unknown, or no row remains.
    """
    stored = [name for name, _ in feature_set.schema.columns]
    class_names = class_names_of(feature_set)
    _check_names("column", by, [*stored, *([CLASS] if class_names else [])])
    _check_names("column", columns_of(where), stored)
    _check_names("metric", metrics, list(METRICS))
    asked, metrics = tuple(dict.fromkeys(by)), tuple(dict.fromkeys(metrics))
    by = tuple(dict.fromkeys(stored_column(feature_set, name) for name in asked))
    job = _Job(feature_set, by, metrics, tuple(where))
    found: dict[Group, CalibrationSums] = {}
    for part in each_shard(feature_set, job.sums_of, tick):
        for group, more in part.items():
            found[group] = merged([found[group], more] if group in found else [more])
    if not found:
        raise InputError(f"no row of {feature_set.name} matches {' and '.join(map(str, where))}")
    groups = sorted(found, key=lambda group: [(value is nan, value) for value in group])
    n_left_out = sum(total.n_failed + total.n_unlabelled for total in found.values())
    rows = [
        {
            **_places(asked, dict(zip(by, group, strict=True)), class_names),
            "n_rows": int(found[group].n_rows),
            **{name: float(METRICS[name](found[group])) for name in metrics},
        }
        for group in groups
    ]
    return Answer(rows, n_left_out)


def _places(
    asked: Sequence[str], group: Mapping[str, Any], class_names: Mapping[int, str]
) -> dict[str, Any]:
    """The grouping columns of a group, in the order in which they were asked for."""
    named = {CLASS: class_names.get(group[LABEL], "")} if LABEL in group else {}
    return {name: {**named, **group}[name] for name in asked}


def class_names_of(feature_set: FeatureSet) -> dict[int, str]:
    """Label -> name of the class; empty if the data set does not name its classes."""
    return dict(enumerate(FeaturePlan.of(feature_set.plan).source.class_names))


def stored_column(feature_set: FeatureSet, name: str) -> str:
    """The sample column of a name to group by: ``label`` for ``class``, unless that is stored."""
    is_stored = name in (column for column, _ in feature_set.schema.columns)
    return LABEL if name == CLASS and not is_stored else name


@dataclass(frozen=True)
class _Job:
    feature_set: FeatureSet
    by: tuple[str, ...]
    metrics: tuple[str, ...]
    where: tuple[Condition, ...]

    @cached_property
    def scores(self) -> tuple[str, ...]:
        """The scores of rows that the metrics need."""
        return tuple(dict.fromkeys(NEEDS[name] for name in self.metrics if name in NEEDS))

    @cached_property
    def is_stored(self) -> bool:
        """Whether the sample columns suffice; sets of other programs may lack them."""
        known = {name for name, _ in self.feature_set.schema.columns}
        return not self.scores and known.issuperset(STORED)

    def sums_of(self, shard: Shard) -> dict[Group, CalibrationSums]:
        """The sums of the groups that have rows in a shard."""
        stored = STORED if self.is_stored else ()
        columns = list(dict.fromkeys(["label", *stored, *self.by, *columns_of(self.where)]))
        samples = self.feature_set.read_samples(shard, columns)
        keep = matching(samples.to_pandas(), self.where) if self.where else slice(None)
        codes, groups = group_codes(samples, self.by, keep)
        if not groups:
            return {}
        rows = self._answers(shard, samples, keep)
        has_fine = "ece_adaptive" in self.metrics
        return dict(
            zip(groups, group_sums(rows, codes, len(groups), has_fine=has_fine), strict=True)
        )

    def _answers(self, shard: Shard, samples: pa.Table, keep: Rows) -> Answers:
        """The predictions of the rows to keep."""
        labels = numbers(samples["label"])[keep]
        (n_classes,) = self.feature_set.schema.array("logits").row_shape
        if self.is_stored:
            prediction, confidence = (numbers(samples[name])[keep] for name in STORED)
            return Answers(n_classes, labels, prediction, confidence)
        logits = self.feature_set.read_chunk("logits", shard)[keep].astype(np.float64)
        p: NDArray[np.float64] = softmax(logits).astype(np.float64, copy=False)
        confidence = p.max(axis=1)  # NaN if any probability of the row is
        scores = {name: SCORE_OF[name](p, labels) for name in self.scores}
        return Answers(n_classes, labels, p.argmax(axis=1), confidence, scores)


def _check_names(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"unknown {what} '{unknown[0]}': choose from {', '.join(known)}")
