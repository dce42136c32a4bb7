"""Recognition, calibration and scores by groups of rows, from stored features, shard by shard."""

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

    from stages.scores.asked_scores import Scored

CLASS, LABEL = "class", "label"
STORED = ("prediction", "confidence")
"""Sample columns from which most metrics follow without the logits."""

ARRAYS = ("features", "logits")
"""What scores are computed from."""


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        rows: one per group, sorted: the grouping columns, ``n_rows``, the metrics and the mean of
            each score over these rows.
        n_left_out: rows of the set without a prediction or score or, if there are metrics, without
            a label.
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
    scores: Sequence[Scored] = (),
    where: Sequence[Condition] = (),
    tick: Callable[[int], None] = lambda _: None,
) -> Answer:
    """Compute metrics of f and mean scores in each group of rows, one shard per thread at a time.

    Metrics that follow from prediction, confidence and label are computed from these columns, the
    others from the logits. Scores need no labels, but beside metrics they are averaged over the
    same rows, those with labels.

    Args:
        feature_set: a complete feature set.
        by: sample columns to group the rows by, or ``class``, the name of the label; empty for a
            single group.
        metrics: names from ``stages.metrics.calibration.METRICS``.
        scores: scores of f and of heads; see `stages.scores.asked_scores`.
        where: conditions that the rows to use satisfy.
        tick: called with the number of rows of each finished shard.

    Raises:
        InputError: a column or metric is unknown, two columns have the same name, or no row
            remains.
    """
    stored = [name for name, _ in feature_set.schema.columns]
    class_names = class_names_of(feature_set)
    _check_names("column", by, [*stored, *([CLASS] if class_names else [])])
    _check_names("column", columns_of(where), stored)
    _check_names("metric", metrics, list(METRICS))
    asked, metrics = tuple(dict.fromkeys(by)), tuple(dict.fromkeys(metrics))
    by = tuple(dict.fromkeys(stored_column(feature_set, name) for name in asked))
    columns = [column for each in scores for column in each.columns]
    if twice := set(asked) & {*metrics, *columns}:
        raise InputError(f"'{min(twice)}' is asked for as a column to group by and as a number")
    job = _Job(feature_set, by, metrics, scores, tuple(where))
    found: dict[Group, _Sums] = {}
    for part in each_shard(feature_set, job.sums_of, tick):
        for group, more in part.items():
            found[group] = found[group].plus(more) if group in found else more
    if not found:
        raise InputError(f"no row of {feature_set.name} matches {' and '.join(map(str, where))}")
    groups = sorted(found, key=lambda group: [(value is nan, value) for value in group])
    rows = [
        {
            **_places(asked, dict(zip(by, group, strict=True)), class_names),
            "n_rows": found[group].n_rows,
            **found[group].numbers(metrics, columns),
        }
        for group in groups
    ]
    return Answer(rows, sum(total.n_left_out for total in found.values()))


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
class _Sums:
    """Sums over the rows of a group.

    Attributes:
        n_rows: rows that are counted.
        n_left_out: other rows.
        scores: the sum of each score, shape ``(n_scores,)``.
        judged: what metrics are computed from; None without metrics.
    """

    n_rows: int
    n_left_out: int
    scores: NDArray[np.float64]
    judged: CalibrationSums | None

    def plus(self, more: _Sums) -> _Sums:
        """The sums of these rows and of more rows of the group."""
        parts = [each.judged for each in (self, more) if each.judged is not None]
        return _Sums(
            self.n_rows + more.n_rows,
            self.n_left_out + more.n_left_out,
            self.scores + more.scores,
            merged(parts) if parts else None,
        )

    def numbers(self, metrics: Sequence[str], scores: Sequence[str]) -> dict[str, float]:
        """The metrics, and the mean of each score; NaN if no row is counted."""
        found = {name: float(METRICS[name](self.judged)) for name in metrics if self.judged}
        means = self.scores / self.n_rows if self.n_rows else np.full(len(scores), nan)
        return {**found, **dict(zip(scores, means.tolist(), strict=True))}


@dataclass(frozen=True)
class _Job:
    feature_set: FeatureSet
    by: tuple[str, ...]
    metrics: tuple[str, ...]
    scores: Sequence[Scored]
    where: tuple[Condition, ...]

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """What the metrics need of each row beside prediction, confidence and label."""
        return tuple(dict.fromkeys(NEEDS[name] for name in self.metrics if name in NEEDS))

    @cached_property
    def is_stored(self) -> bool:
        """Whether the sample columns suffice; sets of other programs may lack them."""
        known = {name for name, _ in self.feature_set.schema.columns}
        return not self.needs and known.issuperset(STORED)

    def sums_of(self, shard: Shard) -> dict[Group, _Sums]:
        """The sums of the groups that have rows in a shard."""
        stored = STORED if self.is_stored and self.metrics else ()
        columns = list(dict.fromkeys(["label", *stored, *self.by, *columns_of(self.where)]))
        samples = self.feature_set.read_samples(shard, columns, is_decoded=bool(self.where))
        keep = matching(samples, self.where) if self.where else slice(None)
        codes, groups = group_codes(samples, self.by, keep)
        if not groups:
            return {}
        values = self._scored(shard, keep, len(codes))
        counted = ~np.logical_or.reduce(np.isnan(values), axis=0)
        judged: Sequence[CalibrationSums | None] = [None] * len(groups)
        if self.metrics:
            rows = self._answers(shard, samples, keep, counted)
            has_fine = "ece_adaptive" in self.metrics
            judged = group_sums(rows, codes, len(groups), has_fine=has_fine)
            counted = ~rows.failed & (rows.labels >= 0)
        sums = _by_group(codes, counted, values, len(groups))
        parts = zip(*sums, judged, strict=True)
        return dict(zip(groups, (_Sums(*part) for part in parts), strict=True))

    def _scored(self, shard: Shard, keep: Rows, n_rows: int) -> NDArray[np.float64]:
        """The scores of the rows to keep, ``[n_scores, n_rows]``; NaN in failed rows."""
        if not self.scores:
            return np.empty((0, n_rows))
        from stages.scores.asked_scores import values_of

        arrays = [self.feature_set.read_chunk(name, shard)[keep] for name in ARRAYS]
        return values_of(self.scores, *arrays)

    def _answers(
        self, shard: Shard, samples: pa.Table, keep: Rows, usable: NDArray[np.bool_]
    ) -> Answers:
        """The predictions of the rows to keep; rows that are not usable count as failed."""
        labels = numbers(samples["label"])[keep]
        (n_classes,) = self.feature_set.schema.array("logits").row_shape
        if self.is_stored:
            prediction, confidence = (numbers(samples[name])[keep] for name in STORED)
            return Answers(n_classes, labels, prediction, np.where(usable, confidence, nan))
        logits = self.feature_set.read_chunk("logits", shard)[keep].astype(np.float64)
        p: NDArray[np.float64] = softmax(logits).astype(np.float64, copy=False)
        confidence = np.where(usable, p.max(axis=1), nan)  # NaN if any probability of the row is
        scores = {name: SCORE_OF[name](p, labels) for name in self.needs}
        return Answers(n_classes, labels, p.argmax(axis=1), confidence, scores)


def _by_group(
    codes: NDArray[np.int64],
    counted: NDArray[np.bool_],
    values: NDArray[np.float64],
    n_groups: int,
) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """Rows that are counted, other rows, and the sum of each score ``[n_groups, n_scores]``."""
    kept = codes[counted]
    n_rows, n_all = (np.bincount(each, minlength=n_groups) for each in (kept, codes))
    sums = np.empty((n_groups, len(values)))
    for at, each in enumerate(values):
        sums[:, at] = np.bincount(kept, each[counted], n_groups)
    return n_rows.tolist(), (n_all - n_rows).tolist(), sums


def _check_names(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"unknown {what} '{unknown[0]}': choose from {', '.join(known)}")
