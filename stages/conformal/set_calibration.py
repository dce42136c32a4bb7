"""Calibrate thresholds on some rows of a feature set, and count the sets of other rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.conformal.conformity import Shape, class_scores, class_thresholds, threshold_of
from stages.conformal.set_counts import Counts, Values
from stages.errors import InputError
from stages.introspection.compared import Judge
from stages.introspection.heads import check_classes
from stages.introspection.predictors import Predict
from stages.metrics.finite import finite_rows
from stages.metrics.row_draws import row_draws
from stages.reflection.groups import group_codes, numbers
from stages.reflection.reduction import Group, each_shard
from store.featureset import FeatureSet
from store.shards import Shard

_BLOCK_VALUES = 2**20
"""Probabilities that are sorted at once: 8 MB, and about ten such arrays."""

_HALVES, _CALIBRATION, _JUDGED = range(3)
"""Streams of random numbers."""

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Method:
    """How sets are made.

    Attributes:
        names: keys of `stages.conformal.conformity.METHODS`.
        alpha: share of rows whose set may miss the label.
        share: share of the rows of the calibration set that are used to calibrate.
        seed: seed of the share and of the randomisation.
        is_randomised: whether the sum of probabilities is randomised.
        is_by_class: whether each class has its own threshold.
        shape: parameters of the scores.
    """

    names: tuple[str, ...]
    alpha: float
    share: float
    seed: int
    is_randomised: bool
    is_by_class: bool
    shape: Shape


class Threshold(NamedTuple):
    """The threshold of each class, ``[N]``, and the number of rows behind it, ``[N]``."""

    values: Values
    n_rows: NDArray[np.int64]


Thresholds = Mapping[tuple[Judge, str], Threshold]
"""By predictor and score."""


class _Block(NamedTuple):
    """Some usable rows: finite and labelled."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    codes: NDArray[np.int64]
    draws: Values


@dataclass(frozen=True)
class Calibration:
    """Rows of a feature set, the predictors, and how to make sets.

    Attributes:
        feature_set: the calibration set.
        judges: predictors.
        method: how sets are made.
    """

    feature_set: FeatureSet
    judges: Mapping[Judge, Predict]
    method: Method

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        (n_classes,) = self.feature_set.schema.array("logits").row_shape
        return int(n_classes)

    def is_calibrated_on(self, shard: Shard) -> NDArray[np.bool_]:
        """Flag the rows of a shard that calibrate, shape ``(n,)``."""
        draws = row_draws(self.method.seed, shard.start, shard.stop, stream=_HALVES)
        return draws < self.method.share

    def thresholds(self, tick: Tick) -> Thresholds:
        """The thresholds of every predictor and score.

        Raises:
            InputError: there are no rows with a label to calibrate on.
        """
        parts = list(each_shard(self.feature_set, self._label_scores, tick))
        labels = np.concatenate([labels for labels, _ in parts])
        if not len(labels):
            raise InputError(
                f"conformal: expected labelled rows to calibrate on, found none among "
                f"{self.feature_set.n_rows:,} of {self.feature_set.name}: use a split that has "
                "labels, or a larger --share"
            )
        keys = [(judge, name) for judge in self.judges for name in self.method.names]
        return {
            key: self._threshold(np.concatenate([scores[key] for _, scores in parts]), labels)
            for key in keys
        }

    def held_out(
        self, thresholds: Thresholds, by: Sequence[str], tick: Tick
    ) -> dict[tuple[Judge, str], Counts]:
        """Counts of the sets of the rows that did not calibrate."""
        return self._counted(
            self.feature_set,
            lambda shard: ~self.is_calibrated_on(shard),
            (thresholds, by, _CALIBRATION),
            tick,
        )

    def judged(
        self, other: FeatureSet, thresholds: Thresholds, by: Sequence[str], tick: Tick
    ) -> dict[tuple[Judge, str], Counts]:
        """Counts of the sets of all rows of another feature set."""
        return self._counted(
            other, lambda shard: np.ones(shard.n_rows, bool), (thresholds, by, _JUDGED), tick
        )

    def _threshold(self, scores: Values, labels: NDArray[np.int64]) -> Threshold:
        alpha, n = self.method.alpha, self.n_classes
        if self.method.is_by_class:
            counts = np.bincount(labels, minlength=n)
            return Threshold(class_thresholds(scores, labels, n, alpha), counts)
        return Threshold(np.full(n, threshold_of(scores, alpha)), np.full(n, len(labels)))

    def _label_scores(
        self, shard: Shard
    ) -> tuple[NDArray[np.int64], dict[tuple[Judge, str], Values]]:
        """Labels of the rows of a shard that calibrate, and the scores of these labels."""
        keep = self.is_calibrated_on(shard)
        labels: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        found: dict[tuple[Judge, str], list[Values]] = {
            (judge, name): [np.empty(0)] for judge in self.judges for name in self.method.names
        }
        _, blocks = self._blocks(self.feature_set, shard, keep, (), _CALIBRATION)
        for block in blocks:
            labels.append(block.labels)
            for key, scores in self._scores(block):
                found[key].append(scores[np.arange(len(scores)), block.labels])
        return np.concatenate(labels), {key: np.concatenate(each) for key, each in found.items()}

    def _counted(
        self,
        feature_set: FeatureSet,
        kept: Callable[[Shard], NDArray[np.bool_]],
        how: tuple[Thresholds, Sequence[str], int],
        tick: Tick,
    ) -> dict[tuple[Judge, str], Counts]:
        thresholds, by, stream = how

        def counts_of(shard: Shard) -> dict[tuple[Judge, str], Counts]:
            found = {key: Counts(self.n_classes) for key in thresholds}
            groups, blocks = self._blocks(feature_set, shard, kept(shard), by, stream)
            for block in blocks:
                for key, scores in self._scores(block):
                    sets = scores <= thresholds[key].values
                    found[key].add(sets, block.labels, block.codes, groups)
            return found

        total = {key: Counts(self.n_classes) for key in thresholds}
        for part in each_shard(feature_set, counts_of, tick):
            for key, counts in part.items():
                total[key].merge(counts)
        return total

    def _scores(self, block: _Block) -> Iterator[tuple[tuple[Judge, str], Values]]:
        """The scores of all classes, ``[n, N]``, of every predictor and score."""
        for judge, predict in self.judges.items():
            p = np.asarray(predict(block.features, block.logits), np.float64)
            if not (finite := finite_rows(p)).all():
                raise InputError(
                    f"conformal: head '{judge[0]}' is not finite for {(~finite).sum()} rows whose "
                    "features are: leave it out of --head"
                )
            for name in self.method.names:
                yield (judge, name), class_scores(name, p, block.draws, self.method.shape)

    def _blocks(
        self,
        feature_set: FeatureSet,
        shard: Shard,
        keep: NDArray[np.bool_],
        by: Sequence[str],
        stream: int,
    ) -> tuple[list[Group], Iterator[_Block]]:
        """The groups of the usable rows to keep, and these rows in blocks."""
        samples = feature_set.read_samples(shard, list(dict.fromkeys(["label", *by])))
        labels: NDArray[np.int64] = numbers(samples["label"])
        arrays = [feature_set.read_chunk(name, shard) for name in ("features", "logits")]
        rows = np.flatnonzero(keep & (labels >= 0) & finite_rows(*arrays))
        check_classes(labels, feature_set)
        codes, groups = group_codes(samples, by, rows)
        draws = np.zeros(shard.n_rows)
        if self.method.is_randomised:
            draws = row_draws(self.method.seed, shard.start, shard.stop, stream=stream)
        step = max(1, _BLOCK_VALUES // self.n_classes)

        def blocks() -> Iterator[_Block]:
            for start in range(0, len(rows), step):
                at = rows[start : start + step]
                features, logits = (array[at] for array in arrays)
                yield _Block(features, logits, labels[at], codes[start : start + step], draws[at])

        return groups, blocks()
