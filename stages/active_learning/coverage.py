"""Query strategies that cover the embedding: ProbCover, TypiClust and cluster-margin.

Distances are computed for blocks of rows, so that memory grows with the rows and not with their
square. Sources: Yehuda et al., 2022 (Active Learning Through a Covering Lens); Hacohen et al., 2022
(Active Learning on a Budget); Citovsky et al., 2021 (Batch Active Learning at Scale).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]
Chosen = tuple[Rows, NDArray[np.float64]]
"""Rows in the order of selection, and the score that each had at that time."""

PURITY = 0.95
"""ProbCover: share of the balls that contain rows of one cluster only."""

MAX_CLUSTERS, FEWEST_ROWS, NEIGHBOURS = 500, 5, 20
"""TypiClust: most clusters, rows below which a cluster comes last, and neighbours of a row."""

CANDIDATES, CLUSTER_ROWS, MAX_CANDIDATES = 10, 10, 10_000
"""Cluster-margin: candidates for each row to select, mean rows of a cluster, most candidates."""

_BLOCK_ELEMENTS = 2**22
"""Distances that are held at a time: 32 MiB in float64."""


def prob_cover(
    embedding: Numbers,
    labelled: Numbers,
    n: int,
    n_classes: int,
    generator: np.random.Generator,
) -> Chosen:
    """Rows whose balls of one radius cover the most rows that no selected ball covers yet.

    Vectors are scaled to length 1. The radius is the largest one for which ``PURITY`` of the balls
    are pure by the clusters of k-means, with one cluster for each class. Once all rows are covered,
    the others are drawn uniformly. Scores are the numbers of rows that became covered.
    """
    points = _unit(embedding)
    radius = pure_radius(points, _clusters_of(points, n_classes, generator))
    return covering(points, _unit(labelled), radius, n, generator)


def covering(
    points: Numbers, labelled: Numbers, radius: float, n: int, generator: np.random.Generator
) -> Chosen:
    """Rows whose open balls cover the most rows that no ball covers yet, and these numbers.

    Balls of the labelled vectors cover from the start. Vectors have length 1, shape ``(n, d)``.
    """
    is_covered = np.zeros(len(points), np.bool_)
    for rows, gaps in _distances(points, labelled):
        is_covered[rows] = (gaps < radius).any(axis=1)
    degrees = _n_within(points, points[~is_covered], radius)
    chosen: list[int] = []
    scores: list[float] = []
    while len(chosen) < n and degrees.max() > 0:
        row = int(degrees.argmax())
        near = _distances_to(points, points[row]) < radius
        new = np.flatnonzero(near & ~is_covered)
        chosen.append(row)
        scores.append(float(degrees[row]))
        is_covered[new] = True
        degrees -= _n_within(points, points[new], radius)
        degrees[row] = 0  # all of its ball is covered; rounding may count a row on its edge
    return _filled(chosen, scores, len(points), n, generator)


def pure_radius(points: Numbers, clusters: Rows) -> float:
    """The largest radius at which ``PURITY`` of the open balls have rows of one cluster only.

    A ball is pure up to the distance from its centre to the nearest row of another cluster; the
    radius is a quantile of these. It is infinite if there is one cluster.
    """
    nearest = np.full(len(points), np.inf)
    for rows, gaps in _distances(points, points):
        gaps[clusters[rows][:, None] == clusters[None, :]] = np.inf
        nearest[rows] = gaps.min(axis=1)
    return float(np.sort(nearest)[int((1 - PURITY) * len(points) + 1e-9)])


def typiclust(
    embedding: Numbers, labelled: Numbers, n: int, generator: np.random.Generator
) -> Chosen:
    """The most typical row of each cluster that has the fewest labels, the largest cluster first.

    Vectors are scaled to length 1. There are as many clusters as rows will have labels, at most
    ``MAX_CLUSTERS``; those with fewer than ``FEWEST_ROWS`` rows come last. Typicality, the score,
    is the inverse of the mean distance to the ``NEIGHBOURS`` nearest rows of the same cluster that
    have no label, at most half of them. It is computed once.
    """
    points = _unit(np.concatenate([embedding, labelled]))
    n_pool = len(embedding)
    clusters = _clusters_of(points, min(len(labelled) + n, MAX_CLUSTERS), generator)
    n_clusters = int(clusters.max()) + 1
    sizes = np.bincount(clusters, minlength=n_clusters)
    n_labelled = np.bincount(clusters[n_pool:], minlength=n_clusters)
    members = [
        _typical(points, np.flatnonzero(clusters[:n_pool] == at)) for at in range(n_clusters)
    ]
    rows, scores = np.empty(n, np.int64), np.empty(n)
    for at in range(n):
        left = [each for each in range(n_clusters) if members[each]]
        first = min(
            left, key=lambda each: (sizes[each] < FEWEST_ROWS, n_labelled[each], -sizes[each])
        )
        rows[at], scores[at] = members[first].pop(0)
        n_labelled[first] += 1
    return rows, scores


def _typical(points: Numbers, rows: Rows) -> list[tuple[int, float]]:
    """Rows of a cluster with their typicality, the most typical first."""
    n_near = min(NEIGHBOURS, len(rows) // 2)
    if not n_near:
        return [(int(row), 0.0) for row in rows]
    means = np.empty(len(rows))
    for block, gaps in _distances(points[rows], points[rows]):
        nearest = np.partition(gaps, n_near, axis=1)[:, : n_near + 1]
        means[block] = nearest.sum(axis=1) / n_near  # its distance to itself is 0
    typicality = 1 / np.maximum(means, 1e-12)
    return [(int(rows[at]), float(typicality[at])) for at in np.argsort(-typicality, kind="stable")]


def cluster_margin(
    embedding: Numbers, probabilities: Numbers, n: int, generator: np.random.Generator
) -> Chosen:
    """Uncertain rows of as many clusters as possible, the smallest clusters first.

    Of the ``CANDIDATES * n`` rows with the smallest margins, one is drawn from each cluster in
    turn.
    Only these candidates are clustered, by average linkage of distances, into clusters of
    ``CLUSTER_ROWS`` rows on average; of more than ``MAX_CANDIDATES``, the first are used, or ``n``.
    The paper clusters the whole pool once, which takes memory for the distances of all pairs.
    Scores are negative margins.
    """
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    n_candidates = min(len(embedding), max(n, min(CANDIDATES * n, MAX_CANDIDATES)))
    candidates = np.argsort(first - second, kind="stable")[:n_candidates]
    clusters = _linked(embedding[candidates], max(1, n_candidates // CLUSTER_ROWS))
    shuffled = generator.permutation(n_candidates)
    turn = np.empty(n_candidates, np.int64)  # place of each candidate within its cluster
    order = shuffled[np.argsort(clusters[shuffled], kind="stable")]
    _, starts, sizes = np.unique(clusters[order], return_index=True, return_counts=True)
    turn[order] = np.arange(n_candidates) - np.repeat(starts, sizes)
    size = np.bincount(clusters)[clusters]
    chosen = candidates[np.lexsort((clusters, size, turn))[:n]]
    return chosen, np.asarray((second - first)[chosen], np.float64)


def _linked(points: Numbers, n_clusters: int) -> Rows:
    """Clusters by average linkage of Euclidean distances, at most ``n_clusters``."""
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to import

    if len(points) < 2:
        return np.zeros(len(points), np.int64)
    tree = linkage(np.asarray(points, np.float64), "average")
    return np.asarray(fcluster(tree, n_clusters, "maxclust"), np.int64)


def _clusters_of(points: Numbers, n_clusters: int, generator: np.random.Generator) -> Rows:
    """Clusters of k-means, numbered from 0; there are fewer if rows coincide."""
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.exceptions import ConvergenceWarning

    seed = int(generator.integers(2**31))
    model = KMeans(min(n_clusters, len(points)), n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = model.fit_predict(points)
    return np.asarray(np.unique(found, return_inverse=True)[1], np.int64)


def _unit(vectors: Numbers) -> Numbers:
    """Vectors scaled to length 1, in float64; zeros stay."""
    found = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(lengths > 0, lengths, 1))


def _distances(rows: Numbers, others: Numbers) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Distances of blocks of rows to all others, ``[block, len(others)]``; none without others."""
    if not len(others):
        return
    step = max(1, _BLOCK_ELEMENTS // len(others))
    squares = (others**2).sum(axis=1)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        squared = (block**2).sum(axis=1)[:, None] + squares - 2 * block @ others.T
        yield slice(start, start + len(block)), np.sqrt(np.maximum(squared, 0))


def _distances_to(points: Numbers, point: Numbers) -> NDArray[np.float64]:
    """Distances of all points to one of them."""
    return np.concatenate([gaps[:, 0] for _, gaps in _distances(points, point[None])])


def _n_within(points: Numbers, others: Numbers, radius: float) -> Rows:
    """How many of the others are nearer to each point than the radius."""
    counts = np.zeros(len(points), np.int64)
    for rows, gaps in _distances(points, others):
        counts[rows] = (gaps < radius).sum(axis=1)
    return counts


def _filled(
    chosen: list[int], scores: list[float], n_rows: int, n: int, generator: np.random.Generator
) -> Chosen:
    """The chosen rows and, if they are fewer than ``n``, further ones, drawn with score 0."""
    others = np.setdiff1d(np.arange(n_rows), chosen)
    more = generator.permutation(others)[: n - len(chosen)]
    rows = np.concatenate([np.array(chosen, np.int64), more])
    return rows, np.concatenate([scores, np.zeros(len(more))])
