import pytest
import torch
from torch import nn
from torch.nn import functional

from stages.errors import InputError
from stages.sensing.last_layer import find_last_layer

EXAMPLE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A body, two heads, and an ending that the test chooses."""

    def __init__(self, ending):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 5)
        self.other = nn.Linear(8, 5)
        self.ending = ending

    def forward(self, x):
        f = self.body(x)
        return self.ending(self, f, self.head(f))


def found(ending, name=None):
    return find_last_layer(Net(ending), EXAMPLE, name)


def test_layer_that_gives_the_output_is_found():
    assert found(lambda net, f, z: z) == "head"


def test_flattening_logits_changes_nothing():
    assert found(lambda net, f, z: torch.flatten(z, 1)) == "head"
    assert found(lambda net, f, z: z.view(z.shape[0], -1)) == "head"


def test_of_two_heads_the_one_that_is_returned_is_found():
    def ending(net, f, z):
        net.other(f)
        return z

    assert found(ending) == "head"
    assert found(lambda net, f, z: net.other(f)) == "other"


@pytest.mark.parametrize(
    "ending",
    [
        lambda net, f, z: functional.softmax(z, dim=1),
        lambda net, f, z: functional.log_softmax(z, dim=1),
        lambda net, f, z: z.clamp_(-50, 5),
        lambda net, f, z: functional.relu_(z),
        lambda net, f, z: z / 2,
        lambda net, f, z: z + net.other(f),
        lambda net, f, z: torch.cat([z, net.other(f)], dim=1),
        lambda net, f, z: net.other(net.body[1].weight[:, :8] * 0 + f[:1].repeat(8, 1))[:2] + z,
        lambda net, f, z: z[:, :, None, None].mean((2, 3)) * 1.5,
    ],
)
def test_anything_that_changes_the_logits_is_refused_with_what_was_found(ending):
    with pytest.raises(InputError, match=r"no linear layer gives .*'head' Linear\(8, 5\)"):
        found(ending)


@pytest.mark.parametrize("ending", [lambda net, f, z: (z, f), lambda net, f, z: {"logits": z}])
def test_output_that_is_not_one_tensor_is_refused(ending):
    with pytest.raises(InputError, match=r"returns (tuple|dict), expected one tensor"):
        found(ending)


def test_output_that_is_not_a_matrix_is_refused():
    with pytest.raises(InputError, match=r"shape \(2, 1, 5\)"):
        found(lambda net, f, z: z[:, None])


def test_layer_that_is_called_twice_is_refused():
    with pytest.raises(InputError, match="called 2 times"):
        found(lambda net, f, z: net.head(f))


def test_network_without_a_linear_layer_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 5, 4), nn.Flatten())
    with pytest.raises(
        InputError, match=r"no linear layer; the last modules called are '0' \(Conv2d\), '1' \(Fl"
    ):
        find_last_layer(network, EXAMPLE)


def test_network_that_fails_on_the_images_is_refused_with_its_reason():
    network = nn.Sequential(nn.Flatten(), nn.Linear(7, 5))
    with pytest.raises(InputError, match=r"fails on images of shape \(2, 3, 4, 4\) with Runtime"):
        find_last_layer(network, EXAMPLE)


def test_a_named_layer_is_used_if_it_is_the_last():
    assert found(lambda net, f, z: z, "head") == "head"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("haed", "no such layer; linear layers: 'body.1', 'head', 'other'"),
        ("body.2", "expected nn.Linear, found ReLU"),
        ("body.1", "not the network's output"),
        ("other", "not the network's output"),
    ],
)
def test_named_layer_that_is_not_the_last_linear_one_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        found(lambda net, f, z: z, name)


def test_network_is_left_in_the_mode_it_was_in():
    network = Net(lambda net, f, z: z)
    network.head.eval()
    find_last_layer(network, EXAMPLE)
    assert network.training
    assert not network.head.training
    assert not network.head._forward_hooks


class Average(nn.Module):
    """The mean of the outputs of layers on inputs of their own, in the way that a test chooses."""

    def __init__(self, layers, ending):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.ending = ending

    def forward(self, x):
        return self.ending(layer(torch.cat([x, -x], 1)) for layer in self.layers)


def average(outputs):
    return torch.stack([each.flatten(2).mean(2) for each in outputs]).mean(0)


def test_a_convolution_before_the_average_is_found():
    convolution = nn.Conv2d(6, 5, 1)
    ending = nn.Sequential(nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert find_last_layer(nn.Sequential(nn.Conv2d(3, 6, 1), convolution, *ending), EXAMPLE) == "1"
    wide = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 5, 1, bias=False), nn.Flatten())
    assert find_last_layer(wide, EXAMPLE) == "1"


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 6, 1, groups=3),
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Conv2d(3, 6, 1, stride=2),
        nn.Conv2d(3, 6, 1, padding=1),
    ],
)
def test_another_convolution_is_no_last_layer(convolution):
    network = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="found no linear layer"):
        find_last_layer(network, EXAMPLE)


def test_a_relu_between_convolution_and_average_is_refused():
    """The logits of SqueezeNet are not linear in any features."""
    network = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(
        InputError, match=r"'0' Conv2d\(3, 5\); the last modules called are '1' \(Re"
    ):
        find_last_layer(network, EXAMPLE)


def test_layers_whose_mean_is_returned_are_found_together():
    network = Average([nn.Conv2d(6, 5, 1) for _ in range(3)], average)
    assert find_last_layer(network, EXAMPLE) == "layers.0+layers.1+layers.2"
    assert find_last_layer(network, EXAMPLE, "layers.0+layers.1+layers.2")
    with pytest.raises(InputError, match="its output is not the network's output"):
        find_last_layer(network, EXAMPLE, "layers.0")


def test_a_scaled_output_is_refused_with_its_factors():
    network = Average([nn.Conv2d(6, 5, 1) for _ in range(2)], lambda each: 3 * average(each))
    with pytest.raises(InputError, match=r"output is 1\.5 times .*'layers\.0' plus 1\.5 times the"):
        find_last_layer(network, EXAMPLE)
