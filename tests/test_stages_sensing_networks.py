import pytest
import torch

from stages.sensing.last_layer import find_last_layer
from stages.sensing.networks import cifar_resnet, network_factories

FACTORIES = network_factories()


def n_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", 175_818), ("resnet34", 514_218), ("resnet50", 545_930), ("resnet101", 1_749_258)],
)
def test_resnets_have_the_parameter_counts_of_the_papers_code_base(name, expected):
    assert n_parameters(cifar_resnet(name, 10)) == expected


def test_wrn_has_the_parameter_count_of_the_publication():
    assert n_parameters(FACTORIES["wrn40-2"](10)) == 2_243_546


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet18", 64), ("resnet34", 64), ("resnet50", 256), ("resnet101", 256), ("vgg16", 512),
     ("wrn40-2", 128), ("cnn2", 50)],
)  # fmt: skip
def test_last_layer_reads_features_of_the_papers_width(name, width):
    network = FACTORIES[name](10)
    layer = find_last_layer(network, torch.zeros(1, 3, 32, 32))
    assert layer == "linear"
    assert network.linear.weight.shape == (10, width)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("size", [28, 40])
def test_other_image_sizes_and_class_counts_work(name, size):
    logits = FACTORIES[name](7).eval()(torch.zeros(2, 3, size, size))
    assert logits.shape == (2, 7)


def test_convolutions_start_xavier_uniform_without_bias():
    conv = cifar_resnet("resnet18", 10).layer3[1].conv1
    bound = (2 * 6 / (64 * 9 + 64 * 9)) ** 0.5
    assert conv.bias.abs().max() == 0
    assert 0.98 * bound < conv.weight.abs().max() <= bound


def test_pooling_is_the_eight_pixel_average_at_32_pixels():
    network = cifar_resnet("resnet18", 10).eval()
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64)
    assert torch.allclose(network.pool(x), torch.nn.functional.avg_pool2d(x, 8))
