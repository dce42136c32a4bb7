import tracemalloc

import numpy as np
import pytest

from stages.errors import InputError
from stages.reflection.rank_one import RankOneGradient
from stages.reflection.spread import farthest_first, k_means_plus_plus

SHAPES = [(60, 3, 4), (80, 10, 7), (50, 2, 1)]


def gradients(n, n_classes, width, seed=0):
    """Gradients of a classifier: predicted class minus one, non-negative features, some equal
    rows."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, n_classes))
    delta = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    delta[np.arange(n), delta.argmax(axis=1)] -= 1
    features = np.maximum(rng.normal(size=(n, width)), 0)
    delta[1], features[1] = delta[0], features[0]
    return RankOneGradient(delta, features)


def dense_k_means_plus_plus(gradients, n, draws):
    """Reference implementation: all differences in memory, no row skipped."""
    dense = gradients.dense()
    rows = [int((dense**2).sum(axis=1).argmax())]
    for draw in draws[1:]:
        gaps = ((dense[:, None] - dense[rows]) ** 2).sum(axis=2).min(axis=1)
        rows.append(int(np.flatnonzero(np.cumsum(gaps) > draw * gaps.sum())[0]))
    return rows


def dense_farthest_first(gradients, n, there):
    dense, centres = gradients.dense(), list(there.dense())
    rows = []
    for _ in range(n):
        gaps = ((dense[:, None] - np.array(centres)) ** 2).sum(axis=2).min(axis=1)
        rows.append(int(gaps.argmax()))
        centres.append(dense[rows[-1]])
    return rows


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_k_means_plus_plus_chooses_what_dense_gradients_choose(shape, seed):
    found = gradients(*shape, seed)
    draws = np.random.default_rng(seed).random(20)

    rows, distances = k_means_plus_plus(found, 20, draws)

    assert rows.tolist() == dense_k_means_plus_plus(found, 20, draws)
    dense = found.dense()[rows]
    nearest = [((dense[at] - dense[:at]) ** 2).sum(axis=1).min() for at in range(1, 20)]
    np.testing.assert_allclose(distances[1:], nearest, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_farthest_first_chooses_what_dense_gradients_choose(shape):
    found, there = gradients(*shape), gradients(6, *shape[1:], seed=9)

    rows, _ = farthest_first(found, 20, there)

    assert rows.tolist() == dense_farthest_first(found, 20, there)


def test_features_of_both_signs_are_measured_as_well():
    rng = np.random.default_rng(3)
    found = RankOneGradient(rng.normal(size=(70, 5)), rng.normal(size=(70, 6)))
    draws = rng.random(30)

    rows, _ = k_means_plus_plus(found, 30, draws)

    assert rows.tolist() == dense_k_means_plus_plus(found, 30, draws)


def test_rows_that_are_all_alike_are_drawn_evenly_and_once():
    alike = RankOneGradient(np.full((40, 3), 0.5), np.ones((40, 2)))
    draws = np.random.default_rng(0).random(40)

    rows, _ = k_means_plus_plus(alike, 40, draws)
    far, _ = farthest_first(alike, 40, alike.take(slice(0, 0)))

    assert sorted(rows) == sorted(far) == list(range(40))
    assert rows[1:].tolist() != sorted(rows[1:])


def test_a_draw_at_the_very_end_takes_a_row_that_has_weight():
    found = RankOneGradient(np.array([[1.0], [3.0], [0.0]]), np.ones((3, 1)))

    rows, _ = k_means_plus_plus(found, 3, np.full(3, np.nextafter(1, 0)))

    assert rows.tolist() == [1, 2, 0]


def test_memory_is_a_few_numbers_a_row_at_the_width_of_imagenet():
    rng = np.random.default_rng(0)
    n, n_classes, width = 1_000, 1_000, 2_048  # dense: 8 GB
    found = RankOneGradient(
        rng.normal(size=(n, n_classes)).astype(np.float32),
        np.abs(rng.normal(size=(n, width))).astype(np.float32),
    )
    tracemalloc.start()
    k_means_plus_plus(found, 10, rng.random(10))
    farthest_first(found, 10, found.take(slice(0, 100)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2 * (found.delta.nbytes + found.features.nbytes)


def test_scaled_gradients_are_refused():
    with pytest.raises(InputError, match="unscaled"):
        k_means_plus_plus(gradients(10, 3, 4).scaled(), 2, np.zeros(2))
