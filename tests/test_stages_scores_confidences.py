"""Scores of rows alone, compared with autograd, torch and plain loops; their edge cases."""

import numpy as np
import pytest
import torch

from stages.reflection.losses import softmax
from stages.scores.confidences import energy, exgrad, gen, gradnorm, gradtrust, margin, max_softmax
from stages.scores.known_scores import DETECTORS, PLAIN, SCORES

RNG = np.random.default_rng(5)
F, Z = (
    np.abs(RNG.normal(size=(30, 6))).astype(np.float32),
    RNG.normal(size=(30, 4)).astype(np.float32),
)


@pytest.mark.parametrize("temperature", [1.0, 1000.0])
def test_msp_is_the_largest_probability_by_its_logarithm(temperature):
    expected = softmax(Z.astype(np.float64) / temperature).max(axis=1)

    assert np.exp(max_softmax(F, Z, temperature)) == pytest.approx(expected, rel=1e-12)


def test_msp_separates_rows_whose_probability_is_one():
    sure = np.array([[50.0, 0.0], [60.0, 0.0], [700.0, 0.0]])
    scores = max_softmax(sure, sure)

    assert (softmax(sure).max(axis=1) == 1.0).all()
    assert (np.diff(scores) > 0).all()


def test_the_energy_is_that_of_torch():
    expected = torch.logsumexp(torch.from_numpy(Z).double(), dim=1).numpy()

    assert energy(F, Z) == pytest.approx(expected, rel=1e-6)


def test_gradnorm_is_the_norm_that_autograd_finds():
    """One image at a time: the gradient at the last layer's weights, against the uniform target."""
    layer = torch.nn.Linear(6, 4).double()
    features = torch.from_numpy(F).double()
    logits = layer(features).detach()
    expected = []
    for row in features:
        log_p = torch.log_softmax(layer(row), dim=0)
        loss = torch.nn.functional.kl_div(log_p, torch.full((4,), 0.25).double(), reduction="sum")
        expected.append(float(torch.autograd.grad(loss, layer.weight)[0].abs().sum()))

    assert gradnorm(features.numpy(), logits.numpy()) == pytest.approx(expected, rel=1e-12)


def test_exgrad_is_the_expected_norm_that_autograd_finds():
    layer = torch.nn.Linear(6, 4).double()
    features = torch.from_numpy(F).double()
    logits = layer(features).detach()
    expected = []
    for row, p in zip(features, softmax(logits), strict=True):
        norms = []
        for label in range(4):
            loss = torch.nn.functional.cross_entropy(layer(row), torch.tensor(label))
            norms.append(torch.autograd.grad(loss, layer.weight)[0].abs().sum())
        expected.append(float(sum(p * torch.stack(norms))))

    assert exgrad(features.numpy(), logits.numpy()) == pytest.approx(expected, rel=1e-12)


def test_exgrad_separates_rows_whose_probability_is_one():
    sure = np.array([[50.0, 0.0], [60.0, 0.0], [700.0, 0.0]])
    values = exgrad(np.ones((3, 1)), sure)

    assert values == pytest.approx([4 * np.exp(-50), 4 * np.exp(-60), 4 * np.exp(-700)])


def test_gen_is_the_generalised_entropy_of_the_largest_probabilities():
    p = np.sort(softmax(Z.astype(float)), axis=1)[:, ::-1]
    expected = [-sum((each * (1 - each)) ** 0.1 for each in row[:3]) for row in p]

    assert gen(F, Z, n_largest=3) == pytest.approx(expected, rel=1e-6)


def test_gradtrust_is_largest_over_mean_of_fourth_powers():
    expected = [max((z - 0.25) ** 4) / np.mean((z - 0.25) ** 4) for z in Z.astype(float)]

    assert gradtrust(F, Z) == pytest.approx(expected, rel=1e-12)
    assert gradtrust(F[:2], np.full((2, 4), 0.25)) == pytest.approx([1.0, 1.0])
    assert gradtrust(F[:1], np.array([[1e90, 0.0, 0.0, 0.0]])) == pytest.approx([4.0])


def test_the_margin_of_a_single_class_is_its_probability():
    assert margin(F, Z[:, :1]) == pytest.approx(np.ones(30))


@pytest.mark.parametrize("n_classes", [1, 2, 4])
@pytest.mark.parametrize("name", PLAIN)
def test_rows_of_nan_score_nan_and_leave_others_alone(name, n_classes):
    f, z = F.copy(), Z[:, :n_classes].copy()
    f[3], z[3] = np.nan, np.nan
    values, whole = PLAIN[name](f, z), PLAIN[name](F, Z[:, :n_classes])

    assert values.dtype == np.float64
    assert np.isnan(values[3])
    assert np.delete(values, 3) == pytest.approx(np.delete(whole, 3), rel=1e-12)


@pytest.mark.parametrize("name", sorted(PLAIN.keys() - {"gradtrust", "energy", "max-logit"}))
def test_certain_values_rise_with_the_gap_between_logits(name):
    z = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    values = SCORES[name].certain(PLAIN[name](np.ones((4, 2)), z))

    assert (np.diff(values) > 0).all()


def test_every_score_but_the_rounded_confidence_detects():
    assert SCORES.keys() - DETECTORS.keys() == {"confidence"}
