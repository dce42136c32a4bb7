"""Train the last layer on a share of the rows, kept by a score or at random, and test it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import InputError
from stages.introspection.head import load_head, predict_probabilities
from stages.introspection.head_params import HeadParams
from stages.introspection.head_spec import HeadSpec
from stages.introspection.head_training import HeadTraining
from stages.introspection.heads import factors_in_memory, labels_of
from stages.introspection.reading import usable_rows
from stages.scores.training_value import TRAINING_VALUES
from stages.stored_card import StoredCard
from store.featureset import FeatureSet

Tick = Callable[[int], None]
RANDOM, ALL = "random", "all"
BY_SEED, MEANS, KEPT = "by-seed.parquet", "means.parquet", "kept.parquet"


@dataclass(frozen=True)
class PruningCard(StoredCard):
    """The card of a result, in its order.

    Attributes:
        features, test: feature sets that are pruned, and tested on.
        model: name of the network whose last layer is trained.
        rows: number of labelled training rows; ``tested`` of them in the test set.
        order: "hardest" or "easiest": which rows are kept.
        epochs, seeds: of the trainings.
        test_accuracy: that of f itself.
        definitions: score -> its definition.
        versions: library -> its version.
        seconds: how long it took.
    """

    title: str
    features: str
    test: str
    model: str
    rows: int
    tested: int
    order: str
    epochs: int
    seeds: tuple[int, ...]
    test_accuracy: float
    definitions: Mapping[str, str]
    versions: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, eq=False)
class Labelled:
    """The rows of a set that have a label and finite numbers, in memory.

    Attributes:
        features, logits, labels: ``[n, d]``, ``[n, N]`` and ``[n]``.
        rows: their row numbers in the set, ``[n]``.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, feature_set: FeatureSet) -> Self:
        """Read them.

        Raises:
            InputError: there are none.
            ResourceError: all rows do not fit into the free memory twice.
        """
        features, logits = factors_in_memory(feature_set, "prune")
        labels = labels_of(feature_set)
        kept = usable_rows(labels, features, logits)
        if not kept.any():
            raise InputError(
                f"{feature_set.name}: expected labelled rows without NaN, found none; use a split "
                "that has labels"
            )
        return cls(features[kept], logits[kept], labels[kept], np.flatnonzero(kept))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Plan:
    """What to prune, and how to train: scores, shares, order of the scores, trainings."""

    by: Sequence[str]
    keep: Sequence[float]
    order: str
    params: HeadParams

    @property
    def n_trainings(self) -> int:
        """Number of passes over the rows, in units of all rows of one seed."""
        n_seeds = len(self.params.seeds)
        return round(self.params.epochs * n_seeds * (1 + sum(self.keep) * (len(self.by) + 1)))


def subsets(
    training: Labelled, plan: Plan
) -> Iterator[tuple[str, float, tuple[int, ...], NDArray[np.int64]]]:
    """Score, share, seeds and kept positions in ascending order of every training.

    Of equal scores, those that come first are kept. A random subset belongs to one seed.
    """
    n = len(training)
    everything, seeds = np.arange(n), plan.params.seeds
    yield ALL, 1.0, seeds, everything
    for name in plan.by:
        scores = TRAINING_VALUES[name].score(training.features, training.logits, training.labels)
        order = np.argsort(-scores if plan.order == "hardest" else scores, kind="stable")
        for share in plan.keep:
            yield name, share, seeds, np.sort(order[: n_kept(share, n)])
    for share in plan.keep:
        for seed in seeds:
            drawn = np.random.default_rng([seed, 0]).permutation(n)[: n_kept(share, n)]
            yield RANDOM, share, (seed,), np.sort(drawn)


def n_kept(share: float, n: int) -> int:
    """Number of kept rows, at least one."""
    return max(1, round(share * n))


def pruned(
    training: Labelled, test: Labelled, plan: Plan, tick: Tick
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The accuracy of every training, and the kept rows of every score and of the first seed's
    random subsets.

    Raises:
        TrainingFailedError: a loss is not finite.
    """
    lines, kept = [], []
    for name, share, seeds, at in subsets(training, plan):
        for seed, accuracy in accuracies(training, test, at, plan.params, seeds, tick).items():
            n_classes = len(np.unique(training.labels[at]))
            lines.append(
                {"score": name, "keep": share, "seed": seed, "n_rows": len(at),
                 "n_classes": n_classes, "accuracy": accuracy}
            )  # fmt: skip
        is_random = name == RANDOM and seeds[0] == plan.params.seeds[0]
        if is_random or name not in (ALL, RANDOM):
            kept.append(pd.DataFrame({"score": name, "keep": share, "row": training.rows[at]}))
    return pd.DataFrame(lines), pd.concat(kept, ignore_index=True)


def accuracies(
    training: Labelled,
    test: Labelled,
    at: NDArray[np.int64],
    params: HeadParams,
    seeds: tuple[int, ...],
    tick: Tick,
) -> dict[int, float]:
    """Test accuracy of a last layer that is trained on some rows, for each seed."""
    spec = HeadSpec(
        n_classes=training.logits.shape[1],
        feature_dim=training.features.shape[1],
        layers=(),
        reads="features",
        scaling="none",
    )
    loop = HeadTraining(
        training.features[at],
        training.logits[at],
        training.labels[at],
        spec,
        replace(params, seeds=seeds),
    )
    state = loop.start()
    for epoch in range(params.epochs):
        loop.step(state, epoch, lambda n: tick(n * len(seeds)))
    weights = loop.weights(state)  # not finished: that a training collapses is a result here
    found = {}
    for index, seed in enumerate(seeds):
        head = load_head(loop.full_spec, weights, index)
        p = predict_probabilities(head, test.features, test.logits)
        found[seed] = float((p.argmax(axis=1) == test.labels).mean())
    return found


def means(by_seed: pd.DataFrame) -> pd.DataFrame:
    """For each score and share: mean accuracy over the seeds, and its gain over random subsets.

    ``gain`` is the mean difference, seed by seed, to the random subset of the same size;
    ``std`` and ``gain_std`` are over seeds, NaN for one.
    """
    random = by_seed[by_seed["score"] == RANDOM].set_index(["keep", "seed"])["accuracy"]
    keys = pd.MultiIndex.from_frame(by_seed[["keep", "seed"]])
    frame = by_seed.assign(gain=by_seed["accuracy"].to_numpy() - random.reindex(keys).to_numpy())
    groups: Any = frame.groupby(["score", "keep"], sort=False)
    found: pd.DataFrame = groups.agg(
        n_rows=("n_rows", "first"),
        n_seeds=("seed", "size"),
        n_classes=("n_classes", "min"),
        accuracy=("accuracy", "mean"),
        std=("accuracy", "std"),
        gain=("gain", "mean"),
        gain_std=("gain", "std"),
    ).reset_index()
    return found
