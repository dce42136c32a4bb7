"""The scores of f that are asked for by name: checked, fitted to training rows, and computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.progress import Progress
from stages.errors import InputError
from stages.introspection.preparation import check_alike
from stages.metrics.finite import finite_rows
from stages.scores.factors import Rows, Score, row_blocks
from stages.scores.known_scores import SCORES
from store.catalog import FeatureStore
from store.featureset import FeatureSet

ASKED = tuple(name for name, kind in SCORES.items() if not kind.is_perturbed)
"""Scores of stored rows: all but those of perturbed images."""

FITTED = tuple(name for name in ASKED if SCORES[name].fit is not None)
"""Those that are fitted to training rows."""


def check_asked(names: Sequence[str], training: str | None) -> None:
    """Raise ``InputError`` for an unknown score, missing training rows, or unused ones."""
    if unknown := [name for name in names if name not in ASKED]:
        raise InputError(f"unknown score '{unknown[0]}': choose from {', '.join(ASKED)}")
    fitted = [name for name in names if name in FITTED]
    if fitted and training is None:
        raise InputError(f"--score {fitted[0]}: expected --training, features that it is fitted to")
    if not fitted and training is not None:
        raise InputError(
            f"--training: none of the scores is fitted; add one of {', '.join(FITTED)}"
        )


def asked_scores(
    store: FeatureStore,
    feature_set: FeatureSet,
    names: Sequence[str],
    training: FeatureSet | None = None,
) -> dict[str, Score]:
    """The scores of f by name; fits those that need it, in passes over the training rows.

    Args:
        store: has the network, for scores that need its last layer.
        feature_set: rows to score, which need no labels.
        names: some of `ASKED`.
        training: features of training rows from the same network, for those of `FITTED`.

    Raises:
        InputError: as `check_asked`; the sets are of different networks; or the rows do not
            suffice to fit a score.
    """
    check_asked(names, None if training is None else training.name)
    plain = {name: score for name in names if (score := SCORES[name].score) is not None}
    if len(plain) == len(names):
        return plain
    from stages.scores.predictor import sensing_predictor, training_rows  # imports torch

    f = sensing_predictor(store, feature_set)
    if training is None:
        return {name: SCORES[name].fitted(_no_rows, f.load_linear) for name in names}
    check_alike(feature_set, training.require_usable())
    with Progress(f"fit to {training.name}", training.n_rows, unit="rows") as progress:
        rows = training_rows(f, training, progress.advance)
        return {name: SCORES[name].fitted(lambda: rows, f.load_linear) for name in names}


def values_of(scores: Mapping[str, Score], features: Rows, logits: Rows) -> NDArray[np.float64]:
    """The scores of rows, ``[len(scores), n]``, computed by blocks of rows.

    They are NaN in rows whose features or logits are not finite.
    """
    values = np.full((len(scores), len(logits)), np.nan)
    for block in row_blocks(len(logits)):
        f, z = features[block], logits[block]
        usable = finite_rows(f, z)
        if not usable.all():
            f, z = f[usable], z[usable]
        if len(z):
            values[:, np.flatnonzero(usable) + block.start] = [
                score(f, z) for score in scores.values()
            ]
    return values


def _no_rows() -> NoReturn:
    raise AssertionError("a score of f's weights alone is not fitted")
