"""Selective classification against slow loops, all orders of ties, and torch-uncertainty."""

from collections.abc import Callable
from itertools import pairwise, permutations
from math import ceil

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from stages.metrics.definitions import SELECTIVE
from stages.metrics.selective import (
    SELECTIVE_METRICS,
    aurc,
    auroc_f,
    coverage_at,
    e_aurc,
    risk_at,
    risk_curve,
    risks_at,
)

AURC, AUGRC = 0.13077166285274208, 0.09075829351794018
COVERAGE_AT_5, COVERAGE_AT_20, RISK_AT_80 = (
    0.30805686116218567,
    0.7677724957466125,
    0.20710059171597633,
)

Rows = tuple[NDArray[np.float64], NDArray[np.bool_]]


def rows_of(n_rows: int, seed: int = 0, levels: int | None = None) -> Rows:
    """Confidences that know a little of the errors; with few levels many of them are equal."""
    rng = np.random.default_rng([seed, n_rows])
    is_correct = rng.random(n_rows) < 0.7
    confidence = rng.random(n_rows) + 0.3 * is_correct
    if levels is not None:
        confidence = np.floor(confidence * levels) / levels
    return confidence, is_correct


def value(name: str, rows: Rows) -> float:
    return float(SELECTIVE_METRICS[name](risk_curve(*rows))[0])


# Slow versions on rows in one order: ``errors`` of the most confident row first.


def slow_aurc(errors: list[int]) -> float:
    return sum(sum(errors[:k]) / k for k in range(1, len(errors) + 1)) / len(errors)


def slow_augrc(errors: list[int]) -> float:
    n = len(errors)
    return sum(sum(errors[:k]) / n for k in range(1, n + 1)) / n


def slow_e_aurc(errors: list[int]) -> float:
    return slow_aurc(errors) - slow_aurc(sorted(errors))


def slow_auroc(errors: list[int]) -> float:
    pairs = [a < b for a, x in enumerate(errors) if not x for b, y in enumerate(errors) if y]
    return sum(pairs) / len(pairs)


def slow_risk(coverage: float) -> Callable[[list[int]], float]:
    def risk(errors: list[int]) -> float:
        n_kept = max(ceil(round(coverage * len(errors), 6)), 1)
        return sum(errors[:n_kept]) / n_kept

    return risk


SLOW = {
    "error_rate": lambda errors: sum(errors) / len(errors),
    "aurc": slow_aurc,
    "augrc": slow_augrc,
    "e_aurc": slow_e_aurc,
    "auroc_f": slow_auroc,
    "risk_at_50": slow_risk(0.5),
    "risk_at_80": slow_risk(0.8),
    "risk_at_90": slow_risk(0.9),
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("n_rows", [9, 40, 211])
def test_without_ties_a_metric_is_its_slow_loop(name: str, n_rows: int) -> None:
    confidence, is_correct = rows_of(n_rows)
    errors = (~is_correct[np.argsort(-confidence)]).astype(int).tolist()

    assert value(name, (confidence, is_correct)) == pytest.approx(SLOW[name](errors), abs=1e-12)


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize(
    ("confidence", "correct"),
    [
        ([3, 3, 2, 2, 2, 1], [1, 0, 1, 0, 0, 1]),
        ([1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1]),
        ([5, 4, 4, 4, 4, 0], [0, 1, 1, 0, 1, 0]),
    ],
)
def test_ties_are_averaged_over_all_orders(
    name: str, confidence: list[int], correct: list[int]
) -> None:
    orders = [
        order
        for order in permutations(range(len(correct)))
        if all(confidence[a] >= confidence[b] for a, b in pairwise(order))
    ]
    slow = np.mean([SLOW[name]([1 - correct[row] for row in order]) for order in orders])
    rows = np.array(confidence, float), np.array(correct, bool)

    assert value(name, rows) == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("name", SELECTIVE_METRICS)
def test_the_order_of_the_file_does_not_matter(name: str) -> None:
    confidence, is_correct = rows_of(80, levels=6)
    order = np.random.default_rng(1).permutation(80)
    shuffled = value(name, (confidence[order], is_correct[order]))

    assert value(name, (confidence, is_correct)) == pytest.approx(shuffled, abs=1e-12)


@pytest.mark.parametrize("name", SELECTIVE_METRICS)
@pytest.mark.parametrize("levels", [None, 5])
def test_a_weight_is_a_number_of_copies_of_a_row(name: str, levels: int | None) -> None:
    confidence, is_correct = rows_of(60, levels=levels)
    weights = np.random.default_rng(2).poisson(1.0, (60, 7)).astype(np.uint8)
    resampled = SELECTIVE_METRICS[name](risk_curve(confidence, is_correct, weights))
    copies = [
        value(name, (np.repeat(confidence, each), np.repeat(is_correct, each)))
        for each in weights.T
    ]

    assert resampled.tolist() == pytest.approx(copies, abs=1e-12)


def test_auroc_is_that_of_scikit_learn() -> None:
    confidence, is_correct = rows_of(300, levels=20)

    assert value("auroc_f", (confidence, is_correct)) == pytest.approx(
        roc_auc_score(is_correct, confidence), abs=1e-12
    )


def test_areas_and_coverages_are_those_of_torch_uncertainty() -> None:
    """Stored values of torch-uncertainty 0.13.0, which integrates between 1/n and 1 by trapezoids.

    Made from the same rows (no ties), with ``p`` as the probabilities of two classes::

        rows = rows_of(211, seed=3)
        p = torch.tensor(np.stack([rows[0], 0 * rows[0] - 1], 1))  # only the order matters
        y = torch.tensor(~rows[1]).long()
        for metric in AURC(), AUGRC(), CovAtxRisk(0.05), CovAtxRisk(0.2), RiskAtxCov(0.8):
            metric.update(p, y); print(metric.compute())
    """
    confidence, is_correct = rows_of(211, seed=3)
    curve, n = risk_curve(confidence, is_correct), 211
    coverages = np.arange(1, n + 1) / n
    risks = risks_at(coverages, curve)[:, 0]

    def trapezoids(values: NDArray[np.float64]) -> float:
        return float(np.trapezoid(values, coverages) / (1 - 1 / n))

    assert trapezoids(risks) == pytest.approx(AURC, abs=1e-6)
    assert trapezoids(risks * coverages) == pytest.approx(AUGRC, abs=1e-6)
    assert coverage_at(0.05, curve)[0] == pytest.approx(COVERAGE_AT_5, abs=1e-6)
    assert coverage_at(0.2, curve)[0] == pytest.approx(COVERAGE_AT_20, abs=1e-6)
    assert risk_at(0.8, curve)[0] == pytest.approx(RISK_AT_80, abs=1e-6)


def test_the_largest_coverage_of_a_threshold_is_found() -> None:
    confidence = np.array([5.0, 4, 4, 3, 2, 1])
    is_correct = np.array([True, True, False, True, True, False])
    curve = risk_curve(confidence, is_correct)

    assert coverage_at(0.2, curve)[0] == pytest.approx(5 / 6)  # not 1/6, which is also within
    assert coverage_at(0.19, curve)[0] == pytest.approx(1 / 6)  # no threshold parts the two 4s
    assert coverage_at(0.1, risk_curve(confidence, ~is_correct))[0] == 0


def test_infinite_confidences_tie() -> None:
    confidence = np.array([np.inf, np.inf, -np.inf, -np.inf])

    assert auroc_f(risk_curve(confidence, np.array([True, False, True, False])))[0] == 0.5


def test_the_best_order_has_no_excess() -> None:
    is_correct = np.array([True] * 7 + [False] * 4)
    curve = risk_curve(-np.arange(11.0), is_correct)

    assert e_aurc(curve)[0] == pytest.approx(0, abs=1e-12)
    assert aurc(curve)[0] > 0


@pytest.mark.parametrize(
    ("correct", "expected"),
    [
        ([True, True], {"error_rate": 0, "aurc": 0, "augrc": 0, "e_aurc": 0, "coverage_at_1": 1}),
        ([False, False], {"error_rate": 1, "aurc": 1, "augrc": 0.75, "e_aurc": 0}),
    ],
)
def test_without_errors_or_without_correct_rows_only_auroc_is_undefined(
    correct: list[bool], expected: dict[str, float]
) -> None:
    rows = np.array([2.0, 1.0]), np.array(correct)
    found = {name: value(name, rows) for name in SELECTIVE_METRICS}

    assert np.isnan(found.pop("auroc_f"))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert np.isfinite(list(found.values())).all()


def test_every_metric_of_no_rows_is_undefined() -> None:
    nothing = np.empty(0), np.empty(0, bool)

    assert all(np.isnan(value(name, nothing)) for name in SELECTIVE_METRICS)


def test_a_confidence_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not NaN, found \[2\] for \[2\] rows with 1 NaN"):
        risk_curve(np.array([1, np.nan]), np.array([True, False]))


def test_every_metric_is_defined_in_one_line() -> None:
    assert list(SELECTIVE) == list(SELECTIVE_METRICS)
