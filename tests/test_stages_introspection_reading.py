import json

import numpy as np
import pytest
import torch

from stages.errors import InputError
from stages.introspection.reading import READS, Reading, usable_rows
from stages.reflection.rank_one import SCALINGS, last_layer_gradient

RNG = np.random.default_rng(0)
FEATURES = np.abs(RNG.normal(size=(40, 8)))
LOGITS = RNG.normal(size=(40, 4))


def dense(reads: str, scaling: str) -> np.ndarray:
    M = 1.5 if reads == "reflection" else None
    return Reading(4, 8, reads, M=M, scaling=scaling).vectors(FEATURES, LOGITS).dense()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_reflection_is_the_scaled_gradient(scaling: str) -> None:
    expected = last_layer_gradient(FEATURES, LOGITS, M=1.5).scaled(scaling).dense()
    np.testing.assert_array_equal(dense("reflection", scaling), expected)


@pytest.mark.parametrize(
    ("reads", "stored"),
    [("features", FEATURES), ("features+logits", np.hstack([FEATURES, LOGITS]))],
)
def test_stored_vectors_are_scaled_row_by_row_like_gradients(reads: str, stored) -> None:
    low, high = stored.min(axis=1, keepdims=True), stored.max(axis=1, keepdims=True)
    np.testing.assert_array_equal(dense(reads, "none"), stored)
    np.testing.assert_allclose(
        dense(reads, "minmax"), 2 * (stored - low) / (high - low) - 1, atol=1e-12
    )
    np.testing.assert_allclose(
        dense(reads, "maxabs"), stored / np.abs(stored).max(axis=1, keepdims=True), atol=1e-12
    )


@pytest.mark.parametrize("scaling", ["minmax", "maxabs"])
def test_flat_features_become_zeros(scaling: str) -> None:
    flat = np.zeros((2, 8))
    found = Reading(4, 8, "features", scaling=scaling).vectors(flat, LOGITS[:2]).dense()
    np.testing.assert_array_equal(found, flat)


@pytest.mark.parametrize("reads", READS)
def test_size_is_the_length_of_a_vector(reads: str) -> None:
    assert Reading(4, 8, reads).size == dense(reads, "minmax").shape[1]


def test_open_m_is_measured_where_a_gradient_is_read_and_only_there() -> None:
    found = Reading(4, 8).measured(LOGITS).M
    expected = LOGITS.max(axis=1).mean()
    assert found == pytest.approx(expected)
    assert Reading(4, 8, M=7.0).measured(LOGITS).M == 7.0
    assert Reading(4, 8, "features").measured(LOGITS).M is None


@pytest.mark.parametrize("reads", READS)
def test_reading_survives_json(reads: str) -> None:
    reading = Reading(4, 8, reads, scaling="none")
    assert Reading.from_dict(json.loads(json.dumps(reading.to_dict()))) == reading


def test_unused_parameters_are_in_no_plan() -> None:
    plain = Reading(4, 8, "features").to_dict()
    assert (plain["loss"], plain["M"], plain["variant"]) == (None, None, None)


@pytest.mark.parametrize(
    "bad",
    [
        {"reads": "pixels"},
        {"loss": "huber"},
        {"variant": "eq7"},
        {"scaling": "unit"},
        {"M": float("nan")},
        {"reads": "features", "loss": "ce"},
        {"reads": "features+logits", "M": 1.0},
        {"reads": "features", "bias_gradient": True},
    ],
)
def test_reading_that_cannot_be_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Reading(4, 8, **bad)


def test_vectors_of_another_network_are_refused() -> None:
    with pytest.raises(InputError, match=r"features \[n, 8\] and logits \[n, 4\], found"):
        Reading(4, 8, M=1.0).vectors(torch.ones(3, 7), torch.ones(3, 4))


def test_rows_are_usable_with_a_label_and_finite_numbers() -> None:
    features, labels = FEATURES[:4].copy(), np.array([0, -1, 2, 3])
    features[2, 0] = np.inf
    assert usable_rows(labels, features, LOGITS[:4]).tolist() == [True, False, False, True]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_bias_adds_delta_to_each_class_before_scaling(scaling: str) -> None:
    found = Reading(4, 8, M=1.5, scaling=scaling, bias_gradient=True)
    vectors = found.vectors(FEATURES, LOGITS)
    plain = last_layer_gradient(FEATURES, LOGITS, M=1.5)
    whole = np.concatenate([plain.dense().reshape(40, 4, 8), plain.delta[:, :, None]], axis=2)
    low, high = whole.min(axis=(1, 2)), whole.max(axis=(1, 2))
    expected = {
        "none": whole,
        "maxabs": whole / np.abs(whole).max(axis=(1, 2))[:, None, None],
        "minmax": 2 * (whole - low[:, None, None]) / (high - low)[:, None, None] - 1,
    }[scaling]
    np.testing.assert_allclose(vectors.dense(), expected.reshape(40, -1), atol=1e-12)
    assert found.size == vectors.size == 4 * 9


def test_the_bias_gradient_is_that_of_autograd() -> None:
    layer = torch.nn.Linear(8, 4).double()
    loss = torch.nn.MSELoss()(layer(torch.from_numpy(FEATURES[0])), torch.full((4,), 1.5).double())
    loss.backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    logits = layer(torch.from_numpy(FEATURES[:1])).detach()
    reading = Reading(4, 8, M=1.5, scaling="none", bias_gradient=True)
    found = reading.vectors(torch.from_numpy(FEATURES[:1]), logits).dense().view(4, 9)
    torch.testing.assert_close(found[:, :8], layer.weight.grad)
    torch.testing.assert_close(found[:, 8], layer.bias.grad)


def test_fitted_scalings_and_the_bias_survive_json_and_leave_older_plans_alone() -> None:
    reading = Reading(4, 8, scaling="feature", bias_gradient=True)
    assert Reading.from_dict(json.loads(json.dumps(reading.to_dict()))) == reading
    assert "bias_gradient" not in Reading(4, 8).to_dict()
