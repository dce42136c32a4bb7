import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.errors import InputError
from stages.reflection.rank_one import SCALINGS, RankOneGradient, last_layer_gradient


def gradients(n: int = 7, n_classes: int = 4, feature_dim: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    return RankOneGradient(rng.normal(size=(n, n_classes)), rng.normal(size=(n, feature_dim)))


def in_torch(gradient: RankOneGradient) -> RankOneGradient:
    return RankOneGradient(torch.from_numpy(gradient.delta), torch.from_numpy(gradient.features))


def obviously_scaled(dense: np.ndarray, scaling: str) -> np.ndarray:
    rows = []
    for row in dense:
        low, high, largest = row.min(), row.max(), np.abs(row).max()
        if scaling == "minmax":
            rows.append(2 * (row - low) / (high - low) - 1 if high > low else np.zeros_like(row))
        elif scaling == "maxabs":
            rows.append(row / largest if largest > 0 else row)
        else:
            rows.append(row)
    return np.array(rows)


def test_dense_is_class_major() -> None:
    gradient = RankOneGradient(np.array([[1.0, 10.0]]), np.array([[1.0, 2.0, 3.0]]))
    assert gradient.dense().tolist() == [[1, 2, 3, 10, 20, 30]]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", [(1, 1, 2), (7, 4, 5), (3, 10, 64)])
def test_scaled_equals_the_scaled_dense_gradient(shape, scaling: str) -> None:
    gradient = gradients(*shape)
    expected = obviously_scaled(gradient.dense(), scaling)
    np.testing.assert_allclose(gradient.scaled(scaling).dense(), expected, atol=1e-12)


values = st.floats(-100, 100, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)


@settings(max_examples=100, deadline=None)
@given(
    delta=hnp.arrays(np.float64, (2, 3), elements=values),
    features=hnp.arrays(np.float64, (2, 4), elements=values),
    scaling=st.sampled_from(SCALINGS),
)
def test_scaled_equals_the_scaled_dense_gradient_for_any_signs_and_zeros(
    delta: np.ndarray, features: np.ndarray, scaling: str
) -> None:
    gradient = RankOneGradient(delta, features)
    expected = obviously_scaled(gradient.dense(), scaling)
    np.testing.assert_allclose(gradient.scaled(scaling).dense(), expected, atol=1e-6)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_minmax_reaches_both_ends_for_gradients_of_one_sign(sign: float) -> None:
    rng = np.random.default_rng(0)
    gradient = RankOneGradient(sign * rng.uniform(size=(5, 10)), rng.uniform(size=(5, 64)))
    dense = gradient.scaled("minmax").dense()
    np.testing.assert_allclose(dense.min(axis=1), -1, atol=1e-12)
    np.testing.assert_allclose(dense.max(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scaling", ["minmax", "maxabs"])
@pytest.mark.parametrize("backend", [np.asarray, torch.from_numpy])
def test_gradients_of_zeros_become_zeros_never_nan(backend, scaling: str, dtype) -> None:
    delta, features = np.ones((2, 3), dtype), np.zeros((2, 4), dtype)
    zeros = RankOneGradient(backend(delta), backend(features)).scaled(scaling)
    assert np.asarray(zeros.dense()).tolist() == [[0] * 12] * 2


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-20, 1e-10, 1e15])
def test_minmax_of_tiny_and_huge_gradients_stays_in_range(scale: float) -> None:
    features = np.array([[0.0, 1.0, 2.0]], np.float32)
    delta = np.array([[-1.0, 0.5]], np.float32) * np.float32(scale)
    dense = RankOneGradient(delta, features).scaled("minmax").dense()
    assert np.abs(dense).max() <= 1 + 1e-6


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("backend", [np.asarray, torch.from_numpy])
def test_rows_of_nan_stay_nan_and_touch_no_other(backend, scaling: str) -> None:
    gradient = gradients(3)
    gradient.delta[1] = gradient.features[1] = np.nan
    failed = RankOneGradient(backend(gradient.delta), backend(gradient.features)).scaled(scaling)
    dense, norms = np.asarray(failed.dense()), np.asarray(failed.norms())
    assert np.isnan(dense[1]).all()
    assert np.isfinite(dense[[0, 2]]).all()
    assert np.isnan(norms).tolist() == [False, True, False]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_norms_inner_products_and_distances_equal_those_of_the_dense_gradients(
    scaling: str,
) -> None:
    ours, other = gradients(7).scaled(scaling), gradients(5, seed=1).scaled("minmax")
    a, b = ours.dense(), other.dense()
    distances = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(ours.norms(), np.linalg.norm(a, axis=1), atol=1e-12)
    np.testing.assert_allclose(ours.inner_products(other), a @ b.T, atol=1e-12)
    np.testing.assert_allclose(ours.squared_distances(other), distances, atol=1e-10)
    np.testing.assert_allclose(other.squared_distances(ours), distances.T, atol=1e-10)


def test_distance_to_itself_is_zero_and_never_negative() -> None:
    distances = gradients(20).scaled("minmax").squared_distances()
    assert distances.min() >= 0
    np.testing.assert_allclose(np.diag(distances), 0, atol=1e-10)


def test_distances_do_not_depend_on_the_block_size() -> None:
    gradient = gradients(10)
    by_three = gradient.squared_distances(block_rows=3)
    np.testing.assert_allclose(by_three, gradient.squared_distances(), atol=1e-12)
    assert [start for start, _ in gradient.squared_distance_blocks(block_rows=3)] == [0, 3, 6, 9]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_projection_equals_the_product_with_the_dense_gradient(scaling: str) -> None:
    gradient = gradients().scaled(scaling)
    matrix = np.random.default_rng(3).normal(size=(6, 20))
    np.testing.assert_allclose(gradient.project(matrix), gradient.dense() @ matrix.T, atol=1e-12)


def test_projection_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = gradients().scaled("minmax")
    matrix = np.random.default_rng(3).normal(size=(6, 20))
    monkeypatch.setattr("stages.reflection.rank_one._PROJECTED", 2 * gradient.n_classes)
    assert gradient.outputs_at_once == 2
    np.testing.assert_allclose(gradient.project(matrix), gradient.dense() @ matrix.T, atol=1e-12)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_weighted_sums_equal_those_of_the_dense_gradients(scaling: str) -> None:
    gradient = gradients(7).scaled(scaling)
    weights = np.random.default_rng(3).normal(size=(7, 6))
    expected = weights.T @ gradient.dense()
    np.testing.assert_allclose(gradient.weighted_sums(weights), expected, atol=1e-12)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_torch_equals_numpy(scaling: str) -> None:
    ours, theirs = gradients().scaled(scaling), in_torch(gradients()).scaled(scaling)
    matrix = np.random.default_rng(3).normal(size=(6, 20))
    pairs = [
        (ours.dense(), theirs.dense()),
        (ours.norms(), theirs.norms()),
        (ours.inner_products(ours), theirs.inner_products(theirs)),
        (ours.squared_distances(), theirs.squared_distances()),
        (ours.project(matrix), theirs.project(torch.from_numpy(matrix))),
    ]
    for from_numpy, from_torch in pairs:
        np.testing.assert_allclose(from_numpy, from_torch.numpy(), atol=1e-10)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_float32_stays_float32(scaling: str) -> None:
    features, logits = np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)
    gradient = last_layer_gradient(features, logits, loss="ce").scaled(scaling)
    assert gradient.dense().dtype == np.float32
    assert gradient.norms().dtype == np.float32


@pytest.mark.parametrize("rows", [slice(1, 4), np.array([5, 0, 5]), np.arange(7) % 2 == 0])
def test_take_returns_the_requested_rows(rows) -> None:
    gradient = gradients().scaled("minmax")
    np.testing.assert_array_equal(gradient.take(rows).dense(), gradient.dense()[rows])


def test_scaling_twice_is_scaling_once() -> None:
    once = gradients().scaled("minmax")
    np.testing.assert_allclose(once.scaled("minmax").dense(), once.dense(), atol=1e-12)


def test_factors_of_different_rows_are_refused() -> None:
    with pytest.raises(InputError, match=r"found \(2, 3\), \(4, 5\)"):
        RankOneGradient(np.ones((2, 3)), np.ones((4, 5)))


def test_unknown_scaling_names_those_there_are() -> None:
    with pytest.raises(InputError, match="minmax, maxabs, none; found 'zscore'"):
        gradients().scaled("zscore")


def test_projection_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected a matrix \[h, 20\], found \(2, 19\)"):
        gradients().project(np.ones((2, 19)))
