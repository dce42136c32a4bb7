"""The scores that are asked for by name: checked, fitted to training rows, and computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.introspection.preparation import check_alike
from stages.metrics.definitions import REFERENCE
from stages.metrics.finite import finite_rows
from stages.scores.factors import Rows, Score, TrainingRows, as_it_is, row_blocks
from stages.scores.known_scores import SCORES
from store.catalog import FeatureStore
from store.featureset import FeatureSet

if TYPE_CHECKING:
    from pipeline.fields import Labelled
    from stages.introspection.predictors import LastLayer
    from stages.scores.predictor import Predictor

ASKED = tuple(name for name, kind in SCORES.items() if not kind.is_perturbed)
"""Scores of stored rows: all but those of perturbed images."""

FITTED = tuple(name for name in ASKED if SCORES[name].fit is not None)
"""Those that are fitted to training rows."""


@dataclass(frozen=True)
class Scored:
    """A predictor, f or a head, and its scores.

    Attributes:
        label: its name in columns; see `column_of`.
        last_layer: maps f's features and logits to input and output of its last layer.
        scores: name -> score of these.
    """

    label: str
    last_layer: LastLayer
    scores: Mapping[str, Score]

    @property
    def columns(self) -> list[str]:
        """Names of the columns of its scores."""
        return [column_of(self.label, name) for name in self.scores]

    def values(self, hidden: Rows, logits: Rows) -> NDArray[np.float64]:
        """The scores of rows, ``[len(scores), n]``, from input and output of the last layer.

        They are NaN in rows where one of these is not finite.
        """
        finite = finite_rows(hidden, logits)
        if finite.all():
            return np.array([score(hidden, logits) for score in self.scores.values()])
        values = np.full((len(self.scores), len(logits)), np.nan)
        if finite.any():
            hidden, logits = hidden[finite], logits[finite]
            values[:, finite] = [score(hidden, logits) for score in self.scores.values()]
        return values


def column_of(predictor: str, name: str) -> str:
    """Name of a column of a predictor: f's are named as in the sample table.

    >>> column_of("f", "confidence"), column_of("H", "confidence")
    ('confidence', 'H_confidence')
    """
    return name if predictor == REFERENCE else f"{predictor}_{name}"


def check_asked(names: Sequence[str], training: str | None) -> None:
    """Raise ``InputError`` for an unknown score, missing training rows, or unused ones."""
    if unknown := [name for name in names if name not in ASKED]:
        raise InputError(f"unknown score '{unknown[0]}': choose from {', '.join(ASKED)}")
    fitted = [name for name in names if name in FITTED]
    if fitted and training is None:
        raise InputError(f"score {fitted[0]}: expected --training FEATURES, to which it is fitted")
    if not fitted and training is not None:
        raise InputError(
            f"--training: none of the scores is fitted; add one of {', '.join(FITTED)}"
        )


def asked_scores(
    store: FeatureStore,
    feature_set: FeatureSet,
    names: Sequence[str],
    training: FeatureSet | None = None,
    heads: Sequence[Labelled] = (),
    tick: Callable[[int], None] = lambda _: None,
) -> tuple[Scored, ...]:
    """The scores of f and of heads by name, fitted to training rows if they need it.

    A head with several seeds is scored with the first.

    Args:
        store: has the heads, and the network for scores that need its last layer.
        feature_set: rows to score, which need no labels.
        names: some of `ASKED`; repetitions do not count.
        training: features of training rows from the same network, for those of `FITTED`.
        heads: names of heads, and their labels.
        tick: called with numbers of training rows, as they are read.

    Raises:
        InputError: as `check_asked` and `first_predictors`; the sets are of different networks; or
            the rows do not suffice to fit a score.
    """
    check_asked(names, None if training is None else training.name)
    plain = {name: score for name in names if (score := SCORES[name].score) is not None}
    if not heads and len(plain) == len(set(names)):
        return (Scored(REFERENCE, as_it_is, plain),)
    from stages.scores.predictor import first_predictors, training_rows  # imports torch

    if training is not None:
        check_alike(feature_set, training.require_usable())

    def scored(predictor: Predictor) -> Scored:
        rows = None if training is None else training_rows(predictor, training, tick)
        kinds = {name: SCORES[name] for name in names}
        scores = {
            name: kind.fitted(lambda: _given(rows), predictor.load_linear)
            for name, kind in kinds.items()
        }
        return Scored(predictor.label, predictor.last_layer, scores)

    return tuple(map(scored, first_predictors(store, feature_set, heads)))


def columns_of_scores(scored: Sequence[Scored]) -> list[str]:
    """Names of the columns of all predictors."""
    return [column for each in scored for column in each.columns]


def values_of(scored: Sequence[Scored], features: Rows, logits: Rows) -> NDArray[np.float64]:
    """The scores of rows, ``[n_columns, n]``, computed by blocks of rows.

    They are NaN in rows whose features or logits are not finite, and those of a head also where
    its own are not.
    """
    values = np.full((len(columns_of_scores(scored)), len(logits)), np.nan)
    for block in row_blocks(len(logits)):
        f, z = features[block], logits[block]
        usable = finite_rows(f, z)
        if not usable.all():
            f, z = f[usable], z[usable]
        if len(z):
            at = np.flatnonzero(usable) + block.start
            values[:, at] = np.concatenate([each.values(*each.last_layer(f, z)) for each in scored])
    return values


def _given(rows: TrainingRows | None) -> TrainingRows:
    assert rows is not None  # by check_asked
    return rows
