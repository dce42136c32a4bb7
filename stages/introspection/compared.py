"""f and the seeds of all heads, by label and seed: what applications compare."""

from __future__ import annotations

from collections.abc import Sequence

from stages.introspection.contenders import Contender
from stages.introspection.predictors import (
    LastLayer,
    Predict,
    divided,
    factors,
    predictors,
    sensing_probabilities,
)
from stages.metrics.definitions import REFERENCE
from store.catalog import FeatureStore

Judge = tuple[str, int]
"""A label and a seed; f has the seed 0."""


def probabilities_of(store: FeatureStore, contenders: Sequence[Contender]) -> dict[Judge, Predict]:
    """The probabilities of f and of every seed of the heads; see `predictors`."""
    found: dict[Judge, Predict] = {(REFERENCE, 0): sensing_probabilities}
    for each in contenders:
        for seed, predict in predictors(store, each.head).items():
            found[each.label, seed] = predict
    return found


def last_layers_of(contenders: Sequence[Contender]) -> dict[Judge, LastLayer]:
    """Input and output of the last layer of f and of every seed of the heads; see `factors`."""
    found: dict[Judge, LastLayer] = {(REFERENCE, 0): lambda *rows: divided(1.0, *rows)}
    for each in contenders:
        for seed, factors_of in factors(each.head).items():
            found[each.label, seed] = factors_of
    return found
