import numpy as np
import pytest

from stages.active_learning.active_learn import STRATEGY_NAMES
from stages.active_learning.strategies import (
    STRATEGIES,
    Pool,
    Seen,
    bald,
    core_set,
    entropy,
    k_means,
    least_confidence,
    margin,
)

SURE, TORN, BLANK = [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3]


def seen(n_rows, seed=0, n_classes=4, width=5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n_rows, n_classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Seen(shares, np.abs(rng.normal(size=(n_rows, width))))


def pool(n_rows=50):
    def passes():
        return (seen(n_rows, seed).probabilities for seed in range(3))

    return Pool(seen(n_rows), seen(8, seed=1), passes)


@pytest.mark.parametrize(
    ("strategy", "order"),
    [(entropy, [2, 1, 0]), (least_confidence, [2, 1, 0]), (margin, [1, 2, 0])],
)
def test_the_least_certain_rows_come_first(strategy, order):
    query = strategy(np.array([SURE, TORN, BLANK]), 3)

    assert query.rows.tolist() == order
    assert (np.diff(query.scores) <= 0).all()


def test_a_certain_row_has_no_entropy_and_is_no_nan():
    assert entropy(np.array([SURE]), 1).scores.tolist() == [0.0]


def test_bald_asks_where_the_passes_disagree_not_where_each_is_torn():
    first, second = [1.0, 0.0], [0.0, 1.0]
    agreed = [0.5, 0.5]

    query = bald([np.array([first, agreed]), np.array([second, agreed])], 2)

    assert query.rows.tolist() == [0, 1]
    np.testing.assert_allclose(query.scores, [np.log(2), 0], atol=1e-12)


def test_core_set_starts_far_from_the_labelled_rows():
    embedding = np.array([[0.0], [4.0], [9.0]])

    assert core_set(embedding, np.array([[0.5]]), 2).rows.tolist() == [2, 1]


def test_k_means_takes_the_row_nearest_to_each_centre_the_largest_cluster_first():
    embedding = np.array([[0.0], [1.0], [0.4], [10.0], [12.0], [11.2]])[[3, 4, 5, 0, 1, 2, 2]]

    query = k_means(embedding, 2, np.random.default_rng(0))

    assert query.rows.tolist() == [5, 2]
    assert query.scores.tolist() == [4, 3]


def test_k_means_of_equal_rows_returns_the_requested_number():
    query = k_means(np.zeros((10, 2)), 4, np.random.default_rng(0))

    assert len(set(query.rows.tolist())) == 4


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("n", [1, 7, 50])
def test_every_strategy_returns_the_requested_number_of_distinct_rows(name, n):
    query = STRATEGIES[name](pool(), n, np.random.default_rng(0))

    assert len(set(query.rows.tolist())) == len(query.rows) == len(query.scores) == n
    assert set(query.rows.tolist()) <= set(range(50))


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_chooses_the_same_rows(name):
    first, second = (STRATEGIES[name](pool(), 9, np.random.default_rng(4)) for _ in range(2))

    assert first.rows.tolist() == second.rows.tolist()


def test_the_command_lists_every_strategy():
    assert tuple(STRATEGIES) == STRATEGY_NAMES
