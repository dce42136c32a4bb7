"""Find the training rows that support and that oppose the predictions of some rows.

A pass over the training rows scores each block of them with the directions of all explained rows,
and keeps the highest and lowest scores: memory does not grow with the number of training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.influence.directions import (
    Classes,
    Values,
    curved_directions,
    damped,
    gradient_factors,
    plain_directions,
    scores_of,
)
from stages.influence.influence_result import SIDES
from stages.influence.strongest import Strongest
from stages.introspection.laplace import CURVATURES, Block
from stages.introspection.reading import usable_rows
from stages.reflection.reduction import each_shard
from store.featureset import FeatureSet
from store.shards import Shard

Tick = Callable[[int], None]
STRUCTURES = {"exact": "full", "kfac": "kfac"}
"""Method -> structure of the curvature."""

BLOCK_ROWS = 1024
"""Training rows that are scored at once."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The features of both sets at one state of the network.

    Attributes:
        features: those of the explained rows.
        training: those of the training rows.
        rate: the learning rate of the snapshot.
    """

    features: FeatureSet
    training: FeatureSet
    rate: float = 1.0


@dataclass(frozen=True, eq=False)
class Asked:
    """The rows to explain, and how.

    Attributes:
        now: the features of the explained network.
        rows: rows to explain, ascending, shape ``(n,)``.
        classes: the class of each whose probability is explained, shape ``(n,)``.
        methods: "exact", "kfac" and "tracin".
        snapshots: what TracIn sums over.
        damping: λ relative to the mean eigenvalue of the curvature.
        k: training rows to list on each side.
        has_bias: whether the last layer has a bias.
    """

    now: Snapshot
    rows: NDArray[np.int64]
    classes: Classes
    methods: Sequence[str]
    snapshots: Sequence[Snapshot]
    damping: float
    k: int
    has_bias: bool

    def factors(self, snapshot: Snapshot) -> tuple[Values, Values]:
        """``δ`` and ``f̃`` of the explained rows."""
        at = snapshot.features
        f, z = rows_of(at, "features", self.rows), rows_of(at, "logits", self.rows)
        return gradient_factors(f, z, self.classes, has_bias=self.has_bias)


@dataclass(frozen=True)
class Influential:
    """What was found: the strongest rows of each method, λ of each curvature, rows searched."""

    strongest: Mapping[str, Strongest]
    damping: Mapping[str, float]
    n_training: int


def influential_rows(asked: Asked, tick: Tick) -> Influential:
    """Score all training rows that have a label and finite numbers.

    A row that is in both sets, because they are the same, is not compared with itself.

    Args:
        asked: the rows to explain, and how.
        tick: called with the number of rows of each finished shard, in each pass: one for each
            curvature, and one for the scores.

    Raises:
        InputError: no training row is usable, or there are too many weights for "exact".
    """
    directions: dict[str, list[tuple[FeatureSet, Values]]] = {}
    damping = {}
    for method in asked.methods:
        if method == "tracin":
            directions[method] = [
                (each.training, plain_directions(*asked.factors(each), each.rate))
                for each in asked.snapshots
            ]
            continue
        posterior, damping[method] = damped(
            CURVATURES[STRUCTURES[method]],
            _blocks(asked.now.training, tick),
            asked.damping,
            has_bias=asked.has_bias,
        )
        found = curved_directions(posterior, *asked.factors(asked.now))
        directions[method] = [(asked.now.training, found)]
    scan = _Scan(asked, directions)
    parts = list(each_shard(asked.now.training, scan.strongest_in, tick))
    strongest = {
        method: reduce(Strongest.merged, (found[method] for found, _ in parts))
        for method in asked.methods
    }
    return Influential(strongest, damping, sum(n for _, n in parts))


def _blocks(training: FeatureSet, tick: Tick) -> Iterator[Block]:
    """Features and logits of the usable rows, shard by shard."""
    for shard in training.shard_set.shards:
        f, z = (training.read_chunk(name, shard) for name in ("features", "logits"))
        kept = usable_rows(_labels(training, shard), f, z)
        if kept.any():
            yield f[kept], z[kept]
        tick(shard.n_rows)


@dataclass(frozen=True, eq=False)
class _Scan:
    """The pass that scores the training rows; ``directions`` by method, each with its features."""

    asked: Asked
    directions: Mapping[str, Sequence[tuple[FeatureSet, Values]]]

    def strongest_in(self, shard: Shard) -> tuple[dict[str, Strongest], int]:
        """The strongest rows of a shard by every method, and the number of usable rows."""
        k, labels = self.asked.k, _labels(self.asked.now.training, shard)
        sets = {each.name: each for parts in self.directions.values() for each, _ in parts}
        read = {
            name: tuple(each.read(of, shard.start, shard.stop) for of in ("features", "logits"))
            for name, each in sets.items()
        }
        usable = usable_rows(labels, *(array for arrays in read.values() for array in arrays))
        rows = np.flatnonzero(usable)
        kept = []
        for start in range(0, max(len(rows), 1), BLOCK_ROWS):
            at = rows[start : start + BLOCK_ROWS]
            factors = {
                name: gradient_factors(f[at], z[at], labels[at], has_bias=self.asked.has_bias)
                for name, (f, z) in read.items()
            }
            kept.append((self._scores(factors, shard.start + at), shard.start + at))
        found = {
            method: reduce(
                Strongest.merged, (Strongest.of(scores[method], at, k) for scores, at in kept)
            )
            for method in self.directions
        }
        return found, len(rows)

    def _scores(
        self, factors: Mapping[str, tuple[Values, Values]], rows: NDArray[np.int64]
    ) -> dict[str, Values]:
        """The scores ``[n, n_explained]`` of a block by every method; NaN for a row and itself."""
        asked, found = self.asked, {}
        for method, parts in self.directions.items():
            scores = np.zeros((len(rows), len(asked.rows)))
            for each, directions in parts:
                scores += scores_of(directions, *factors[each.name])
            if asked.now.features.name == asked.now.training.name:
                scores[rows[:, np.newaxis] == asked.rows] = np.nan
            found[method] = scores
        return found


def _labels(training: FeatureSet, shard: Shard) -> NDArray[np.int64]:
    return np.asarray(training.read_samples(shard, ("label",))["label"], np.int64)


def rows_of(feature_set: FeatureSet, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Some rows of an array, ascending; reads only the shards that hold them."""
    parts = [
        feature_set.read_chunk(name, shard)[here - shard.start]
        for shard, here in _by_shard(feature_set, rows)
    ]
    return np.concatenate(parts)


def samples_of(
    feature_set: FeatureSet, rows: NDArray[np.int64], columns: Sequence[str]
) -> pd.DataFrame:
    """Sample columns of some rows, ascending, with the row numbers as the index."""
    parts = [
        feature_set.read_samples(shard, columns).to_pandas().iloc[here - shard.start]
        for shard, here in _by_shard(feature_set, rows)
    ]
    found = pd.concat(parts) if parts else pd.DataFrame(columns=list(columns))
    return found.set_axis(rows, axis=0)


def _by_shard(
    feature_set: FeatureSet, rows: NDArray[np.int64]
) -> Iterator[tuple[Shard, NDArray[np.int64]]]:
    for shard in feature_set.shard_set.shards:
        here = rows[(rows >= shard.start) & (rows < shard.stop)]
        if len(here):
            yield shard, here


def influence_table(asked: Asked, found: Influential) -> pd.DataFrame:
    """A row for each explained row, method, side and rank, the strongest first."""
    columns = ["sample_id", "label", "prediction", "confidence"]
    explained = samples_of(asked.now.features, asked.rows, columns)
    parts = []
    for method, strongest in found.strongest.items():
        for side, name in enumerate(SIDES):
            at, rank, training_rows, scores = strongest.end(side)
            part = {
                "row": asked.rows[at],
                "class": asked.classes[at],
                "method": method,
                "side": name,
                "rank": rank,
                "training_row": training_rows,
                "score": scores,
            }
            parts.append(pd.DataFrame(part))
    table = pd.concat(parts, ignore_index=True).sort_values("row", kind="stable", ignore_index=True)
    rows = np.unique(table["training_row"].to_numpy(np.int64))
    training = samples_of(asked.now.training, rows, columns[:3]).add_prefix("training_")
    return table.join(explained, on="row").join(training, on="training_row")


def method_table(influences: pd.DataFrame) -> pd.DataFrame:
    """For each method and side: listed rows, share of the explained class, and overlap."""
    lines = []
    pairs = pd.MultiIndex.from_frame(influences[["row", "side", "training_row"]])
    first = next(iter(influences["method"]), None)
    of_first = pairs[(influences["method"] == first).to_numpy()]
    shared = influences.assign(is_shared=pairs.isin(of_first))
    for (method, side), rows in shared.groupby(["method", "side"], sort=False):
        own = rows["training_label"] == rows["class"]
        lines.append(
            {
                "method": method,
                "side": side,
                "n_listed": len(rows),
                "own_class": float(own.mean()),
                "overlap": float(rows["is_shared"].mean()),
                "mean_score": float(rows["score"].mean()),
            }
        )
    names = ["method", "side", "n_listed", "own_class", "overlap", "mean_score"]
    return pd.DataFrame(lines, columns=names)
