"""Equal-mass bins from a fine histogram, compared with sorting all rows."""

from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.metrics.adaptive import FINE_EDGES, N_FINE_BINS, equal_mass_bins, fine_bins
from stages.metrics.calibration import ece, ece_adaptive
from stages.metrics.sums import CalibrationSums, merged, sums


def judged(confidence: NDArray[np.float64], is_correct: NDArray[np.bool_]) -> CalibrationSums:
    """Sums of two-class rows with these confidences, which are one half at least."""
    return sums(np.stack([confidence, 1 - confidence], axis=1), np.where(is_correct, 0, 1))


def by_sorting(confidence: NDArray[np.float64], is_correct: NDArray[np.bool_]) -> float:
    """The definition with every confidence known: rows sorted, equal ones together."""
    n, n_below, bins = len(confidence), 0, {}
    rows = sorted(zip(confidence.tolist(), is_correct.tolist(), strict=True))
    for _, ties in groupby(rows, key=lambda row: row[0]):
        same = list(ties)
        index = min(9, int(10 * (n_below + len(same) / 2) / n))
        bins.setdefault(index, []).extend(same)
        n_below += len(same)
    return sum(abs(sum(right - c for c, right in rows)) for rows in bins.values()) / n


def by_equal_parts(confidence: NDArray[np.float64], is_correct: NDArray[np.bool_]) -> float:
    """The plain reading, where nothing ties and ten divides the rows: ten equal parts in order."""
    order = np.argsort(confidence)
    parts = np.split(order, 10)
    return sum(abs((is_correct[p] - confidence[p]).sum()) for p in parts) / len(confidence)


def drawn(kind: str, n: int = 10_000, seed: int = 0):
    """Confidences between one half and 1: even, crowded near 1, or extremely so.

    Accuracy oscillates around them, so that the edges of bins matter.
    """
    rng = np.random.default_rng(seed)
    shape = {"even": (1.0, 1.0), "confident": (4.0, 0.4), "saturated": (5.0, 0.05)}[kind]
    confidence = 0.5 + rng.beta(*shape, n) / 2
    return confidence, rng.uniform(size=n) < 0.75 + 0.25 * np.sin(40 * confidence)


@pytest.mark.parametrize("kind", ["even", "confident", "saturated"])
def test_it_equals_ten_equal_parts_of_the_sorted_rows(kind: str) -> None:
    confidence, is_correct = drawn(kind)
    expected = by_sorting(confidence, is_correct)
    assert ece_adaptive(judged(confidence, is_correct)) == pytest.approx(expected, abs=2e-3)


def test_without_ties_the_definition_is_ten_equal_parts() -> None:
    confidence, is_correct = drawn("even", 1000)
    assert by_sorting(confidence, is_correct) == pytest.approx(
        by_equal_parts(confidence, is_correct)
    )


@settings(max_examples=50, deadline=None)
@given(
    choice=st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=60),
)
def test_it_is_exact_for_few_separate_confidences(choice: list[tuple[int, bool]]) -> None:
    values = np.linspace(0.5, 1.0, 21)
    confidence = values[[at for at, _ in choice]]
    is_correct = np.array([right for _, right in choice])
    expected = by_sorting(confidence, is_correct)
    assert ece_adaptive(judged(confidence, is_correct)) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=6), order=st.integers(0, 5))
def test_it_depends_neither_on_the_split_nor_on_the_order(cuts: list[int], order: int) -> None:
    confidence, is_correct = drawn("confident", 300)
    rows = np.random.default_rng(order).permutation(300)
    ends = [0, *sorted(cuts), 300]
    parts = [judged(confidence[rows[a:b]], is_correct[rows[a:b]]) for a, b in pairwise(ends)]
    whole = ece_adaptive(judged(confidence, is_correct))
    assert ece_adaptive(merged(parts)) == pytest.approx(whole, rel=1e-12)


def test_rows_that_tie_share_a_bin() -> None:
    confidence, is_correct = np.full(1000, 0.75), np.arange(1000) < 500
    assert ece_adaptive(judged(confidence, is_correct)) == pytest.approx(0.25)


def test_it_detects_errors_that_equal_width_bins_average_out() -> None:
    # All in (0.9, 1]: the lower half is never right, the upper one always.
    confidence = np.concatenate([np.linspace(0.91, 0.949, 500), np.linspace(0.951, 0.99, 500)])
    is_correct = np.arange(1000) >= 500
    total = judged(confidence, is_correct)
    assert ece_adaptive(total) == pytest.approx((0.9295 + 0.0295) / 2, abs=1e-3)
    assert ece(total) == pytest.approx(0.95 - 0.5, abs=1e-3)


def test_a_hundred_rows_make_ten_bins_of_ten() -> None:
    fine = np.zeros((3, N_FINE_BINS))
    fine[:, 7 : 7 + 300 : 3] = 1
    assert equal_mass_bins(fine, 10)[0].tolist() == [10] * 10


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [(0.0, 0), (0.001, 0), (1.0, N_FINE_BINS - 1), (1 + 1e-7, N_FINE_BINS - 1)],
)
def test_the_fine_bins_hold_both_ends(confidence: float, expected: int) -> None:
    assert fine_bins(np.array([confidence])).tolist() == [expected]


def test_the_fine_edges_distinguish_confidences_near_one() -> None:
    assert (np.diff(FINE_EDGES) > 0).all()
    assert 0 < FINE_EDGES[0] < FINE_EDGES[-1] < 1
    near_one = 1 - np.array([1e-3, 1e-5, 1e-7, 1e-9])
    assert len(set(fine_bins(near_one).tolist())) == 4
    assert np.diff(FINE_EDGES).max() < 0.006
