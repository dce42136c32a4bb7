"""Closed forms of Lemma 1, Theorem 1 and Eq. 10 beside dense gradients by autograd, in float64."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.autograd import one_hot_passes, serial_gradients
from stages.analysis.quantities import (
    class_gradients,
    definitions,
    fisher,
    lemma,
    row_quantities,
    theorem,
)

SHAPES = [(1, 3, 2), (4, 3, 5), (7, 5, 4), (3, 10, 16)]
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
M = 1.5


def layer_and_rows(n: int, n_classes: int, width: int, sharpness: float = 1.0) -> Any:
    """A last layer and non-negative inputs of it, with their logits; float64."""
    generator = torch.Generator().manual_seed(n_classes * 100 + width)
    layer = nn.Linear(width, n_classes).double()
    weight = torch.randn(n_classes, width, generator=generator, dtype=torch.float64)
    layer.weight.data = sharpness * weight
    layer.bias.data = torch.randn(n_classes, generator=generator, dtype=torch.float64)
    features = torch.rand(n, width, generator=generator, dtype=torch.float64)
    return layer, features, layer(features).detach()


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def minmax(r: Tensor) -> Tensor:
    return 2 * (r - r.min()) / (r.max() - r.min()) - 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0])
def test_lemma_1_equals_dense_gradients_by_autograd(
    shape: tuple[int, int, int], sharpness: float
) -> None:
    layer, features, logits = layer_and_rows(*shape, sharpness)
    passes = one_hot_passes(layer, features, loss="ce")
    found = lemma(logits.numpy())
    for row, z in enumerate(logits):
        top = int(z.argmax())
        others = [c for c in range(len(z)) if c != top]
        gradients = {c: passes[row, c] for c in others}
        outside = [
            1 - float((r[c].norm() ** 2 + r[top].norm() ** 2) / r.norm() ** 2)
            for c, r in gradients.items()
        ]
        saturated, eq16 = [], []
        for c, r in gradients.items():
            for errors, coefficient in ((saturated, 1.0), (eq16, 2 / z[top])):
                form = torch.zeros_like(r)
                form[top], form[c] = coefficient * features[row], -features[row]
                errors.append(float((r - form).norm() / r.norm()))
        pairs = list(combinations(others, 2))
        kept = [c for c in range(len(z)) if c != top]
        expected = {
            "energy_outside": np.mean(outside),
            "error_saturated": np.mean(saturated),
            "error_eq16": np.mean(eq16),
            "cosine": np.mean([cosine(gradients[i], gradients[k]) for i, k in pairs]),
            "cosine_without_predicted": np.mean(
                [cosine(gradients[i][kept], gradients[k][kept]) for i, k in pairs]
            ),
        }
        assert {name: found[name][row] for name in expected} == pytest.approx(
            expected, rel=1e-8, abs=1e-12
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ["ce", "mse-m", "bce", "smooth-l1-m"])
def test_theorem_1_equals_dense_gradients_by_autograd(
    shape: tuple[int, int, int], loss: str
) -> None:
    layer, features, logits = layer_and_rows(*shape)
    single, stack, total = (
        serial_gradients(layer, features, loss=loss, M=M, variant=variant)
        for variant in ("single-pass", "stack", "sum")
    )
    found = theorem(features.numpy(), logits.numpy(), loss=loss, M=M)
    for row in range(len(features)):
        one, own, all_of_them = single[row], stack[row], total[row]
        expected = {
            "to_sum": float((one - all_of_them).norm() / all_of_them.norm()),
            "to_stack": float((one - own).norm() / own.norm()),
            "cosine_stack": cosine(one, own),
            "rms_minmax": float((minmax(one) - minmax(own)).square().mean().sqrt()),
        }
        assert {name: found[name][row] for name in expected} == pytest.approx(
            expected, rel=1e-8, abs=1e-7
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_single_pass_is_the_sum_for_cross_entropy_and_the_stack_for_mse(
    shape: tuple[int, int, int],
) -> None:
    _, features, logits = layer_and_rows(*shape)
    f, z = features.numpy(), logits.numpy()
    np.testing.assert_allclose(theorem(f, z, loss="ce", M=None)["to_sum"], 0, atol=1e-15)
    assert (theorem(f, z, loss="ce", M=None)["to_stack"] > 0.1).all()
    of_mse = theorem(f, z, loss="mse-m", M=M)
    np.testing.assert_allclose(of_mse["to_stack"], 0, atol=1e-15)
    np.testing.assert_allclose(of_mse["rms_minmax"], 0, atol=1e-7)
    assert (of_mse["to_sum"] > 0.1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fisher_trace_is_the_expected_squared_gradient_of_the_log_probability(
    shape: tuple[int, int, int],
) -> None:
    layer, features, logits = layer_and_rows(*shape)
    labels = torch.arange(len(features)) % logits.shape[1]
    found = fisher(features.numpy(), logits.numpy(), labels.numpy())
    for row, f in enumerate(features):
        log_p = torch.log_softmax(layer(f), dim=0)
        squares = torch.stack(
            [
                torch.autograd.grad(each, layer.weight, retain_graph=True)[0].square().sum()
                for each in log_p
            ]
        )
        expected = float((log_p.detach().exp() * squares).sum())
        assert found["fisher_trace"][row] == pytest.approx(expected, rel=1e-10)
        empirical = float(squares[labels[row]])
        assert found["fisher_trace_empirical"][row] == pytest.approx(empirical, rel=1e-10)
        parts = found["feature_energy"][row] * found["impurity"][row]
        assert found["fisher_trace"][row] == pytest.approx(parts)


def saturated(n_classes: int = 6) -> NDArray[np.float64]:
    return 40.0 * np.eye(n_classes)[:3]


def test_gradients_of_a_saturated_network_share_half_their_direction() -> None:
    found = lemma(saturated())
    np.testing.assert_allclose(found["energy_outside"], 0, atol=1e-12)
    np.testing.assert_allclose(found["error_saturated"], 0, atol=1e-12)
    np.testing.assert_allclose(found["cosine"], 0.5, **CLOSE)
    np.testing.assert_allclose(found["cosine_without_predicted"], 0, atol=1e-12)
    np.testing.assert_allclose(found["error_eq16"], (1 - 2 / 40) / np.sqrt(2), **CLOSE)


def test_for_saturated_probabilities_the_single_pass_is_three_stacks_away() -> None:
    found = theorem(np.ones((3, 4)), 40.0 * np.eye(10)[:3], loss="ce", M=None)
    np.testing.assert_allclose(found["to_stack"], 3.0, **CLOSE)
    np.testing.assert_allclose(found["cosine_stack"], 1 / np.sqrt(10), **CLOSE)


def test_the_trace_of_a_nearly_certain_row_keeps_its_digits() -> None:
    features, logits = np.ones((1, 3)), np.array([[60.0, 0.0, 0.0]])
    found = fisher(features, logits, np.array([0]))
    np.testing.assert_allclose(found["fisher_trace"], 3 * 2 * 2 * np.exp(-60.0), rtol=1e-12)


def test_a_row_without_a_label_has_no_accuracy_and_no_empirical_trace() -> None:
    found = fisher(np.ones((2, 3)), np.eye(2, 4), np.array([0, -1]))
    assert np.isnan(found["accuracy"]).tolist() == [False, True]
    assert np.isnan(found["fisher_trace_empirical"]).tolist() == [False, True]
    assert np.isfinite(found["fisher_trace"]).all()


def test_two_classes_have_no_pair_of_classes_that_are_not_predicted() -> None:
    found = lemma(np.array([[2.0, 0.0]]))
    assert np.isnan(found["cosine"]).all()
    np.testing.assert_allclose(found["energy_outside"], 0, atol=1e-15)


def test_every_quantity_is_defined_in_words() -> None:
    losses = {"ce": None, "mse-m": M}
    found = row_quantities(np.ones((2, 3)), np.eye(2, 4), np.array([0, 1]), losses)
    assert list(found) == list(definitions(losses))


def test_the_picture_shows_the_gradients_that_autograd_gives() -> None:
    layer, features, logits = layer_and_rows(1, 5, 4)
    passes = one_hot_passes(layer, features, loss="ce")[0]
    found = class_gradients(features[0].numpy(), logits[0].numpy())
    np.testing.assert_allclose(found, passes.transpose(1, 2).numpy(), **CLOSE)


def test_the_picture_needs_only_the_classes_that_it_shows() -> None:
    features, logits, shown = np.arange(1.0, 4.0), np.array([0.5, 2.0, -1.0, 0.0]), np.array([1, 3])
    expected = class_gradients(features, logits)[np.ix_(shown, range(3), shown)]
    np.testing.assert_array_equal(class_gradients(features, logits, shown), expected)
