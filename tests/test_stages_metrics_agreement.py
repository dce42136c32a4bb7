"""Agreement of scores with opinions, on values worked by hand and against SciPy."""

from math import isnan, sqrt

import numpy as np
import pytest
from scipy import stats

from stages.metrics.agreement import (
    MIN_PAIRS,
    PAPER_START,
    agreement,
    differs,
    fit_mapping,
    intervals,
    jacobian,
    logistic,
    outlier_ratio,
    pearson,
    spearman,
)
from stages.metrics.bootstrap import Resampling

SCORES = np.array([1.0, 2.0, 3.0, 4.0])
OPINIONS = np.array([2.0, 1.0, 4.0, 3.0])


def test_all_metrics_of_four_pairs_are_those_worked_by_hand() -> None:
    found = agreement(SCORES, SCORES, OPINIONS, np.array([0.6, 0.4, 0.4, 0.4]))

    # Errors are 1, 1, 1, 1; one is within 2 x 0.6. Five of six orders agree less one each: 4 to 2.
    assert found["rmse"] == 1.0
    assert found["outlier_ratio"] == 0.75
    assert found["plcc"] == pytest.approx(3 / 5)
    assert found["srcc"] == pytest.approx(3 / 5)
    assert found["krcc"] == pytest.approx((4 - 2) / 6)


def test_kendalls_tau_counts_ties_as_tau_b_does() -> None:
    # Of three orders one is tied in the first list: (2 - 0) / sqrt(2 * 3).
    found = agreement(np.array([1.0, 1, 2]), np.zeros(3), np.array([1.0, 2, 3]))
    assert found["krcc"] == pytest.approx(2 / sqrt(6))


def test_correlations_are_scipys_up_to_their_sign() -> None:
    rng = np.random.default_rng(0)
    opinions = rng.normal(size=200)
    scores = np.round(rng.normal(size=200) - opinions, 1)  # with ties, and falling
    found = agreement(scores, 2 * scores, opinions)

    assert found["plcc"] == pytest.approx(-stats.pearsonr(scores, opinions)[0])
    assert found["srcc"] == pytest.approx(-stats.spearmanr(scores, opinions)[0])
    assert found["krcc"] == pytest.approx(-stats.kendalltau(scores, opinions)[0])


def test_constant_scores_have_no_correlation() -> None:
    found = agreement(np.ones(4), np.ones(4), OPINIONS)
    assert all(isnan(found[name]) for name in ("plcc", "srcc", "krcc"))
    assert isnan(pearson(np.array([]), np.array([])))
    assert isnan(spearman(np.array([]), np.array([])))


def test_pairs_without_a_deviation_do_not_count_as_outliers() -> None:
    assert isnan(outlier_ratio(SCORES, OPINIONS, np.full(4, np.nan)))


def curved(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and opinions that a steep logistic function of them gives, with little noise."""
    scores = np.linspace(0, 1, n)
    exact = logistic(np.array([-60.0, 25.0, 0.7, 0.0, 40.0]), scores)
    return scores, exact + np.random.default_rng(1).normal(scale=0.5, size=n)


def test_many_starts_find_a_curve_that_the_papers_start_may_miss() -> None:
    scores, opinions = curved()
    errors = {
        start: agreement(scores, fit_mapping(scores, opinions, start)(scores), opinions)["rmse"]
        for start in ("paper", "multistart")
    }
    assert errors["multistart"] == pytest.approx(0.5, abs=0.05)
    assert errors["multistart"] <= errors["paper"] + 1e-9


def test_a_linear_relation_is_fitted_from_the_papers_start() -> None:
    scores = np.linspace(0, 2, 50)
    mapping = fit_mapping(scores, 3 * scores - 1)
    np.testing.assert_allclose(mapping(scores), 3 * scores - 1, atol=1e-6)


def test_the_mapping_is_not_worse_than_a_straight_line() -> None:
    scores, opinions = curved()
    line = np.polyval(np.polyfit(scores, opinions, 1), scores)
    for start in ("paper", "multistart"):
        mapped = fit_mapping(scores, opinions, start)(scores)
        assert np.mean((mapped - opinions) ** 2) <= np.mean((line - opinions) ** 2) + 1e-9


def test_the_jacobian_is_that_of_finite_differences() -> None:
    parameters, scores = np.array([2.0, 1.5, 0.3, -1.0, 4.0]), np.linspace(-2, 3, 7)
    steps = 1e-6 * np.eye(5)
    slow = [
        (logistic(parameters + step, scores) - logistic(parameters - step, scores)) / 2e-6
        for step in steps
    ]
    np.testing.assert_allclose(jacobian(parameters, scores), np.array(slow).T, atol=1e-8)


def test_too_few_pairs_have_no_mapping() -> None:
    few = np.arange(MIN_PAIRS - 1.0)
    mapping = fit_mapping(few, few)
    assert np.isnan(mapping.parameters).all()
    found = agreement(few, mapping(few), few)
    assert isnan(found["plcc"])
    assert found["srcc"] == pytest.approx(1)


def test_the_papers_start_is_flat() -> None:
    assert logistic(np.array(PAPER_START), np.array([0.0, 5.0])).tolist() == [0, 0]


def test_fishers_z_of_two_correlations_is_worked_by_hand() -> None:
    # atanh(.9) - atanh(.85) = .2161; the limit is 1.96 sqrt(2 / (n - 3)).
    n_limit = 2 * (1.959964 / 0.2161) ** 2 + 3
    assert differs(0.9, 0.85, int(n_limit) - 2) == 0
    assert differs(0.9, 0.85, int(n_limit) + 2) == 1
    assert differs(0.85, 0.9, int(n_limit) + 2) == -1
    assert differs(1.0, 0.5, 100) == differs(float("nan"), 0.5, 100) == differs(0.9, 0.1, 3) == 0


def test_intervals_hold_the_value_and_narrow_with_the_number_of_groups() -> None:
    widths = []
    for n in (20, 200):
        rng = np.random.default_rng(n)
        opinions = rng.normal(size=n)
        scores = opinions + rng.normal(size=n)
        found = intervals(scores, scores, opinions, None, np.arange(n), Resampling(200))
        low, high = found["srcc"]
        assert low < agreement(scores, scores, opinions)["srcc"] < high
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_pairs_of_a_group_are_drawn_together() -> None:
    groups = np.repeat(np.arange(5), 20)
    rng = np.random.default_rng(0)
    opinions = np.repeat(rng.normal(size=5), 20)
    scores = opinions + np.repeat(rng.normal(size=5), 20)
    alone = intervals(scores, scores, opinions, None, np.arange(100), Resampling(200))["plcc"]
    together = intervals(scores, scores, opinions, None, groups, Resampling(200))["plcc"]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])
