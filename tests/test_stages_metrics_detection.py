"""Detection metrics compared with scikit-learn, pytorch-ood and a sweep over single rows."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from stages.metrics.definitions import DETECTION
from stages.metrics.detection import (
    CURVE_METRICS,
    aupr_in,
    auroc_sweep,
    curve_of,
    detection_summary,
    fpr95,
    fpr95_ood_pos,
    fpr95_sweep,
)
from stages.sensing.torchvision_ops import import_torchvision

# (inside rows, outside rows, digits that scores are rounded to: few make many ties)
CASES = [(400, 300, None), (400, 300, 1), (37, 91, 1), (200, 200, 0), (1, 1, 1), (20, 3, 0)]


def scores(n_inside, n_outside, digits, seed=0):
    rng = np.random.default_rng([seed, n_inside, n_outside])
    drawn = rng.normal(1.0, 1.0, n_inside), rng.normal(0.0, 1.0, n_outside)
    return drawn if digits is None else tuple(np.round(each, digits) for each in drawn)


def pooled(inside, outside):
    """Labels with the inside as 1, and all scores."""
    return np.repeat([1, 0], [len(inside), len(outside)]), np.concatenate([inside, outside])


def swept(inside, outside):
    """TPR and FPR of the sweep: rows go one at a time, the lowest first, ID first among equals."""
    rows = sorted([(score, 0) for score in inside] + [(score, 1) for score in outside])
    n_left = [len(inside), len(outside)]
    tpr, fpr = [1.0], [1.0]
    for _, kind in rows:
        n_left[kind] -= 1
        tpr.append(n_left[0] / len(inside))
        fpr.append(n_left[1] / len(outside))
    return np.array(tpr), np.array(fpr)


@pytest.mark.parametrize("case", CASES)
def test_areas_are_those_of_scikit_learn(case):
    inside, outside = scores(*case)
    labels, both = pooled(inside, outside)
    found = detection_summary(inside, outside)
    precision, recall, _ = metrics.precision_recall_curve(labels, both)
    turned_precision, turned_recall, _ = metrics.precision_recall_curve(1 - labels, -both)

    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(labels, both), abs=1e-12)
    assert found["aupr_in"] == pytest.approx(metrics.auc(recall, precision), abs=1e-12)
    assert found["aupr_out"] == pytest.approx(
        metrics.auc(turned_recall, turned_precision), abs=1e-12
    )


@pytest.mark.parametrize("case", CASES)
def test_points_of_the_curve_are_those_of_scikit_learn(case):
    inside, outside = scores(*case)
    labels, both = pooled(inside, outside)
    fpr, tpr, _ = metrics.roc_curve(labels, both, drop_intermediate=False)
    found = detection_summary(inside, outside)

    assert found["fpr95"] == pytest.approx(fpr[np.abs(tpr - 0.95).argmin()])
    assert found["detection_error"] == pytest.approx(((1 - tpr + fpr) / 2).min())


@pytest.mark.parametrize("case", CASES)
def test_with_ood_positive_the_numbers_are_those_of_pytorch_ood(case):
    import_torchvision()  # which it imports, and which needs a fix where torch is a CPU build
    from pytorch_ood.metrics import functional

    inside, outside = scores(*case)
    labels, both = pooled(inside, outside)
    # There a label below zero is OOD, and a high score looks like it.
    there = torch.from_numpy(-both), torch.from_numpy(labels - 1)
    found = detection_summary(inside, outside)

    assert found["fpr95_ood_pos"] == pytest.approx(float(functional.fpr_at_tpr(*there)))
    assert found["auroc"] == pytest.approx(float(functional.auroc(*there)))
    assert found["aupr_in"] == pytest.approx(float(functional.aupr(*there, positive="id")))
    assert found["aupr_out"] == pytest.approx(float(functional.aupr(*there, positive="ood")))


@pytest.mark.parametrize("case", CASES)
def test_the_sweep_takes_inside_rows_first_among_equals(case):
    inside, outside = scores(*case)
    tpr, fpr = swept(inside, outside)

    assert auroc_sweep(inside, outside) == pytest.approx(np.trapezoid(tpr[::-1], fpr[::-1]))
    assert fpr95_sweep(inside, outside) == pytest.approx(fpr[np.abs(tpr - 0.95).argmin()])


def test_without_ties_the_sweep_has_the_same_area():
    inside, outside = scores(400, 300, None)

    assert auroc_sweep(inside, outside) == pytest.approx(
        detection_summary(inside, outside)["auroc"]
    )


def test_ties_are_half_won_and_the_sweep_counts_them_as_lost():
    inside, outside = np.ones(50), np.ones(30)
    found = detection_summary(inside, outside)

    assert (found["auroc"], found["auroc_sweep"]) == (0.5, 0.0)
    assert (found["fpr95"], found["fpr95_sweep"], found["detection_error"]) == (1.0, 1.0, 0.5)


def test_the_two_readings_of_the_positive_class_differ():
    """One far outlier among few inside rows: which side the 95 % are of decides."""
    inside, outside = np.append(np.full(39, 2.0), -9.0), np.append(np.full(39, 1.0), 9.0)
    found = detection_summary(inside, outside)

    assert found["fpr95"] == pytest.approx(1 / 40)
    assert found["fpr95_ood_pos"] == pytest.approx(1 / 40)
    inside[1:4] = 0.0
    found = detection_summary(inside, outside)

    assert (found["fpr95"], found["fpr95_ood_pos"]) == (1.0, pytest.approx(4 / 40))


def test_rejecting_exactly_95_percent_is_enough():
    found = detection_summary(np.array([18.5]), np.arange(20.0))

    assert found["fpr95_ood_pos"] == 0


def test_a_perfect_and_a_reversed_detector():
    high, low = np.array([3.0, 4.0]), np.array([1.0, 2.0])
    areas = ("auroc", "aupr_in", "aupr_out")
    found, turned = detection_summary(high, low), detection_summary(low, high)

    assert [found[name] for name in areas] == [1, 1, 1]
    assert (found["fpr95"], found["fpr95_ood_pos"], found["detection_error"]) == (0, 0, 0)
    assert turned["auroc"] == 0
    assert (turned["fpr95"], turned["detection_error"]) == (1, 0.5)


def test_weights_count_rows_as_often_as_they_say():
    inside, outside = scores(40, 30, 1)
    weights = np.random.default_rng(3).poisson(1.0, (70, 4)).astype(np.uint8)
    curve = curve_of(inside, outside, weights)
    for resample, times in enumerate(weights.T):
        drawn = np.repeat(inside, times[:40]), np.repeat(outside, times[40:])
        expected = detection_summary(*drawn)
        for name, metric in CURVE_METRICS.items():
            assert metric(curve)[resample] == pytest.approx(expected[name], abs=1e-12), name


def test_leading_rows_without_weight_do_not_affect_precision():
    curve = curve_of(np.array([3.0, 1.0]), np.array([2.0]), np.array([[0], [1], [1]]))

    assert aupr_in(curve)[0] == pytest.approx(metrics.auc([1, 0, 0], [0.5, 0.0, 1.0]))


def test_a_side_of_no_weight_has_no_rates():
    curve = curve_of(np.array([0.0]), np.array([1.0]), np.array([[0, 1, 1], [1, 0, 1]]))

    assert np.isnan(fpr95(curve)).tolist() == [True, True, False]
    assert np.isnan(fpr95_ood_pos(curve)).tolist() == [True, True, False]


def test_every_metric_has_its_definition():
    assert list(detection_summary(np.ones(2), np.zeros(2))) == list(DETECTION)


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0], "expected in-distribution scores"),
        ([1.0], [], "expected out-of-distribution scores"),
        ([1.0], [np.nan, 1.0], r"found \[2\] with 1 NaN"),
    ],
)
def test_invalid_scores_are_refused(inside, outside, message):
    with pytest.raises(ValueError, match=message):
        detection_summary(np.array(inside), np.array(outside))


def test_infinite_scores_tie():
    inside, outside = np.array([np.inf, np.inf, 1.0]), np.array([np.inf, -np.inf, -np.inf])
    finite = [np.clip(each, -9, 9) for each in (inside, outside)]

    assert detection_summary(inside, outside) == detection_summary(*finite)


def test_the_code_base_takes_the_loosest_of_thresholds_that_accept_the_same_rows():
    """20 ID rows; the sixth OOD row from above lies between the two lowest ID rows."""
    inside = np.arange(20.0)
    outside = np.array([0.5, 0.6, 0.7, 5.5, 25, 26, 27, 28, 29, 30])

    found = detection_summary(inside, outside)

    assert (found["fpr95"], found["fpr95_sweep"]) == (pytest.approx(0.7), pytest.approx(1.0))
