"""ProbCover, TypiClust and cluster-margin against slow loops over rows."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.active_learning import coverage
from stages.active_learning.coverage import (
    NEIGHBOURS,
    PURITY,
    cluster_margin,
    covering,
    prob_cover,
    pure_radius,
    typiclust,
)

Array = NDArray[Any]


def groups(n_rows: int, seed: int = 0) -> tuple[Array, Array]:
    """Rows around four directions, and rows with labels."""
    rng = np.random.default_rng(seed)
    centres = 4 * np.eye(4, 6)
    points = centres[rng.integers(0, 4, n_rows)] + rng.normal(size=(n_rows, 6))
    return points, centres[:2] + rng.normal(size=(2, 6))


def unit(points: Array) -> Array:
    return np.stack([point / np.linalg.norm(point) for point in points])


@pytest.fixture(params=[2**22, 64], ids=["one block", "blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_BLOCK_ELEMENTS", request.param)


def slow_radius(points: Array, clusters: Array) -> float:
    """The largest distance between rows at which enough open balls are pure."""

    def purity(radius: float) -> float:
        balls = [np.linalg.norm(points - point, axis=1) < radius for point in points]
        return float(np.mean([len(set(clusters[ball])) <= 1 for ball in balls]))

    gaps = {float(np.linalg.norm(one - two)) for one in points for two in points}
    return max(gap for gap in gaps if purity(gap - 1e-9) >= PURITY)


@pytest.mark.usefixtures("_blocks")
def test_the_radius_is_the_largest_that_is_pure_enough() -> None:
    points = unit(groups(40)[0])
    clusters = np.random.default_rng(1).permutation(points[:, 0] > np.median(points[:, 0]))
    found = pure_radius(points, clusters.astype(np.int64))
    assert found == pytest.approx(slow_radius(points, clusters), abs=1e-7)
    assert pure_radius(points, np.zeros(40, np.int64)) == np.inf


@pytest.mark.usefixtures("_blocks")
def test_rows_are_covered_greedily() -> None:
    radius = 0.6123
    pool, labelled = groups(60)
    points, known = unit(pool), unit(labelled)
    rows, scores = covering(points, known, radius, 6, np.random.default_rng(0))

    covered = {
        at for at, point in enumerate(points) if min(np.linalg.norm(known - point, axis=1)) < radius
    }
    for row, score in zip(rows, scores, strict=True):
        balls = [
            {at for at, other in enumerate(points) if np.linalg.norm(point - other) < radius}
            for point in points
        ]
        gains = [len(ball - covered) for ball in balls]
        assert (row, score) == (int(np.argmax(gains)), max(gains))
        covered |= balls[row]


def test_prob_cover_draws_rows_once_all_are_covered() -> None:
    rows, scores = prob_cover(np.ones((9, 3)), np.ones((1, 3)), 4, 3, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 4
    assert scores.tolist() == [0, 0, 0, 0]


@pytest.mark.usefixtures("_blocks")
def test_typiclust_takes_the_most_typical_row_of_each_cluster_without_a_label() -> None:
    pool, labelled = groups(80, seed=3)
    n, points = 6, unit(np.concatenate(groups(80, seed=3)))
    clusters = coverage._clusters_of(  # the same clusters for the slow version
        points, len(labelled) + n, np.random.default_rng(5)
    )
    rows, scores = typiclust(pool, labelled, n, np.random.default_rng(5))

    taken = list(range(80, 82))
    left = set(range(80))
    for row, score in zip(rows.tolist(), scores, strict=True):
        sizes = {each: int(sum(clusters == each)) for each in set(clusters.tolist())}
        able = [each for each in sizes if any(clusters[at] == each for at in left)]
        fewest = min(
            able, key=lambda c: (sizes[c] < 5, sum(clusters[at] == c for at in taken), -sizes[c], c)
        )
        members = [at for at in range(80) if clusters[at] == fewest]
        n_near = min(NEIGHBOURS, len(members) // 2)
        typicality = {
            at: 1
            / np.mean(sorted(np.linalg.norm(points[members] - points[at], axis=1))[1 : n_near + 1])
            for at in members
            if at in left
        }
        assert row == max(typicality, key=lambda at: typicality[at])
        assert score == pytest.approx(typicality[row])
        taken.append(row)
        left.remove(row)


def test_cluster_margin_takes_one_candidate_of_each_cluster_in_turn() -> None:
    rng = np.random.default_rng(0)
    pool = np.repeat(np.arange(5) * 100.0, [30, 10, 14, 12, 34])[:, None] + rng.random((100, 1))
    groups_of = np.repeat(np.arange(5), [30, 10, 14, 12, 34])
    logits = rng.normal(size=(100, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    first, second = np.sort(shares, axis=1)[:, :-3:-1].T
    candidates = np.argsort(first - second)[:50]
    rows, scores = cluster_margin(pool, shares, 5, np.random.default_rng(1))

    assert set(rows.tolist()) <= set(candidates.tolist())
    sizes = np.bincount(groups_of[candidates], minlength=5)
    assert sizes.min() > 0
    assert sizes[groups_of[rows]].tolist() == sorted(sizes)
    assert len(set(groups_of[rows])) == 5
    np.testing.assert_allclose(scores, (second - first)[rows])


def test_cluster_margin_goes_round_the_clusters_until_there_are_enough() -> None:
    shares = np.tile([0.5, 0.5], (40, 1))
    rows, _ = cluster_margin(
        np.arange(40.0)[:, None] // 20 * 50, shares, 39, np.random.default_rng(0)
    )
    assert len(set(rows.tolist())) == 39
    assert all(
        len({one // 20, two // 20}) == 2 for one, two in zip(rows[:38:2], rows[1:38:2], strict=True)
    )
