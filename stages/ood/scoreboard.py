"""Scores of the feature sets of one command: a detector is fitted once, and scores all sets.

For each detector, predictors are fitted one after the other, and each scores the rows of every set
before the next one is fitted. So the memory is that of one fitted detector, the rows that are
compared, one number per row, predictor and detector, and `KEPT_BYTES` for each predictor, whose
training rows are kept for the next detector if they are few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.introspection.contenders import Contender
from stages.introspection.preparation import OfModel
from stages.metrics.definitions import REFERENCE
from stages.metrics.detection import Scores
from stages.metrics.finite import finite_rows
from stages.ood.sides import Sides
from stages.reflection.reduction import each_shard
from stages.scores.factors import Rows, Score, TrainingRows, row_blocks
from stages.scores.known_scores import DETECTORS, Kind
from stages.scores.predictor import (
    Predictor,
    divided_by,
    head_predictors,
    sensing_predictor,
    training_rows,
)
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.shards import Shard


@dataclass(frozen=True)
class Drawn:
    """Rows of a feature set in a random order that the seed determines.

    Attributes:
        rows: row numbers, ``[m]``; a smaller draw has the first ones.
        features, logits: of f, in this order.
        n_left_out: number of rows of the set that are not finite.
    """

    rows: NDArray[np.int64]
    features: Rows
    logits: Rows
    n_left_out: int

    @property
    def blocks(self) -> list[tuple[Rows, Rows]]:
        """Features and logits in blocks."""
        return [(self.features[at], self.logits[at]) for at in row_blocks(len(self.rows))]


def draw(feature_set: FeatureSet, n_rows: int, seed: Sequence[int]) -> Drawn:
    """Draw at most ``n_rows`` rows without NaN; raises ``InputError`` if there are none."""

    def vectors(shard: Shard) -> tuple[Rows, Rows]:
        f, z = (feature_set.read_chunk(name, shard) for name in ("features", "logits"))
        return f, z

    def usable(shard: Shard) -> NDArray[np.bool_]:
        return finite_rows(*vectors(shard))

    def chosen(shard: Shard) -> tuple[Rows, Rows]:
        f, z = vectors(shard)
        own = ordered[(ordered >= shard.start) & (ordered < shard.stop)] - shard.start
        return f[own], z[own]

    kept = np.flatnonzero(np.concatenate([*each_shard(feature_set, usable, _no_tick)]))
    if not len(kept):
        raise InputError(f"ood: {feature_set.name}: all rows failed, see the column `status`")
    rows = np.random.default_rng(seed).permutation(kept)[:n_rows]
    ordered = np.sort(rows)
    features, logits = zip(*each_shard(feature_set, chosen, _no_tick), strict=True)
    places = np.searchsorted(ordered, rows)
    n_left_out = feature_set.n_rows - len(kept)
    return Drawn(rows, np.concatenate(features)[places], np.concatenate(logits)[places], n_left_out)


@dataclass(frozen=True)
class Compared:
    """The feature sets that one detector compares.

    Attributes:
        inside: in-distribution rows.
        outsides: other sets.
        training: rows that detectors are fitted to; None if the detector needs none.
    """

    inside: FeatureSet
    outsides: tuple[FeatureSet, ...]
    training: FeatureSet | None


def compared_sets(pairs: Iterable[tuple[str, Sides]]) -> dict[str, Compared]:
    """The sets of each detector, of its name and each of its sides."""
    found: dict[str, list[Sides]] = {}
    for detector, sides in pairs:
        found.setdefault(detector, []).append(sides)
    return {
        detector: Compared(
            existing(some[0].inside),
            tuple({each.outside.name: existing(each.outside) for each in some}.values()),
            existing(some[0].training) if some[0].training else None,
        )
        for detector, some in found.items()
    }


def existing(found: OfModel) -> FeatureSet:
    """A feature set that exists by now, and is no plan any more."""
    assert isinstance(found, FeatureSet)
    return found


@dataclass
class Scoreboard:
    """Scores by detector, predictor and set, computed when they are first needed.

    Attributes:
        store: store of the sets.
        contenders: heads to score beside f.
        compared: detector -> sets.
        rows: maximum number of rows of a set.
        seed: seed of the draw.
    """

    store: FeatureStore
    contenders: Sequence[Contender]
    compared: Mapping[str, Compared]
    rows: int
    seed: int
    _drawn: dict[tuple[str, int], Drawn] = field(default_factory=dict)
    _training: dict[tuple[str, str, int], TrainingRows] = field(default_factory=dict)
    _scores: dict[tuple[str, str, int, str, int], Scores] = field(default_factory=dict)

    def drawn(self, feature_set: FeatureSet, side: int) -> Drawn:
        """The rows of a set; the side is 0 for in-distribution rows, 1 for others."""
        key = (feature_set.name, side)
        if key not in self._drawn:
            self._drawn[key] = draw(feature_set, self.rows, [self.seed, side])
        return self._drawn[key]

    def scores(
        self, detector: str, label: str, seed: int, feature_set: FeatureSet, side: int
    ) -> Scores:
        """Scores of the rows of a set as drawn, high for in-distribution rows.

        Raises:
            InputError: a head's output is not finite, or the detector cannot be fitted.
        """
        key = (detector, label, seed, feature_set.name, side)
        if key not in self._scores:
            self._score_all(detector)
        return self._scores[key]

    def seeds(self) -> dict[str, list[int]]:
        """The seeds of f and of each head."""
        found: dict[str, list[int]] = {}
        for each in self.predictors:
            found.setdefault(each.label, []).append(each.seed)
        return found

    @cached_property
    def predictors(self) -> list[Predictor]:
        """f and every seed of the heads."""
        some = next(iter(self.compared.values())).inside
        heads = head_predictors(self.store, some, self.contenders)
        return [sensing_predictor(self.store, some), *heads]

    def _score_all(self, detector: str) -> None:
        """Score all sets of a detector by every predictor.

        A temperature and a Laplace approximation have the features of f: a detector that reads no
        logits scores their rows as it scores those of f.
        """
        kind, sets = DETECTORS[detector], self.compared[detector]
        sides = [(sets.inside, 0), *((each, 1) for each in sets.outsides)]
        some = self.drawn(*sides[0]).blocks[0]
        of_f = self._scored(kind, self.predictors[0], sets, sides)
        for plain in self.predictors:
            is_shared = not kind.reads_logits and plain.keeps_features(*some)
            is_known = is_shared or plain is self.predictors[0]
            found = of_f if is_known else self._scored(kind, plain, sets, sides)
            for (feature_set, side), scores in zip(sides, found, strict=True):
                key = (detector, plain.label, plain.seed, feature_set.name, side)
                self._scores[key] = scores

    def _scored(
        self, kind: Kind, plain: Predictor, sets: Compared, sides: Sequence[tuple[FeatureSet, int]]
    ) -> list[Scores]:
        """Scores of the rows of each set by one predictor."""
        is_divided = kind.temperature != 1.0 and plain.label == REFERENCE
        predictor = divided_by(kind.temperature, plain) if is_divided else plain
        score = self._fitted(kind, predictor, sets)
        return [
            kind.certain(
                np.concatenate(
                    [score(*predictor.factors(*block)) for block in self.drawn(*side).blocks]
                )
            )
            for side in sides
        ]

    def _fitted(self, kind: Kind, predictor: Predictor, sets: Compared) -> Score:
        def training() -> TrainingRows:
            assert sets.training is not None  # checked by check_sides
            key = (sets.training.name, predictor.label, predictor.seed)
            if key not in self._training:
                self._training[key] = training_rows(predictor, sets.training)
            return self._training[key]

        return kind.fitted(training, predictor.load_linear)


def _no_tick(n_rows: int) -> None:
    """Report no progress."""
