from typing import Any

import pytest
import torch
from allocated import Allocated
from torch import Tensor, nn

from stages.introspection.first_layer import StackedGradients
from stages.introspection.stacked import StackedMlp

SIZES = [(12, 3), (12, 7, 3), (12, 8, 6, 5, 3), (12, 9, 8, 6, 5, 3)]


def filled(sizes: tuple[int, ...], n_copies: int, **choice: Any) -> StackedMlp:
    generator = torch.Generator().manual_seed(0)
    stacked = StackedMlp(sizes, n_copies, **choice)
    with torch.no_grad():
        stacked.parameters.copy_(torch.randn(stacked.parameters.shape, generator=generator))
    return stacked


def plain(stacked: StackedMlp, index: int) -> nn.Sequential:
    """The obvious network with the weights of one copy."""
    layers: list[nn.Module] = []
    for weight, bias in zip(stacked.weights, stacked.biases, strict=True):
        linear = nn.Linear(weight.shape[2], weight.shape[1], dtype=weight.dtype)
        linear.load_state_dict({"weight": weight[index], "bias": bias[index, 0]})
        layers += [linear, nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])


def test_parameters_are_those_of_all_layers() -> None:
    stacked = StackedMlp((640, 300, 100, 10), 3)
    assert stacked.parameters.numel() == 3 * (640 * 300 + 300 * 100 + 100 * 10 + 410)
    assert [tuple(w.shape) for w in stacked.weights] == [(3, 300, 640), (3, 100, 300), (3, 10, 100)]


@pytest.mark.parametrize("n_copies", [1, 3])
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_those_of_autograd(sizes: tuple[int, ...], n_copies: int) -> None:
    double = torch.float64
    stacked = filled(sizes, n_copies, dtype=double, parameter_dtype=double)
    inputs = torch.randn(n_copies, 20, 12, dtype=double)
    slope = torch.randn(n_copies, 20, 3, dtype=double)
    with torch.no_grad():
        hidden, logits = stacked.forward(inputs)
        stacked.backward(inputs, hidden, slope)
    start = 0
    for layer in range(len(sizes) - 1):
        for kind in ("weight", "bias"):
            for index in range(n_copies):
                network = plain(stacked, index)
                expected = network(inputs[index])
                torch.testing.assert_close(logits[index], expected, rtol=0, atol=1e-12)
                expected.backward(slope[index])
                obvious = getattr(network[2 * layer], kind).grad.flatten()
                found = stacked.parameters.grad[start : start + len(obvious)]
                torch.testing.assert_close(found, obvious, rtol=0, atol=1e-12)
                start += len(obvious)
    assert start == len(stacked.parameters)


def test_dropout_masks_act_in_both_directions() -> None:
    stacked = filled((12, 7, 6, 3), 2, dtype=torch.float64, parameter_dtype=torch.float64)
    inputs = torch.randn(2, 20, 12, dtype=torch.float64)
    slope = torch.randn(2, 20, 3, dtype=torch.float64)
    masks = [(torch.rand(2, 20, width) < 0.5).double() / 0.5 for width in (7, 6)]
    with torch.no_grad():
        hidden, logits = stacked.forward(inputs, masks)
        stacked.backward(inputs, hidden, slope, masks)
    weights = [weight.clone().requires_grad_() for weight in stacked.weights]
    values = inputs
    for layer, weight in enumerate(weights):
        values = values @ weight.mT + stacked.biases[layer]
        values = values.sigmoid() * masks[layer] if layer < 2 else values
    torch.testing.assert_close(logits, values.detach(), rtol=0, atol=1e-12)
    values.backward(slope)
    found = stacked.parameters.grad[: weights[0].numel()].view_as(weights[0])
    torch.testing.assert_close(found, weights[0].grad, rtol=0, atol=1e-12)


def test_bfloat16_products_stay_near_and_leave_float32_parameters() -> None:
    exact, rounded = (filled((12, 7, 3), 2, dtype=d) for d in (torch.float32, torch.bfloat16))
    inputs, slope = torch.rand(2, 50, 12), torch.randn(2, 50, 3)
    before = rounded.parameters.detach().clone()
    for stacked in (exact, rounded):
        x = inputs.to(stacked.dtype)
        with torch.no_grad():
            hidden, _ = stacked.forward(x)
            stacked.backward(x, hidden, slope.to(stacked.dtype))
    assert torch.equal(rounded.parameters.detach(), before)
    assert rounded.parameters.grad.dtype == torch.float32
    distance = torch.dist(exact.parameters.grad, rounded.parameters.grad)
    assert 0 < distance < 0.02 * exact.parameters.grad.norm()


def in_factors(n: int, n_classes: int, width: int, *, is_shifted: bool = True) -> StackedGradients:
    """Rows of two heads."""
    double = torch.float64
    offset = torch.randn(2, n, dtype=double) if is_shifted else None
    delta = torch.randn(2, n, n_classes, dtype=double)
    return StackedGradients(delta, torch.randn(2, n, width, dtype=double), offset)


def written_out(rows: StackedGradients, index: int) -> Tensor:
    """``δ ⊗ f + k`` of one head, element by element."""
    dense = torch.einsum("nc,nd->ncd", rows.delta[index], rows.features[index]).flatten(1)
    return dense if rows.offset is None else dense + rows.offset[index][:, None]


def filled_by_autograd(stacked: StackedMlp, rows: StackedGradients, slope: Tensor) -> Tensor:
    """The gradient of all parameters, of a dense first layer on what is written out.

    The dense matrix of a low-rank layer is ``Σ_r C_hr u_r ⊗ v_r``, times a constant.
    """
    leaves = [tensor.clone().requires_grad_() for tensor in stacked.tensors]
    n_vectors = len(stacked.vectors)
    for index in range(2):
        values = written_out(rows, index)
        own = [leaf[index] for leaf in leaves]
        weights, biases = own[n_vectors::2], own[n_vectors + 1 :: 2]
        if n_vectors:
            pairs = torch.einsum("rc,rd->rcd", own[0], own[1]).flatten(1)
            weights[0] = weights[0] @ pairs * (64 / (5 * 7) ** 0.5)
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            values = values @ weight.T + bias
            values = values.sigmoid() if layer < len(weights) - 1 else values
        values.backward(slope[index])
    return torch.cat([leaf.grad.flatten() for leaf in leaves])


@pytest.mark.parametrize("is_shifted", [True, False])
@pytest.mark.parametrize("hidden", [(), (6,), (8, 6)])
@pytest.mark.parametrize("rank", [None, 4])
def test_gradients_in_factors_are_learned_from_as_if_written_out(
    rank: int | None, hidden: tuple[int, ...], is_shifted: bool
) -> None:
    double = torch.float64
    sizes = (rank or 35, *hidden, 3)
    factors = (5, 7) if rank else ()
    stacked = filled(sizes, 2, factors=factors, dtype=double, parameter_dtype=double)
    rows = in_factors(20, 5, 7, is_shifted=is_shifted)
    slope = torch.randn(2, 20, 3, dtype=double)
    with torch.no_grad():
        found, _ = stacked.forward(rows)
        stacked.backward(rows, found, slope)
    expected = filled_by_autograd(stacked, rows, slope)
    torch.testing.assert_close(stacked.parameters.grad, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [None, 4])
def test_a_step_at_the_width_of_imagenet_writes_no_gradient_out(rank: int | None) -> None:
    n, n_classes, width = 256, 1000, 2048
    sizes = (rank or n_classes * width, 2, n_classes)
    stacked = StackedMlp(sizes, 1, factors=(n_classes, width) if rank else ())
    rows = StackedGradients(torch.rand(1, n, n_classes), torch.rand(1, n, width), torch.rand(1, n))
    with torch.no_grad(), Allocated() as made:
        found, logits = stacked.forward(rows)
        stacked.backward(rows, found, logits)
    assert made.largest < n * n_classes * width * 4 / 50
