import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.reflection.layers import Projection, layer_gradient_chunks, layer_gradients
from stages.reflection.losses import LOSSES
from stages.reflection.rank_one import last_layer_gradient
from stages.reflection.torch_losses import objective


def a_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 7),
        nn.ReLU(),
        nn.Linear(7, 5),
    )
    return network.double().eval()


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def one_by_one(network: nn.Module, layer: str, inputs: Tensor, loss: str) -> Tensor:
    weight = network.get_parameter(f"{layer}.weight")
    rows = []
    for image in inputs:
        logits = network(image[None])[0]
        value = objective(loss, logits, torch.ones(5), M=1.3)
        rows.append(torch.autograd.grad(value, [weight])[0].flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("layer", ["0", "1", "5"])
def test_gradients_of_a_layer_equal_a_loop_of_autograd(layer: str, loss: str) -> None:
    network, inputs = a_network(), images()
    found = layer_gradients(network, layer, inputs, loss=loss, M=1.3)
    expected = one_by_one(network, layer, inputs, loss)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_gradients_of_the_last_layer_equal_the_closed_form() -> None:
    network, inputs = a_network(), images()
    features = network[:-1](inputs).detach()
    closed = last_layer_gradient(features, network(inputs).detach(), loss="ce").dense()
    found = layer_gradients(network, "7", inputs, loss="ce")
    torch.testing.assert_close(found, closed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_gradients_do_not_depend_on_the_chunks(chunk_rows: int) -> None:
    network, inputs = a_network(), images()
    chunks = list(layer_gradient_chunks(network, "0", inputs, loss="ce", chunk_rows=chunk_rows))
    assert max(len(chunk) for chunk in chunks) <= chunk_rows
    torch.testing.assert_close(
        torch.cat(chunks), layer_gradients(network, "0", inputs, loss="ce"), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_projected_gradients_are_the_dense_ones_times_the_matrix(kind) -> None:
    network, inputs, projection = a_network(), images(), Projection(9, kind, seed=3)
    dense = layer_gradients(network, "0", inputs, loss="ce")
    matrix = torch.cat(list(projection.blocks(dense.shape[1])), dim=1).double()
    found = layer_gradients(network, "0", inputs, loss="ce", projection=projection, chunk_rows=4)
    torch.testing.assert_close(found, dense @ matrix.T, rtol=0, atol=1e-12)


def test_a_projection_regenerated_for_each_chunk_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, inputs, projection = a_network(), images(), Projection(9)
    kept = layer_gradients(network, "0", inputs, loss="ce", projection=projection)
    monkeypatch.setattr("stages.reflection.layers._KEEP_BYTES", 0)
    again = layer_gradients(network, "0", inputs, loss="ce", projection=projection, chunk_rows=2)
    torch.testing.assert_close(kept, again, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_projection_keeps_squared_lengths_on_average(kind) -> None:
    vector = torch.randn(70_000, generator=torch.Generator().manual_seed(0))
    matrix = torch.cat(list(Projection(400, kind).blocks(70_000)), dim=1)
    ratio = float((matrix @ vector).square().sum() / vector.square().sum())
    assert matrix.shape == (400, 70_000)
    assert ratio == pytest.approx(1, abs=0.25)


def test_another_seed_is_another_projection() -> None:
    first, second = (next(Projection(4, seed=seed).blocks(10)) for seed in (0, 1))
    assert not np.allclose(first, second)


def test_a_network_that_returns_features_and_logits_is_used_by_its_logits() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = a_network()

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return inputs, self.inner(inputs)

    found = layer_gradients(Pair().eval(), "inner.5", images(), loss="ce")
    expected = layer_gradients(a_network(), "5", images(), loss="ce")
    torch.testing.assert_close(found, expected)


def test_network_in_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected eval mode.*network.eval\(\)"):
        layer_gradients(a_network().train(), "0", images(), loss="ce")


def test_unknown_layer_lists_those_with_a_weight() -> None:
    with pytest.raises(InputError, match=r"\(0, 1, 5, 7\), found 'fc'"):
        layer_gradients(a_network(), "fc", images(), loss="ce")


def test_gradients_leave_the_network_as_it_was() -> None:
    network = a_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    layer_gradients(network, "0", images(), loss="ce")
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
