import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.autograd import serial_gradients, vmap_gradients
from stages.errors import InputError
from stages.reflection.losses import LOSSES, VARIANTS, delta, sigmoid, softmax
from stages.reflection.rank_one import last_layer_gradient
from stages.reflection.torch_losses import objective

# The test vector: N = 3, d = 3, M = 1.5.
Z = np.array([[2.0, -1.0, 0.5]])
F = np.array([[1.0, 0.0, 2.0]])
M = 1.5
CE = [1.356791, -0.882662, -0.474129]
MARGIN = [-0.039734, -0.243686, -0.125847]
VECTOR = {
    ("ce", "single-pass"): CE,
    ("ce", "sum"): CE,
    ("ce", "stack"): [-0.214403, -0.960887, -0.824710],
    ("nll-logsoftmax", "single-pass"): CE,
    ("mse-m", "single-pass"): [0.333333, -1.666667, -0.666667],
    ("bce", "single-pass"): MARGIN,
    ("soft-margin", "single-pass"): MARGIN,
    ("soft-margin-01", "sum"): MARGIN,
    ("l1-m", "single-pass"): [1 / 3, -1 / 3, -1 / 3],
    ("smooth-l1-m", "single-pass"): [0.166667, -0.333333, -0.333333],
    ("nll", "single-pass"): [-1, -1, -1],
}
MINMAX = {
    "mse-m": [0.8333, 0.6667, 1, -0.1667, 0.6667, -1, 0.3333, 0.6667, 0],
    "ce": [0.3941, -0.2117, 1, -0.6059, -0.2117, -1, -0.4234, -0.2117, -0.6351],
}

# Which identities hold for which loss, whatever the logits.
LINEAR_IN_THE_TARGET = ["ce", "nll-logsoftmax"]
SEPARABLE = ["mse-m", "bce", "l1", "l1-m", "smooth-l1", "smooth-l1-m", "soft-margin"]
BOTH = ["nll", "soft-margin-01"]


def a_layer(n_classes: int, feature_dim: int, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(feature_dim, n_classes, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator).double())
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator).double())
    return layer


def some_features(n: int, feature_dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.randn(n, feature_dim, generator=generator).double().relu()


@pytest.mark.parametrize(("loss", "variant"), VECTOR)
def test_delta_of_the_test_vector(loss: str, variant: str) -> None:
    found = delta(loss, Z, M=M, variant=variant)
    np.testing.assert_allclose(found, [VECTOR[loss, variant]], atol=1e-6)


@pytest.mark.parametrize("loss", MINMAX)
def test_minmax_scaled_gradient_of_the_test_vector(loss: str) -> None:
    found = last_layer_gradient(F, Z, loss=loss, M=M).scaled("minmax").dense()
    np.testing.assert_allclose(found, [MINMAX[loss]], atol=5e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("n", "n_classes", "feature_dim"), [(1, 2, 1), (4, 10, 6), (3, 3, 5)])
def test_closed_form_agrees_with_autograd(
    loss: str, variant: str, n: int, n_classes: int, feature_dim: int
) -> None:
    layer, features = a_layer(n_classes, feature_dim), some_features(n, feature_dim)
    logits = layer(features).detach()
    closed = last_layer_gradient(features, logits, loss=loss, M=1.7, variant=variant).dense()
    serial = serial_gradients(layer, features, loss=loss, M=1.7, variant=variant)
    batched = vmap_gradients(layer, features, loss=loss, M=1.7, variant=variant)
    torch.testing.assert_close(closed, serial, rtol=0, atol=1e-12)
    torch.testing.assert_close(closed, batched, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("loss", "target"), [("soft-margin", -1.0), ("soft-margin-01", 0.0)])
def test_soft_margin_referee_is_torchs_own_loss(loss: str, target: float) -> None:
    z = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    targets = torch.tensor([1.0, target, 1.0], dtype=torch.float64)
    expected = nn.SoftMarginLoss()(z[None], targets[None])
    found = objective(loss, z, torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    loss=st.sampled_from(list(LOSSES)),
    logits=st.lists(st.floats(-30, 30), min_size=2, max_size=6),
    M=st.floats(-5, 20),
)
def test_delta_is_autograds_derivative_to_the_logits(
    loss: str, logits: list[float], M: float
) -> None:
    z = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    objective(loss, z, torch.ones_like(z), M=M).backward()
    closed = delta(loss, np.array([logits]), M=M)[0]
    np.testing.assert_allclose(closed, z.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LINEAR_IN_THE_TARGET + BOTH)
def test_single_pass_equals_the_sum_where_the_loss_is_linear_in_the_target(loss: str) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 10)) * 3
    single, summed = (delta(loss, logits, M=4.0, variant=v) for v in ("single-pass", "sum"))
    np.testing.assert_allclose(single, summed, rtol=0, atol=1e-14)


@pytest.mark.parametrize("loss", SEPARABLE + BOTH)
def test_single_pass_equals_the_stack_where_the_loss_is_separable(loss: str) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 10)) * 3
    single, stack = (delta(loss, logits, M=4.0, variant=v) for v in ("single-pass", "stack"))
    np.testing.assert_array_equal(single, stack)


@pytest.mark.parametrize("loss", SEPARABLE)
def test_single_pass_differs_from_the_sum_for_separable_losses(loss: str) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 10)) * 3
    single, summed = (delta(loss, logits, M=4.0, variant=v) for v in ("single-pass", "sum"))
    assert np.abs(single - summed).max(axis=1).min() > 0.05


@pytest.mark.parametrize("loss", LINEAR_IN_THE_TARGET)
def test_single_pass_differs_from_the_stack_by_n_minus_one_p_for_cross_entropy(loss: str) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 10)) * 3
    single, stack = (delta(loss, logits, variant=v) for v in ("single-pass", "stack"))
    np.testing.assert_allclose(single - stack, 9 * softmax(logits), atol=1e-14)


def test_saturated_cross_entropy_single_pass_is_three_stacks_long_at_one_over_root_ten() -> None:
    saturated = np.eye(10)[[3]] * 60.0
    features = np.abs(np.random.default_rng(0).normal(size=(1, 64)))
    single, stack = (
        last_layer_gradient(features, saturated, loss="ce", variant=v)
        for v in ("single-pass", "stack")
    )
    rest = single.dense() - stack.dense()
    cosine = single.inner_products(stack) / (single.norms() * stack.norms())
    np.testing.assert_allclose(np.linalg.norm(rest) / stack.norms(), 3, rtol=1e-12)
    np.testing.assert_allclose(single.norms() / stack.norms(), np.sqrt(10), rtol=1e-12)
    np.testing.assert_allclose(cosine, 1 / np.sqrt(10), rtol=1e-12)


def test_sum_of_passes_of_each_separable_loss_is_as_written() -> None:
    z, n = np.random.default_rng(1).normal(size=(5, 4)) * 2, 4
    expected = {
        "mse-m": 2 / n * (n * z - M),
        "bce": (n * sigmoid(z) - 1) / n,
        "l1": ((n - 1) * np.sign(z) + np.sign(z - 1)) / n,
        "l1-m": ((n - 1) * np.sign(z) + np.sign(z - M)) / n,
        "smooth-l1": ((n - 1) * np.clip(z, -1, 1) + np.clip(z - 1, -1, 1)) / n,
        "smooth-l1-m": ((n - 1) * np.clip(z, -1, 1) + np.clip(z - M, -1, 1)) / n,
        "soft-margin": -sigmoid(-z) / n + (n - 1) * sigmoid(z) / n,
    }
    for loss, formula in expected.items():
        found = delta(loss, z, M=M, variant="sum")
        np.testing.assert_allclose(found, formula, atol=1e-14, err_msg=loss)


def test_binary_cross_entropy_and_soft_margin_are_one_feature() -> None:
    z = np.random.default_rng(1).normal(size=(5, 4)) * 10
    np.testing.assert_array_equal(delta("bce", z), delta("soft-margin", z))


@pytest.mark.parametrize("loss", ["l1", "smooth-l1"])
def test_slope_is_zero_on_the_target(loss: str) -> None:
    assert delta(loss, np.ones((1, 3))).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_torch_equals_numpy_and_dtype_is_kept(loss: str, variant: str, dtype: str) -> None:
    z = (np.random.default_rng(2).normal(size=(6, 5)) * 4).astype(dtype)
    from_numpy = delta(loss, z, M=np.float64(2.5), variant=variant)
    from_torch = delta(loss, torch.from_numpy(z), M=np.float64(2.5), variant=variant)
    assert from_numpy.dtype == dtype
    assert from_torch.dtype == torch.from_numpy(z).dtype
    tolerance = 10 * np.finfo(dtype).eps
    np.testing.assert_allclose(from_numpy, from_torch, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", [np.asarray, torch.tensor])
@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits_stay_finite(loss: str, backend) -> None:
    logits = backend([[1e4, -1e4, 0.0]])
    for variant in VARIANTS:
        assert np.isfinite(np.asarray(delta(loss, logits, M=3.0, variant=variant))).all()


@pytest.mark.parametrize("backend", [np.asarray, torch.tensor])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_of_nan_stays_nan_and_affects_no_other(loss: str, backend) -> None:
    nan = float("nan")
    found = np.asarray(delta(loss, backend([[nan, nan], [1.0, 2.0]]), M=3.0))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize("M", [None, float("nan")])
@pytest.mark.parametrize("loss", ["mse-m", "l1-m", "smooth-l1-m"])
def test_loss_with_a_target_m_asks_for_it(loss: str, M: float | None) -> None:
    with pytest.raises(InputError, match=f"'{loss}': expected M, the mean .*give M"):
        delta(loss, Z, M=M)


def test_unknown_loss_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"expected one of ce, mse-m.*found 'huber'"):
        delta("huber", Z)


def test_unknown_variant_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"single-pass, stack, sum; found 'eq7'"):
        delta("ce", Z, variant="eq7")


@pytest.mark.parametrize("logits", [np.array([[1, 2]]), np.array([1.0, 2.0])])
def test_logits_are_a_floating_point_matrix(logits) -> None:
    with pytest.raises(InputError, match="expected a floating-point matrix"):
        delta("ce", logits)
