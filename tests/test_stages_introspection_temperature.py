import numpy as np
import pytest

from stages.errors import InputError
from stages.introspection.temperature import fit, tempered

RNG = np.random.default_rng(0)
TRUE = RNG.normal(size=(4000, 5))
LABELS = (TRUE + RNG.gumbel(size=TRUE.shape)).argmax(axis=1)
LOGITS = (3 * TRUE).astype(np.float32)  # three times too sure


def nll(temperature: float) -> float:
    return -float(np.log(tempered(LOGITS, temperature)[np.arange(4000), LABELS]).mean())


def test_temperature_undoes_overconfidence() -> None:
    fitted = fit(LOGITS, LABELS)
    assert fitted.value == pytest.approx(3, rel=0.1)
    assert fitted.nll_before == pytest.approx(nll(1.0), abs=1e-9)
    assert fitted.nll_after == pytest.approx(nll(fitted.value), abs=1e-9)


def test_temperature_is_the_best_of_a_fine_grid() -> None:
    fitted = fit(LOGITS, LABELS)
    grid = np.exp(np.linspace(np.log(0.1), np.log(30), 2001))
    best = grid[np.argmin([nll(temperature) for temperature in grid])]
    assert fitted.value == pytest.approx(best, rel=2e-3)
    assert fitted.nll_after <= min(nll(temperature) for temperature in grid) + 1e-12


def test_temperature_meets_the_first_order_condition() -> None:
    # d NLL / d(1/T) = mean over the rows of Σ_j p_j z_j - z_y
    shares = tempered(LOGITS, fit(LOGITS, LABELS).value)
    slope = (shares * LOGITS).sum(axis=1) - LOGITS[np.arange(4000), LABELS]
    assert abs(slope.mean()) < 1e-6


def test_rows_without_a_label_or_a_prediction_change_nothing() -> None:
    bad = np.vstack([LOGITS[:2], np.full((1, 5), np.nan, np.float32), LOGITS])
    fitted = fit(bad, np.concatenate([[-1, -1, 0], LABELS]))
    assert fitted.value == pytest.approx(fit(LOGITS, LABELS).value, rel=1e-6)
    assert fitted.n_rows == 4000


def test_failed_rows_stay_nan() -> None:
    found = tempered(np.array([[np.nan, 1.0], [1.0, 2.0]], np.float32), 2.0)
    assert np.isnan(found[0]).all()
    assert found[1].sum() == pytest.approx(1)


def test_labels_are_needed() -> None:
    with pytest.raises(InputError, match="found none among 4000; use a split that has labels"):
        fit(LOGITS, np.full(4000, -1))


@pytest.mark.parametrize("labels", [LOGITS.argmax(axis=1), LOGITS.argmin(axis=1)])
def test_rows_without_a_best_temperature_are_refused(labels) -> None:
    with pytest.raises(InputError, match="has no maximum"):
        fit(LOGITS, labels)
