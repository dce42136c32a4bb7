"""Heads as judges, including those that read more of a feature set than features and logits."""

from __future__ import annotations

from dataclasses import dataclass

from stages.introspection.contenders import Contender
from stages.introspection.head import Head, predict_probabilities
from stages.introspection.head_card import further_of, head_card
from stages.introspection.predictors import open_head, predictors
from stages.judging.judgement import Judge, Predictions, Predictor, Rows
from store.catalog import FeatureStore
from store.featureset import FeatureSet


@dataclass(frozen=True, eq=False, slots=True)
class FurtherReader:
    """A judge that reads further arrays of a feature set, shard by shard."""

    label: str
    seed: int
    head: Head
    feature_set: FeatureSet

    def answer(self, rows: Rows) -> Predictions:
        """Predict rows; they have no mutual information."""
        names = self.head.spec.further.names
        further = {name: self.feature_set.read_chunk(name, rows.shard) for name in names}
        found = predict_probabilities(self.head, rows.features, rows.logits, further)
        return Predictions(found)


def head_judges(store: FeatureStore, feature_set: FeatureSet, each: Contender) -> list[Judge]:
    """A judge for each seed of a head; its arrays must be those of `check_preparation`."""
    card = head_card(each.head)
    if further_of(card).names:
        return [
            FurtherReader(each.label, seed, open_head(each.head, seed), feature_set)
            for seed in card.seeds
        ]
    found = predictors(store, each.head).items()
    return [Predictor(each.label, seed, predict) for seed, predict in found]
