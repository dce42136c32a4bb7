"""Confident learning beside slow loops, and beside cleanlab on the same probabilities."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.curation.confident_learning import (
    confidence_weighted_entropy,
    confident_joint,
    confident_learning,
    expected_counts,
    normalized_margin,
    pruned_by_noise_rate,
    self_confidence,
    thresholds,
)

Drawn = tuple[NDArray[np.float64], NDArray[np.int64]]


def drawn(n_rows: int = 60, n_classes: int = 3, seed: int = 0) -> Drawn:
    """Probabilities with four digits, and labels a fifth of which are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, n_rows)
    logits = rng.normal(size=(n_rows, n_classes)) + 2.5 * np.eye(n_classes)[truth]
    p = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 4)
    p[:, 0] += 1 - p.sum(axis=1)
    moved = (truth + rng.integers(1, max(n_classes, 2), n_rows)) % n_classes
    return p, np.where(rng.random(n_rows) < 0.2, moved, truth)


def slow_joint(p: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    n_classes = p.shape[1]
    of = [
        [row for row, label in zip(p, labels, strict=True) if label == k] for k in range(n_classes)
    ]
    at = [np.mean([row[k] for row in of[k]]) for k in range(n_classes)]
    joint = np.zeros((n_classes, n_classes), int)
    for row, label in zip(p, labels, strict=True):
        confident = [k for k in range(n_classes) if row[k] >= at[k] - 1e-6]
        if confident:
            joint[label, max(confident, key=lambda k: row[k])] += 1
    return joint


@pytest.mark.parametrize(("n_rows", "n_classes"), [(60, 3), (500, 7), (9000, 4)])
def test_joint_counts_are_those_of_a_loop(n_rows: int, n_classes: int) -> None:
    p, labels = drawn(n_rows, n_classes)

    found = confident_learning(p, labels)

    assert (found.joint == slow_joint(p, labels)).all()
    assert found.joint[~np.eye(n_classes, dtype=bool)].any()
    assert found.expected.sum(axis=1).tolist() == np.bincount(labels).tolist()


def test_flags_are_those_of_a_loop() -> None:
    p, labels = drawn(500, 5)
    found = confident_learning(p, labels)
    expected = np.zeros(500, bool)
    for i in range(5):
        rows = [row for row in range(500) if labels[row] == i]
        for j in range(5):
            ordered = sorted(rows, key=lambda row: p[row, i] - p[row, j])
            if i != j:
                expected[ordered[: found.expected[i, j]]] = True
    expected &= p.argmax(axis=1) != labels

    assert 50 < expected.sum() < 150
    assert (found.is_issue == expected).all()


def test_scores_of_labels_are_those_of_a_loop() -> None:
    p, labels = drawn(40, 4)
    for row, label in enumerate(labels):
        others = np.delete(p[row], label)
        assert self_confidence(p, labels)[row] == p[row, label]
        assert normalized_margin(p, labels)[row] == pytest.approx(
            (1 + p[row, label] - others.max()) / 2
        )
        positive = p[row][p[row] > 0]
        x = -(positive * np.log(positive)).sum() / np.log(4) / p[row, label]
        assert confidence_weighted_entropy(p, labels)[row] == pytest.approx(np.log(1 + x) / x)


CLEANLAB_JOINT = [[18, 4, 0, 4], [9, 29, 0, 1], [0, 2, 25, 0], [1, 2, 2, 33]]
CLEANLAB_ISSUES = [
    4,
    7,
    13,
    14,
    15,
    35,
    42,
    45,
    46,
    47,
    57,
    58,
    67,
    68,
    71,
    78,
    84,
    85,
    88,
    96,
    105,
    109,
    115,
    123,
]
CLEANLAB_MARGIN = [0.7243, 0.9598, 0.9113, 0.85845, 0.05195]
CLEANLAB_ENTROPY = [0.651777, 0.916546, 0.848359, 0.783743, 0.372484]


def test_cleanlab_finds_the_same() -> None:
    """Stored values of cleanlab 2.9.0; this prints them::

    from cleanlab.count import compute_confident_joint
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    p, labels = drawn(130, 4, seed=1)
    print(compute_confident_joint(labels, p, calibrate=True).tolist())
    print(np.flatnonzero(find_label_issues(labels, p)).tolist())  # by prune_by_noise_rate
    for name in ("normalized_margin", "confidence_weighted_entropy"):
        print(get_label_quality_scores(labels, p, method=name)[:5].round(6).tolist())
    """
    p, labels = drawn(130, 4, seed=1)

    found = confident_learning(p, labels)

    assert found.expected.tolist() == CLEANLAB_JOINT
    assert np.flatnonzero(found.is_issue).tolist() == CLEANLAB_ISSUES
    assert normalized_margin(p, labels)[:5] == pytest.approx(CLEANLAB_MARGIN, abs=1e-6)
    assert confidence_weighted_entropy(p, labels)[:5] == pytest.approx(CLEANLAB_ENTROPY, abs=1e-6)


def test_a_class_without_rows_has_no_threshold_and_is_never_suspected() -> None:
    p = np.array([[0.6, 0.1, 0.3], [0.2, 0.1, 0.7], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]])
    labels = np.array([0, 2, 2, 0])

    found = confident_learning(p, labels)

    assert found.thresholds == pytest.approx([0.65, np.nan, 0.4], nan_ok=True)
    assert found.joint.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert not found.is_issue.any()


def test_one_class_has_no_label_errors() -> None:
    p, labels = np.ones((4, 1)), np.zeros(4, np.int64)

    found = confident_learning(p, labels)

    assert (found.joint.tolist(), found.is_issue.any()) == ([[4]], False)
    assert normalized_margin(p, labels).tolist() == [1.0] * 4
    assert confidence_weighted_entropy(p, labels).tolist() == [1.0] * 4


def test_no_rows_give_no_findings() -> None:
    found = confident_learning(np.empty((0, 3)), np.empty(0, np.int64))

    assert np.isnan(found.thresholds).all()
    assert not found.joint.any()
    assert found.is_issue.tolist() == []


def test_equal_rows_are_flagged_in_their_order() -> None:
    p = np.tile([0.1, 0.9], (4, 1))

    flags = pruned_by_noise_rate(p, np.zeros(4, np.int64), np.array([[2, 2], [0, 0]]))

    assert flags.tolist() == [True, True, False, False]


def test_the_only_row_of_a_class_is_not_flagged() -> None:
    p, labels = np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([0, 1])

    assert not pruned_by_noise_rate(p, labels, np.array([[0, 1], [0, 1]])).any()


def test_rounding_keeps_the_number_of_rows_of_each_label() -> None:
    joint = np.array([[2, 1, 1], [0, 3, 0], [0, 0, 0]])

    found = expected_counts(joint, np.array([10, 2, 0]))

    assert found.tolist() == [[5, 2, 3], [0, 2, 0], [0, 0, 0]]


def test_an_impossible_label_is_the_most_suspect() -> None:
    p = np.array([[0.0, 1.0], [0.5, 0.5]])

    assert confidence_weighted_entropy(p, np.array([0, 0])).tolist()[0] == 0
    assert thresholds(p, np.array([0, 0]))[0] == 0.25
    assert confident_joint(p, np.array([0, 0]), np.array([0.25, np.nan])).tolist() == [
        [1, 0],
        [0, 0],
    ]
