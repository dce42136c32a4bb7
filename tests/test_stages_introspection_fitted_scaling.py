"""Scalings that are fitted to training rows, against materialised gradients and autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load

from stages.errors import InputError, TrainingFailedError
from stages.introspection.fitted_scaling import FittedScaling
from stages.introspection.head import load_head, predict_probabilities
from stages.introspection.head_params import HeadParams
from stages.introspection.head_spec import HeadSpec
from stages.introspection.head_training import HeadTraining
from stages.introspection.reading import FITTED, Reading
from stages.reflection.losses import softmax

RNG = np.random.default_rng(3)
FEATURES = np.abs(RNG.normal(size=(200, 6))).astype(np.float32)
FEATURES[:, 2] = 0.0  # a dead feature: its range is flat
LOGITS = (2 * (FEATURES - FEATURES.mean(0)) @ RNG.normal(size=(6, 3))).astype(np.float32)
LABELS = LOGITS.argmax(axis=1)
SPEC = HeadSpec(3, 6, layers=(5,))
PARAMS = HeadParams(epochs=3, batch_rows=32, weight_decay=1e-3, seeds=(0, 7))


def vectors(**options):
    reading = Reading(3, 6, M=1.0, **options)
    return reading.vectors(torch.from_numpy(FEATURES), torch.from_numpy(LOGITS))


def min_max(rows: np.ndarray, scaling: str) -> np.ndarray:
    """The scaling of materialised rows, written out."""
    axis = None if scaling == "global" else 0
    low, high = rows.min(axis=axis), rows.max(axis=axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(high > low, 2 * (rows - low) / (high - low) - 1, 0.0)


@pytest.mark.parametrize("scaling", FITTED)
@pytest.mark.parametrize(
    "options", [{}, {"bias_gradient": True}, {"reads": "features", "M": None}], ids=str
)
def test_the_training_rows_fill_the_range(scaling, options):
    rows = Reading(3, 6, **{"M": 1.0, **options}, scaling=scaling).vectors(
        torch.from_numpy(FEATURES), torch.from_numpy(LOGITS)
    )
    found = FittedScaling.of(rows, scaling).apply(rows.dense()).numpy()

    np.testing.assert_allclose(found, min_max(rows.dense().double().numpy(), scaling), atol=2e-6)
    assert found.min() == pytest.approx(-1, abs=1e-6)
    assert found.max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scaling", FITTED)
def test_a_trained_head_equals_one_that_autograd_trained_on_scaled_rows(scaling):
    """Same initial weights, same order of rows: the published head has the scaling inside."""
    stage = HeadTraining(FEATURES, LOGITS, LABELS, replace(SPEC, scaling=scaling), PARAMS)
    state = stage.start()
    for epoch in range(3):
        stage.step(state, epoch, lambda _: None)

    M = stage.full_spec.M
    raw = Reading(3, 6, M=M, scaling="none").vectors(
        torch.from_numpy(FEATURES), torch.from_numpy(LOGITS)
    )
    scaled = torch.from_numpy(min_max(raw.dense().numpy(), scaling)).float()
    for index, seed in enumerate(PARAMS.seeds):
        expected = trained_by_autograd(scaled, seed)
        head = load_head(stage.full_spec, stage.weights(state), index)
        found = predict_probabilities(head, FEATURES, LOGITS)
        np.testing.assert_allclose(found, softmax(expected(scaled).detach().numpy()), atol=2e-4)


def trained_by_autograd(rows, seed):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(18, 5), torch.nn.Sigmoid(), torch.nn.Linear(5, 3)]
    network = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = PARAMS.learning_rate_at(epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for chosen in np.split(order, range(32, len(rows), 32)):
            optimizer.zero_grad()
            labels = torch.from_numpy(LABELS[chosen])
            torch.nn.functional.cross_entropy(network(rows[chosen]), labels).backward()
            optimizer.step()
    return network


@pytest.mark.parametrize("scaling", FITTED)
def test_a_resumed_training_keeps_its_scaling(scaling):
    spec = replace(SPEC, scaling=scaling, bias_gradient=True)
    stage = HeadTraining(FEATURES, LOGITS, LABELS, spec, PARAMS)
    straight, first = stage.start(), stage.start()
    stage.step(straight, 0, lambda _: None)
    stage.step(first, 0, lambda _: None)
    resumed = stage.load(stage.save(first))
    for state in (straight, resumed):
        stage.step(state, 1, lambda _: None)

    assert stage.weights(resumed) == stage.weights(straight)
    folded, unfolded = load(stage.weights(straight)), load(stage.save(straight))
    assert not torch.equal(folded["linears.0.weight"], unfolded["linears.0.weight"])


def test_rows_that_leave_the_range_and_rows_of_nan_are_predicted():
    spec = replace(SPEC, scaling="feature", M=1.0)
    stage = HeadTraining(FEATURES, LOGITS, LABELS, spec, PARAMS)
    head = load_head(spec, stage.weights(stage.start()))
    far = FEATURES[:2] * 100
    far[:, 2] = 50.0  # flat in training: it stays zero
    bad = np.full((1, 6), np.nan, np.float32)
    found = predict_probabilities(head, np.concatenate([far, bad]), LOGITS[:3])

    assert np.isfinite(found[:2]).all()
    assert np.isnan(found[2]).all()
    far[:, 2] = 0.0
    np.testing.assert_allclose(predict_probabilities(head, far, LOGITS[:2]), found[:2], atol=1e-6)


@pytest.mark.parametrize("scaling", FITTED)
def test_training_rows_that_overflow_are_named_before_training(scaling):
    features, logits = FEATURES.copy(), LOGITS.copy()
    features[5], logits[5] = 1e30, 1e30
    stage = HeadTraining(features, logits, LABELS, replace(SPEC, scaling=scaling, loss="mse"))

    with pytest.raises(TrainingFailedError, match=f"scaling {scaling} has no range"):
        stage.step(stage.start(), 0, lambda _: None)


@pytest.mark.parametrize("options", [{"rank": 2}, {"n_classes": 1000, "feature_dim": 2048}])
def test_a_fitted_scaling_needs_an_input_that_is_materialised(options):
    with pytest.raises(InputError, match="scaling feature is for a full first layer"):
        replace(SPEC, scaling="feature", **options)
