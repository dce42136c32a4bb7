"""Estimates for the groups of a feature set, one shard at a time.

Once the last row of a group has been read, its matrices become a few numbers, so only unfinished
groups are held: one ``[N, d]`` and one ``[N, N]`` matrix each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.errors import InputError
from stages.estimation.estimators import (
    COUNTS,
    MANO_NORM,
    Source,
    Sums,
    Values,
    estimates_of,
    pseudo_labels,
    taylor,
    threshold_of,
)
from stages.introspection.compared import Judge
from stages.introspection.predictors import LastLayer
from stages.metrics.finite import finite_rows
from stages.metrics.row_draws import row_draws
from stages.reflection.groups import group_codes, numbers
from stages.reflection.losses import softmax
from stages.reflection.reduction import Group, each_shard
from stages.scores.confidences import entropy, max_softmax
from store.featureset import FeatureSet
from store.shards import Shard

Tick = Callable[[int], None]
_BLOCK_VALUES = 2**20

MAX_BYTES = 2**32
"""Maximum size of the matrices of unfinished groups."""


class _Outputs(NamedTuple):
    """Outputs of a predictor for some rows, and their labels; -1 for an unknown one."""

    hidden: NDArray[np.float32]
    logits: Values
    p: Values
    labels: NDArray[np.int64]

    def scores(self) -> tuple[Values, Values]:
        """The scores of ATC: high if confident."""
        return max_softmax(self.hidden, self.logits), -entropy(self.hidden, self.logits)

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether the most probable class is the label."""
        correct: NDArray[np.bool_] = self.p.argmax(axis=1) == self.labels
        return correct


@dataclass(frozen=True)
class Estimation:
    """The predictors whose accuracy is estimated, and by what.

    Attributes:
        judges: last layers of the predictors.
        names: names of estimators.
        seed: seed of the random pseudo-labels.
    """

    judges: Mapping[Judge, LastLayer]
    names: tuple[str, ...]
    seed: int

    def sources(self, feature_set: FeatureSet, tick: Tick) -> dict[Judge, Source]:
        """What each predictor does on the labelled rows of a set.

        Raises ``InputError`` if there are none.
        """
        parts = list(each_shard(feature_set, lambda shard: self._on(feature_set, shard), tick))
        found = {}
        for judge in self.judges:
            columns = np.concatenate([part[judge] for part in parts], axis=1)
            if not columns.shape[1]:
                raise InputError(
                    f"estimate-accuracy: expected labelled rows in {feature_set.name}, found none "
                    f"among {feature_set.n_rows:,}; use a split that has labels"
                )
            is_correct, confidence, by_msp, by_entropy = columns
            n_errors = int((is_correct == 0).sum())
            thresholds = [threshold_of(each, n_errors) for each in (by_msp, by_entropy)]
            found[judge] = Source(
                len(is_correct), float(is_correct.mean()), float(confidence.mean()), *thresholds
            )
        return found

    def rows(
        self,
        feature_set: FeatureSet,
        sources: Mapping[Judge, Source],
        by: Sequence[str],
        tick: Tick,
    ) -> Iterator[tuple[Judge, Group, Mapping[str, float]]]:
        """Rows, accuracy and estimates of each predictor and group, as groups end."""
        n_rows: Counter[Group] = Counter()
        by_shard: list[Mapping[Group, int]] = []
        for counts in each_shard(feature_set, lambda s: _rows_by(feature_set, s, by), _nothing):
            n_rows.update(counts)
            by_shard.append(counts)
        self._check_memory(feature_set, _most_unfinished(by_shard))

        def sums_of(shard: Shard) -> dict[tuple[Judge, Group], Sums]:
            return self._sums(feature_set, shard, sources, by)

        unfinished: dict[tuple[Judge, Group], Sums] = {}
        for part in each_shard(feature_set, sums_of, tick):
            for (judge, group), more in part.items():
                before = unfinished.pop((judge, group), None)
                total = more if before is None else before + more
                if total.n_seen < n_rows[group]:
                    unfinished[judge, group] = total
                    continue
                facts = {"n_rows": int(total.counts[0]), "n_labelled": int(total.counts[1])}
                estimates = estimates_of(total, sources[judge], self.names)
                yield judge, group, {**facts, "accuracy": total.accuracy, **estimates}

    def _check_memory(self, feature_set: FeatureSet, n_groups: int) -> None:
        """Raise ``InputError`` if the matrices of so many groups exceed `MAX_BYTES`."""
        (width,), (n_classes,) = (
            feature_set.schema.array(name).row_shape for name in ("features", "logits")
        )
        n_bytes = 8 * n_classes * (n_classes + width) * n_groups * len(self.judges)
        if n_bytes > MAX_BYTES:
            raise InputError(
                f"estimate-accuracy {feature_set.name}: the rows of {n_groups:,} groups are mixed, "
                f"whose matrices for {len(self.judges)} predictors take {n_bytes / 2**30:.1f} GiB, "
                f"expected at most {MAX_BYTES / 2**30:g}: use fewer groups in --by, or fewer heads"
            )

    def _on(self, feature_set: FeatureSet, shard: Shard) -> dict[Judge, Values]:
        """Correctness, confidence and the scores of ATC of the labelled rows, ``[4, n]``."""
        found: dict[Judge, list[Values]] = {judge: [np.empty((4, 0))] for judge in self.judges}
        for at, block in _blocks(feature_set, shard):
            keep = block[2] >= 0
            for judge, _, out in self._outputs(tuple(each[keep] for each in block), at[keep]):
                columns = (out.is_correct, out.p.max(axis=1), *out.scores())
                found[judge].append(np.stack(columns).astype(np.float64))
        return {judge: np.concatenate(parts, axis=1) for judge, parts in found.items()}

    def _sums(
        self,
        feature_set: FeatureSet,
        shard: Shard,
        sources: Mapping[Judge, Source],
        by: Sequence[str],
    ) -> dict[tuple[Judge, Group], Sums]:
        codes, groups = group_codes(_columns(feature_set, shard, by), by)
        draws = row_draws(self.seed, shard.start, shard.stop)
        n_seen = np.bincount(codes, minlength=len(groups))
        found: dict[tuple[Judge, Group], Sums] = {}
        for at, block in _blocks(feature_set, shard):
            for judge, rows, out in self._outputs(block, at):
                for code, group in enumerate(groups):
                    own = codes[rows] == code
                    here = _Outputs(*(each[own] for each in out))
                    more = _summed(here, draws[rows[own]], sources[judge])
                    before = found.get((judge, group))
                    found[judge, group] = more if before is None else before + more
        for code, group in enumerate(groups):
            for judge in self.judges:
                old = found[judge, group]
                seen = int(n_seen[code])
                found[judge, group] = Sums(seen, old.counts, old.gram, old.gradient)
        return found

    def _outputs(
        self, block: tuple[NDArray[Any], ...], at: NDArray[np.int64]
    ) -> Iterator[tuple[Judge, NDArray[np.int64], _Outputs]]:
        """The outputs of each predictor for the rows where they are finite, and these rows."""
        features, logits, labels = block
        for judge, layer in self.judges.items():
            hidden, own = layer(features, logits)
            kept = finite_rows(hidden, own)
            z = own[kept].astype(np.float64)
            p: Values = softmax(z).astype(np.float64, copy=False)
            yield judge, at[kept], _Outputs(hidden[kept], z, p, labels[kept])


def _blocks(
    feature_set: FeatureSet, shard: Shard
) -> Iterator[tuple[NDArray[np.int64], tuple[NDArray[Any], ...]]]:
    """Numbers of rows within a shard, and their features, logits and labels; at least one block."""
    arrays = [feature_set.read_chunk(name, shard) for name in ("features", "logits")]
    labels = numbers(feature_set.read_samples(shard, ["label"])["label"])
    step = max(1, _BLOCK_VALUES // arrays[1].shape[1])
    for start in range(0, shard.n_rows, step):
        at = np.arange(start, min(start + step, shard.n_rows))
        yield at, (arrays[0][at], arrays[1][at], labels[at])


def _summed(out: _Outputs, draws: Values, source: Source) -> Sums:
    """The sums over some rows of a group; ``n_seen`` is counted elsewhere."""
    by_msp, by_entropy = out.scores()
    log_p = out.logits - out.logits.max(axis=1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    columns = (
        np.ones(len(out.labels)),
        out.labels >= 0,
        out.is_correct & (out.labels >= 0),
        out.p.max(axis=1),
        by_msp >= source.above_msp,
        by_entropy >= source.above_entropy,
        -log_p.sum(axis=1),
        (out.p**MANO_NORM).sum(axis=1),
        (taylor(out.logits) ** MANO_NORM).sum(axis=1),
    )
    delta = out.p.copy()
    delta[np.arange(len(delta)), pseudo_labels(out.p, draws)] -= 1.0
    counts = np.array([each.sum() for each in columns], np.float64)
    assert len(counts) == len(COUNTS)
    return Sums(0, counts, out.p.T @ out.p, delta.T @ out.hidden.astype(np.float64))


def _most_unfinished(by_shard: Sequence[Mapping[Group, int]]) -> int:
    """The largest number of groups that have rows in a shard, or before and after it."""
    last = {group: at for at, counts in enumerate(by_shard) for group in counts}
    unfinished: set[Group] = set()
    most = 0
    for at, counts in enumerate(by_shard):
        unfinished |= counts.keys()
        most = max(most, len(unfinished))
        unfinished = {group for group in unfinished if last[group] > at}
    return most


def _rows_by(feature_set: FeatureSet, shard: Shard, by: Sequence[str]) -> dict[Group, int]:
    """Number of rows of each group in a shard."""
    codes, groups = group_codes(_columns(feature_set, shard, by), by)
    return dict(zip(groups, np.bincount(codes, minlength=len(groups)).tolist(), strict=True))


def _columns(feature_set: FeatureSet, shard: Shard, by: Sequence[str]) -> pa.Table:
    return feature_set.read_samples(shard, list(dict.fromkeys(["label", *by])))


def _nothing(_: int) -> None:
    """Progress that is not reported."""
