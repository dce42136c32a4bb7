import pytest
import torch
from torch import nn

from stages.introspection.stacked import StackedMlp

SIZES = [(12, 3), (12, 7, 3), (12, 8, 6, 5, 3), (12, 9, 8, 6, 5, 3)]


def filled(sizes: tuple[int, ...], n_copies: int, **dtypes: torch.dtype) -> StackedMlp:
    generator = torch.Generator().manual_seed(0)
    stacked = StackedMlp(sizes, n_copies, **dtypes)
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
