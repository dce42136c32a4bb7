"""Results of the stage evaluate.

See `stages.judging.judged_result` for their files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.make import Output
from stages.evaluation.recognition import class_names_of
from stages.introspection.contenders import Contender
from stages.introspection.predictors import sensing_probabilities
from stages.judging.beside import Beside
from stages.judging.head_judges import head_judges
from stages.judging.judged_result import card_of, files_of
from stages.judging.judgement import Judge, OtherRows, Predictions, Predictor, Rows, judged
from stages.metrics.bootstrap import Resampling
from stages.metrics.definitions import REFERENCE
from store.catalog import FeatureStore
from store.featureset import FeatureSet


def evaluated(
    store: FeatureStore,
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    *,
    beside: tuple[Beside, NDArray[np.int64]] | None,
    cells: tuple[str, ...],
    classes: NDArray[np.int64] | None,
    resampling: Resampling,
    tick: Callable[[int], None],
) -> Output:
    """The tables and the card of f beside heads.

    Args:
        beside: another set of the same samples, and for each of its rows the row here.
        cells: sample columns whose values are the cells.
        classes: classes over which each predictor is evaluated in addition to all; ``None`` for
            none.
        resampling: the bootstrap over images; with fewer than 100 resamples, no intervals.
        tick: called with the number of rows of each finished shard.
    """
    started = time.monotonic()
    judges = _judges_of(store, feature_set, REFERENCE, contenders, classes)
    other = None
    if beside is not None:
        at, rows = beside
        others = _judges_of(store, at.feature_set, at.label, at.contenders, classes)
        other = OtherRows(at.feature_set, others, rows)
        contenders = [*contenders, *at.contenders]
    found = judged(feature_set, judges, resampling, cells, beside=other, tick=tick)
    if "label" in cells:
        found = replace(found, by_group=_with_class_names(feature_set, found.by_group))
    card = card_of(feature_set, contenders, judges, resampling, cells, found, beside=other)
    return files_of(found), replace(card, seconds=round(time.monotonic() - started, 1)).to_dict()


def label_over(label: str, n_classes: int) -> str:
    """The label of a predictor that is evaluated over some of the classes.

    >>> label_over("H", 200)
    'H (200 classes)'
    """
    return f"{label} ({n_classes} classes)"


def _judges_of(
    store: FeatureStore,
    feature_set: FeatureSet,
    label: str,
    contenders: Sequence[Contender],
    classes: NDArray[np.int64] | None,
) -> list[Judge]:
    """f under a label and all seeds of heads; then again over some classes, if there are any."""
    judges: list[Judge] = [Predictor(label, 0, sensing_probabilities)]
    for contender in contenders:
        judges += head_judges(store, feature_set, contender)
    if classes is not None:
        judges += [_OverClasses(each, classes) for each in judges]
    return judges


def _with_class_names(feature_set: FeatureSet, by_group: pd.DataFrame) -> pd.DataFrame:
    """The table with a column ``class`` after ``label``; it is empty where there is no name."""
    names = class_names_of(feature_set)
    table = by_group.copy()
    classes = [names.get(label, "") for label in table["label"]]
    table.insert(list(table.columns).index("label") + 1, "class", classes)
    return table


@dataclass(frozen=True, eq=False, slots=True)
class _OverClasses:
    """A judge over some of the classes: their probabilities, which sum to one again."""

    judge: Judge
    classes: NDArray[np.int64]

    @property
    def label(self) -> str:
        """The label of the judge, with the number of classes."""
        return label_over(self.judge.label, len(self.classes))

    @property
    def seed(self) -> int:
        """The seed of the judge."""
        return self.judge.seed

    def answer(self, rows: Rows) -> Predictions:
        """Predict rows."""
        all_classes = np.asarray(self.judge.answer(rows).probabilities, np.float64)
        found = np.zeros_like(all_classes)
        found[:, self.classes] = all_classes[:, self.classes]
        with np.errstate(invalid="ignore"):  # no probability at all: the row counts as failed
            found /= found.sum(axis=1, keepdims=True)
        return Predictions(found)
