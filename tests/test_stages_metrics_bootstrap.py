"""Resamples by one matrix product, compared with evaluating the repeated rows."""

import numpy as np
import pytest

from stages.metrics.bootstrap import BLOCK_IMAGES, Resampling, interval, resample
from stages.metrics.calibration import METRICS, accuracy, ece, ece_adaptive
from stages.metrics.sums import judge, sums


def some_predictions(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(4, 0.3), n)
    return p, np.where(rng.uniform(size=n) < 0.7, p.argmax(axis=1), rng.integers(0, 4, n))


@pytest.mark.parametrize("n_rows", [1, 40, 2500])
def test_a_resample_equals_judging_each_row_as_often_as_it_weighs(n_rows: int) -> None:
    p, y = some_predictions(n_rows)
    p[n_rows // 2 :: 50] = np.nan
    weights = Resampling(6, seed=3).weights(np.arange(n_rows))
    resampled = resample(judge(p, y), weights)
    for at in range(6):
        rows = np.repeat(np.arange(n_rows), weights[:, at])
        expected = sums(p[rows], y[rows])
        assert resampled.n_rows[at] == expected.n_rows
        for name in METRICS.keys() - {"ece_adaptive"}:
            of_rows = METRICS[name](expected)
            assert METRICS[name](resampled)[at] == pytest.approx(of_rows, rel=1e-9, nan_ok=True)


def test_the_adaptive_error_has_no_resamples() -> None:
    resampled = resample(judge(*some_predictions(30)), Resampling(5).weights(np.arange(30)))
    assert np.isnan(ece_adaptive(resampled)).all()
    assert np.isnan(interval(0.1, ece_adaptive(resampled))).all()


def test_resamples_of_parts_add_up_to_those_of_the_whole() -> None:
    p, y = some_predictions(100)
    resampling, images = Resampling(7, seed=1), np.arange(100)
    whole = resample(judge(p, y), resampling.weights(images))
    parts = [
        resample(judge(p[rows], y[rows]), resampling.weights(images[rows]))
        for rows in (slice(0, 33), slice(33, 100))
    ]
    np.testing.assert_allclose((parts[0] + parts[1]).columns, whole.columns, rtol=1e-12)


def test_an_image_has_the_same_weight_in_every_cell() -> None:
    resampling = Resampling(50, seed=2)
    all_at_once = resampling.weights(np.arange(3 * BLOCK_IMAGES))
    asked = np.array([2 * BLOCK_IMAGES + 5, 0, BLOCK_IMAGES - 1, BLOCK_IMAGES, 0])
    assert (resampling.weights(asked) == all_at_once[asked]).all()


def test_weights_are_those_of_poisson_1_and_another_seed_gives_others() -> None:
    weights = Resampling(400, seed=0).weights(np.arange(1000)).astype(float)
    assert weights.mean() == pytest.approx(1, abs=0.01)
    assert weights.var() == pytest.approx(1, abs=0.01)
    assert (weights == 0).mean() == pytest.approx(np.exp(-1), abs=0.005)
    assert np.corrcoef(weights[0], weights[1])[0, 1] == pytest.approx(0, abs=0.2)
    others = Resampling(400, seed=1).weights(np.arange(1000))
    assert (others != weights).mean() > 0.5


def test_the_interval_of_an_accuracy_covers_it_as_often_as_it_says() -> None:
    """400 samples of 400 rows, right with a probability of 0.7: 95 % of the intervals hold 0.7."""
    rng = np.random.default_rng(0)
    p, weights = np.tile([0.8, 0.2], (400, 1)), Resampling(500).weights(np.arange(400))
    covered, widths = 0, []
    for _ in range(400):
        judged = judge(p, (rng.uniform(size=400) > 0.7).astype(int))
        value = float(accuracy(judged.sums()))
        low, high = interval(value, accuracy(resample(judged, weights)))
        covered += low <= 0.7 <= high
        widths.append(high - low)
    assert 0.92 <= covered / 400 <= 0.98
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 400), rel=0.05)


def test_the_interval_cuts_off_a_fortieth_at_each_end() -> None:
    assert interval(500, np.arange(1001.0)) == pytest.approx((25, 975))
    assert interval(500, np.append(np.arange(1001.0), np.nan)) == pytest.approx((25, 975))


def test_the_interval_lies_around_the_value_where_resampling_lifts_it() -> None:
    p, y = some_predictions(40)
    judged = judge(p, y)
    value = float(ece(judged.sums()))
    resampled = ece(resample(judged, Resampling(500).weights(np.arange(40))))
    low, high = interval(value, resampled)
    assert resampled.mean() > value + 0.01
    assert low < value < high


def test_no_resamples_give_no_interval() -> None:
    resampled = resample(judge(*some_predictions(30)), np.empty((30, 0), np.uint8))
    assert accuracy(resampled).shape == (0,)
    assert np.isnan(interval(0.5, accuracy(resampled))).all()


def test_fewer_than_100_finite_resamples_give_no_interval() -> None:
    values = np.arange(100.0)
    assert np.isfinite(interval(50, values)).all()
    assert np.isnan(interval(50, np.append(values[1:], np.nan))).all()


@pytest.mark.parametrize(("n_resamples", "seed"), [(-1, 0), (10, -2)])
def test_negative_numbers_are_refused(n_resamples: int, seed: int) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Resampling(n_resamples, seed)
