import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.metrics.calibration import (
    METRICS,
    accuracy,
    brier,
    brier_sum,
    ece,
    ece_adaptive,
    ece_midpoint,
    entropy,
    log_likelihood,
    mce,
    nll,
    summary,
)
from stages.metrics.definitions import DEFINITIONS
from stages.metrics.sums import confidence_bins, judge, merged, sums
from stages.sensing.torchvision_ops import import_torchvision

# Four rows, two classes: confidences .8 .6 .9 .55, of which the second and third are right.
P = np.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.55, 0.45]])
Y = np.array([1, 1, 1, 1])


def some_predictions(n: int = 500, n_classes: int = 10, seed: int = 0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes)) * 3
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    labels = np.where(rng.uniform(size=n) < 0.6, logits.argmax(1), rng.integers(0, n_classes, n))
    return exponentials / exponentials.sum(axis=1, keepdims=True), labels


def row_by_row(probabilities: np.ndarray, labels: np.ndarray, n_bins: int) -> dict[str, float]:
    """Every metric but the adaptive one by a loop over samples and bins, as they are defined."""
    n, n_classes = probabilities.shape
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(n_bins)]
    squares, logs, floored, entropies = 0.0, 0.0, 0.0, 0.0
    for p, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        confidence = max(p)
        index = next((b for b in range(n_bins) if confidence <= (b + 1) / n_bins), n_bins - 1)
        bins[index].append((confidence, p.index(confidence) == label))
        squares += sum((q - (k == label)) ** 2 for k, q in enumerate(p))
        logs -= math.log(max(p[label], 2.220446049250313e-16))
        floored += math.log(p[label] + 1e-12)
        entropies -= sum(q * math.log(q) for q in p if q > 0)
    gaps, middle_gaps = [], []
    for index, rows in enumerate(bins):
        if rows:
            share = sum(right for _, right in rows) / len(rows)
            mean = sum(confidence for confidence, _ in rows) / len(rows)
            gaps.append((len(rows), abs(share - mean)))
            middle_gaps.append((len(rows), abs(share - (index + 0.5) / n_bins)))
    return {
        "accuracy": sum(right for rows in bins for _, right in rows) / n,
        "ece": sum(count * gap for count, gap in gaps) / n,
        "ece_midpoint": sum(count * gap for count, gap in middle_gaps) / n,
        "mce": max(gap for _, gap in gaps),
        "brier": squares / n / n_classes,
        "brier_sum": squares / n,
        "nll": logs / n,
        "log_likelihood": floored / n,
        "entropy": entropies / n,
    }


def test_hand_worked_example() -> None:
    total = sums(P, Y)
    assert total.bin_counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 1, 1, 0]
    assert total.bin_correct.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1, 0]
    assert total.bin_confidence == pytest.approx([0, 0, 0, 0, 0, 1.15, 0, 0.8, 0.9, 0])
    assert accuracy(total) == 0.5
    # Bins: {.6 right, .55 wrong}: |.5 - .575|; {.8 wrong}: .8; {.9 right}: .1
    assert ece(total) == pytest.approx((2 * 0.075 + 0.8 + 0.1) / 4)
    # Middles: .55, .75, .85
    assert ece_midpoint(total) == pytest.approx((2 * 0.05 + 0.75 + 0.15) / 4)
    # Ten bins of equal mass for four rows: each has its own.
    assert ece_adaptive(total) == pytest.approx((0.55 + 0.4 + 0.8 + 0.1) / 4)
    assert mce(total) == pytest.approx(0.8)
    squares = 2 * (0.8**2 + 0.4**2 + 0.1**2 + 0.55**2)
    assert brier(total) == pytest.approx(squares / 8)
    assert brier_sum(total) == pytest.approx(squares / 4)
    expected = -np.log([0.2, 0.6, 0.9, 0.45]).mean()
    assert nll(total) == pytest.approx(expected)
    assert log_likelihood(total) == pytest.approx(-expected)
    assert entropy(total) == pytest.approx(-(P * np.log(P)).sum() / 4)


@pytest.mark.parametrize(("n_bins", "n_classes"), [(10, 10), (15, 3), (1, 2)])
def test_metrics_equal_a_loop_over_samples(n_bins: int, n_classes: int) -> None:
    p, y = some_predictions(n_classes=n_classes)
    found = summary(sums(p, y, n_bins=n_bins))
    del found["ece_adaptive"]
    assert found == pytest.approx(row_by_row(p, y, n_bins), rel=1e-10)


def test_metrics_equal_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

    p, y = some_predictions()
    total = sums(p, y)
    assert accuracy(total) == accuracy_score(y, p.argmax(axis=1))
    assert nll(total) == pytest.approx(log_loss(y, p, labels=range(10)))
    by_library = brier_score_loss(y, p, labels=range(10), scale_by_half=False)
    assert brier_sum(total) == pytest.approx(by_library)
    binary, y_binary = some_predictions(n_classes=2)
    by_library = brier_score_loss(y_binary, binary[:, 1])
    assert brier(sums(binary, y_binary)) == pytest.approx(by_library)


@pytest.mark.parametrize("n_bins", [10, 15])
def test_calibration_errors_equal_those_of_torchmetrics(n_bins: int) -> None:
    """Its bins are [lo, hi), which is the same if no confidence is on an edge."""
    import torch

    import_torchvision()  # which torchmetrics imports, and which needs its operators
    from torchmetrics.functional.classification import multiclass_calibration_error

    p, y = some_predictions(2000)
    total = sums(p, y, n_bins=n_bins)
    for metric, norm in ((ece, "l1"), (mce, "max")):
        by_library = multiclass_calibration_error(
            torch.from_numpy(p), torch.from_numpy(y), num_classes=10, n_bins=n_bins, norm=norm
        )
        assert metric(total) == pytest.approx(by_library.item(), rel=1e-5)


def test_entropy_equals_that_of_scipy() -> None:
    from scipy.stats import entropy as entropy_by_scipy

    p, y = some_predictions()
    assert entropy(sums(p, y)) == pytest.approx(entropy_by_scipy(p, axis=1).mean())


def test_entropy_is_0_when_certain_and_the_logarithm_of_the_classes_when_not() -> None:
    assert entropy(sums(np.eye(4), np.arange(4))) == 0
    assert entropy(sums(np.full((3, 4), 0.25), np.zeros(3, int))) == pytest.approx(math.log(4))


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=6), seed=st.integers(0, 5))
def test_any_split_gives_the_same_result(cuts: list[int], seed: int) -> None:
    p, y = some_predictions(200, seed=seed)
    p[::17] = np.nan
    ends = [0, *sorted(cuts), 200]
    parts = [sums(p[a:b], y[a:b]) for a, b in pairwise(ends)]
    whole, together = sums(p, y), merged(parts)
    assert together.bin_counts.tolist() == whole.bin_counts.tolist()
    assert together.n_failed == whole.n_failed
    assert summary(together) == pytest.approx(summary(whole), rel=1e-12)


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [(0.0, 0), (1e-9, 0), (0.1, 0), (0.3, 2), (0.3 + 1e-12, 3), (0.7, 6), (1.0, 9), (1 + 1e-7, 9)],
)
def test_bins_are_closed_above_and_hold_both_ends(confidence: float, expected: int) -> None:
    assert confidence_bins(np.array([confidence]), 10).tolist() == [expected]


def test_certain_predictions_are_finite_and_fall_in_the_last_bin() -> None:
    total = sums(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert total.bin_counts[-1] == 2
    assert ece(total) == ece_adaptive(total) == 0.5
    assert brier_sum(total) == 1.0
    assert nll(total) == pytest.approx(-math.log(2.220446049250313e-16) / 2)
    assert log_likelihood(total) == pytest.approx((math.log(1e-12) + math.log1p(1e-12)) / 2)


def test_a_row_of_zeros_falls_in_the_first_bin() -> None:
    assert sums(np.zeros((1, 2)), np.array([1])).bin_counts[0] == 1


def test_float32_softmax_that_saturates_is_perfectly_calibrated_when_right() -> None:
    logits = np.eye(10, dtype=np.float32) * 200
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    found = summary(sums(p, np.arange(10)))
    assert p.dtype == np.float32
    assert found["accuracy"] == 1
    assert found["ece"] == found["mce"] == found["brier"] == found["nll"] == 0
    assert found["ece_midpoint"] == pytest.approx(0.05)


def test_float32_is_summed_in_float64() -> None:
    p = np.full((100_000, 2), 0.5, np.float32)
    p[:, 0] += np.float32(1e-3)
    expected = 100_000 * float(p[0, 0])
    total = sums(p, np.zeros(100_000, int))
    assert total.bin_confidence.sum() == pytest.approx(expected, rel=1e-12)


def test_rows_of_nan_are_left_out_and_counted() -> None:
    with_nan = np.vstack([P, [[np.nan, 0.5], [np.inf, 0.0]]])
    total = sums(with_nan, np.append(Y, [0, 0]))
    assert (total.n_rows, total.n_failed, total.n_unlabelled) == (4, 2, 0)
    assert summary(total) == summary(sums(P, Y))


def test_rows_without_a_label_are_left_out_and_counted() -> None:
    total = sums(np.vstack([P, P]), np.append(Y, [-1] * 4))
    assert (total.n_rows, total.n_unlabelled, total.n_failed) == (4, 4, 0)
    assert summary(total) == summary(sums(P, Y))


def test_no_rows_give_nan_without_a_warning() -> None:
    total = sums(np.empty((0, 2)), np.empty(0, int))
    assert all(math.isnan(value) for value in summary(total).values())
    assert summary(total + sums(P, Y)) == summary(sums(P, Y))


def test_sums_are_those_of_the_rows_one_by_one() -> None:
    p, y = some_predictions(200, n_classes=3)
    p[:3], y[3:9] = [[1, 0, 0], [0.3, 0.3, 0.4], [np.nan, 0, 1]], -1
    found, slow = sums(p, y), judge(p, y).sums()
    assert (found.n_rows, found.n_failed, found.n_unlabelled) == (193, 1, 6)
    np.testing.assert_allclose(found.columns, slow.columns, rtol=1e-12)
    np.testing.assert_allclose(found.fine, slow.fine, rtol=1e-12)


def test_sums_survive_pickle() -> None:
    total = sums(P, Y)
    assert summary(pickle.loads(pickle.dumps(total))) == summary(total)


def test_sums_of_different_bins_are_not_added() -> None:
    with pytest.raises(ValueError, match="2 classes in 15 bins to 2 classes in 10 bins"):
        sums(P, Y) + sums(P, Y, n_bins=15)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2, 1]), "a class below 2, found values from 0 to 2"),
        (np.array([0, 1, -2, 1]), "from -2 to 1"),
        (np.array([0.0, 1.0, 1.0, 1.0]), "expected integers, found float64"),
        (np.array([0, 1]), r"found \(4, 2\), \(2,\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sums(P, labels)


def test_every_metric_has_a_definition_of_one_line() -> None:
    assert list(DEFINITIONS) == list(METRICS)
    assert not any("\n" in definition for definition in DEFINITIONS.values())
