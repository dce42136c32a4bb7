"""Query strategies of active learning: the rows of a pool to label next, as pure functions.

Sources: Ash et al., 2020 (BADGE) and its published code; Sener and Savarese, 2018 (core-set);
Houlsby et al., 2011 (BALD); those of `coverage` and `bait`. Strategies only see numbers, which may
be those of f or of H.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from stages.active_learning.bait import bait
from stages.active_learning.coverage import cluster_margin, prob_cover, typiclust
from stages.metrics.finite import finite_rows
from stages.reflection.rank_one import RankOneGradient
from stages.reflection.spread import farthest_first, k_means_plus_plus

Numbers = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Query:
    """Rows of a pool in the order of selection, with their scores.

    ``scores`` are the strategy's own, larger for preferred rows; both have shape ``[n]``.
    ``n_left_out`` rows of the pool could not be selected, because their values are not finite.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    n_left_out: int = 0


@dataclass(frozen=True, eq=False)
class Seen:
    """Predictions and embedding of rows.

    Attributes:
        probabilities: ``[n, N]``.
        embedding: input of its last layer, ``[n, e]``: the features of f, H's last hidden layer.
    """

    probabilities: Numbers
    embedding: Numbers

    @property
    def usable(self) -> NDArray[np.int64]:
        """The rows whose values are all finite, ascending."""
        return np.flatnonzero(finite_rows(self.probabilities, self.embedding))

    def take(self, rows: NDArray[np.int64]) -> Seen:
        """Select rows."""
        return Seen(self.probabilities[rows], self.embedding[rows])

    @property
    def gradients(self) -> RankOneGradient[Numbers]:
        """Gradients of the cross entropy to the predicted class, at the last layer."""
        delta = self.probabilities.copy()
        delta[np.arange(len(delta)), delta.argmax(axis=1)] -= 1
        return RankOneGradient(delta, self.embedding)


@dataclass(frozen=True, eq=False)
class Pool:
    """The data available to a strategy.

    Attributes:
        seen: predictions for the rows that can be selected.
        labelled: predictions for the labelled rows.
        passes: returns the probabilities ``[n, N]`` of each of several passes with dropout.
    """

    seen: Seen
    labelled: Seen
    passes: Callable[[], Iterable[Numbers]]


def entropy(probabilities: Numbers, n: int) -> Query:
    """The most uncertain rows, by ``-Σ p log p``."""
    return _largest(entr(probabilities).sum(axis=1), n)


def least_confidence(probabilities: Numbers, n: int) -> Query:
    """The rows whose largest probability is smallest."""
    return _largest(1 - probabilities.max(axis=1), n)


def margin(probabilities: Numbers, n: int) -> Query:
    """The rows whose two largest probabilities are closest."""
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    return _largest(second - first, n)


def bald(passes: Iterable[Numbers], n: int) -> Query:
    """The rows on which the passes disagree most: ``H(E p) - E H(p)``, the mutual information."""
    n_passes = 0
    mean: Any = 0.0
    own: Any = 0.0
    for probabilities in passes:
        n_passes += 1
        mean = mean + probabilities
        own = own + entr(probabilities).sum(axis=1)
    return _largest(entr(mean / n_passes).sum(axis=1) - own / n_passes, n)


def badge(seen: Seen, n: int, generator: np.random.Generator) -> Query:
    """Rows with long and diverse gradients, by k-means++ over these; scores are D²."""
    return Query(*k_means_plus_plus(seen.gradients, n, generator.random(n)))


def core_set(embedding: Numbers, labelled: Numbers, n: int) -> Query:
    """Rows farthest from the labelled ones in the embedding; scores are squared distances."""
    return Query(*farthest_first(_vectors(embedding), n, _vectors(labelled)))


def core_set_of_gradients(seen: Seen, labelled: Seen, n: int) -> Query:
    """Rows farthest from the labelled ones in the space of BADGE's gradients."""
    return Query(*farthest_first(seen.gradients, n, labelled.gradients))


def k_means(embedding: Numbers, n: int, generator: np.random.Generator) -> Query:
    """The row nearest to the centre of each of ``n`` clusters of the embedding, largest first.

    If rows coincide there are fewer clusters, and the other rows are drawn uniformly. Scores are
    the sizes of the clusters, 0 for drawn rows.
    """
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(n, n_init=1, random_state=int(generator.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        clusters = model.fit_predict(embedding)
    gaps = ((embedding - model.cluster_centers_[clusters]) ** 2).sum(axis=1)
    by_cluster = np.lexsort((gaps, clusters))
    _, first, sizes = np.unique(clusters[by_cluster], return_index=True, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    nearest = by_cluster[first[order]]
    others = np.setdiff1d(np.arange(len(embedding)), nearest)
    more = generator.permutation(others)[: n - len(nearest)]
    scores = np.concatenate([sizes[order], np.zeros(len(more))])
    return Query(np.concatenate([nearest, more]), scores.astype(np.float64))


def covering(seen: Seen, labelled: Seen, n: int, generator: np.random.Generator) -> Query:
    """Rows that cover most of the embedding, see `stages.active_learning.coverage.prob_cover`."""
    n_classes = seen.probabilities.shape[1]
    return Query(*prob_cover(seen.embedding, labelled.embedding, n, n_classes, generator))


def informative(seen: Seen, labelled: Seen, n: int) -> Query:
    """Rows that make the Fisher information most informative, see `stages.active_learning.bait`."""
    known = labelled.probabilities, labelled.embedding
    return Query(*bait(seen.probabilities, seen.embedding, known, n))


def at_random(n_rows: int, n: int, generator: np.random.Generator) -> Query:
    """Rows drawn uniformly."""
    return Query(generator.permutation(n_rows)[:n], np.zeros(n))


Strategy = Callable[[Pool, int, np.random.Generator], Query]

STRATEGIES: dict[str, Strategy] = {
    "random": lambda pool, n, generator: at_random(len(pool.seen.embedding), n, generator),
    "entropy": lambda pool, n, _: entropy(pool.seen.probabilities, n),
    "least-confidence": lambda pool, n, _: least_confidence(pool.seen.probabilities, n),
    "margin": lambda pool, n, _: margin(pool.seen.probabilities, n),
    "bald": lambda pool, n, _: bald(pool.passes(), n),
    "badge": lambda pool, n, generator: badge(pool.seen, n, generator),
    "core-set": lambda pool, n, _: core_set(pool.seen.embedding, pool.labelled.embedding, n),
    "core-set-gradients": lambda pool, n, _: core_set_of_gradients(pool.seen, pool.labelled, n),
    "k-means": lambda pool, n, generator: k_means(pool.seen.embedding, n, generator),
    "prob-cover": lambda pool, n, generator: covering(pool.seen, pool.labelled, n, generator),
    "typiclust": lambda pool, n, generator: Query(
        *typiclust(pool.seen.embedding, pool.labelled.embedding, n, generator)
    ),
    "cluster-margin": lambda pool, n, generator: Query(
        *cluster_margin(pool.seen.embedding, pool.seen.probabilities, n, generator)
    ),
    "bait": lambda pool, n, _: informative(pool.seen, pool.labelled, n),
}


def _largest(scores: Numbers, n: int) -> Query:
    """The rows with the largest scores; the first ones among ties."""
    rows = np.argsort(-scores, kind="stable")[:n]
    return Query(rows, scores[rows].astype(np.float64))


def _vectors(rows: Numbers) -> RankOneGradient[Numbers]:
    """Vectors ``v`` as ``1 ⊗ v``, which have the same distances."""
    return RankOneGradient(np.ones_like(rows[:, :1]), rows)
