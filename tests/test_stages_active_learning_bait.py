"""BAIT against dense Fisher matrices that are inverted anew for every row."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.active_learning import bait as module
from stages.active_learning.bait import DAMPING, OVERSAMPLING, bait, factors_of
from stages.errors import InputError

Array = NDArray[Any]


def rows_of(n_rows: int, n_classes: int, width: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    shares = np.exp(rng.normal(size=(n_rows, n_classes)))
    return shares / shares.sum(axis=1, keepdims=True), rng.normal(size=(n_rows, width))


def fisher(p: Array, f: Array) -> Array:
    """The expected outer product of the gradient of the cross entropy at the last layer."""
    total = np.zeros((len(p) * len(f), len(p) * len(f)))
    for label in range(len(p)):
        gradient = np.outer(p - np.eye(len(p))[label], f).ravel()
        total += p[label] * np.outer(gradient, gradient)
    return total


def slow_bait(pool: list[Array], known: list[Array], n: int) -> tuple[list[int], list[float]]:
    mean = sum([*pool, *known]) / len([*pool, *known])
    first = DAMPING * np.eye(len(mean)) + sum(known)

    def trace(rows: list[int]) -> float:
        return float(np.trace(np.linalg.inv(first + sum(pool[row] for row in rows)) @ mean))

    rows, gains = [], []
    for _ in range(min(len(pool), OVERSAMPLING * n)):
        left = [row for row in range(len(pool)) if row not in rows]
        before = trace(rows)
        best = min(left, key=lambda row: trace([*rows, row]))
        gains.append(before - trace([*rows, best]))
        rows.append(best)
    gain_of = dict(zip(rows, gains, strict=True))
    while len(rows) > n:
        rows.remove(min(rows, key=lambda row: trace([each for each in rows if each != row])))
    return rows, [gain_of[row] for row in rows]


@pytest.mark.parametrize("block", [2**22, 8], ids=["one block", "blocks"])
@pytest.mark.parametrize(("n_classes", "width", "n"), [(2, 3, 4), (4, 3, 5), (3, 5, 9)])
def test_rows_and_gains_are_those_of_dense_matrices(
    n_classes: int, width: int, n: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block)
    pool, known = rows_of(14, n_classes, width, 0), rows_of(4, n_classes, width, 1)
    rows, gains = bait(*pool, known, n)

    dense = [[fisher(p, f) for p, f in zip(*each, strict=True)] for each in (pool, known)]
    expected, their_gains = slow_bait(*dense, n)
    assert rows.tolist() == expected
    np.testing.assert_allclose(gains, their_gains, rtol=1e-8, atol=1e-12)


def test_factors_have_one_column_less_than_classes() -> None:
    p, f = rows_of(6, 5, 3, 2)
    p[0] = [1, 0, 0, 0, 0]
    p[1] = [0, 0, 0.5, 0.5, 0]
    factors = factors_of(p, f)
    assert factors.left.shape == (6, 5, 4)
    for row in range(6):
        dense = factors.dense(row)
        np.testing.assert_allclose(dense @ dense.T, fisher(p[row], f[row]), atol=1e-12)


def test_certain_rows_reduce_nothing_and_come_last() -> None:
    p, f = rows_of(6, 3, 4, 3)
    p[:3] = np.eye(3)
    rows, gains = bait(p, f, rows_of(2, 3, 4, 4), 3)
    assert set(rows.tolist()) == {3, 4, 5}
    assert (gains > 0).all()


def test_matrices_that_do_not_fit_in_memory_are_refused() -> None:
    p, f = np.full((2, 50_000), 1 / 50_000), np.ones((2, 500))
    with pytest.raises(InputError, match=r"strategy bait: 2 rows of 50,000 classes .*: use badge"):
        bait(p, f, (p, f), 1)
