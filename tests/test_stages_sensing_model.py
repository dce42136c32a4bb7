import dataclasses
import json

import pytest
import torch
from torch import nn

from stages.data.resize import Resize
from stages.errors import InputError
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.folding import folded
from stages.sensing.model import Sensing, describe, load_sensing, normalised, sensing_of
from stages.sensing.networks import Bottleneck, Cnn2, cifar_resnet, cnn2
from stages.sensing.weights import save_weights

CLASSES = tuple("abcdefghij")


def shaken(network):
    """The network with batch norms that do something: as they start they are the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
            module.running_var += torch.rand(module.running_var.shape, generator=generator)
    return network.eval()


def card_of(network, name="resnet18", **changes):
    return describe(
        network, name="m", network_name=name, class_names=CLASSES, image_size=32, family="cifar10",
        **changes,
    )  # fmt: skip


@pytest.fixture
def network():
    torch.manual_seed(0)
    return shaken(cifar_resnet("resnet18", 10))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=generator)


def plain_logits(network, card, images):
    pixels = (images.float() / 255 - torch.tensor(card.mean)) / torch.tensor(card.std)
    with torch.no_grad():
        return network(pixels.permute(0, 3, 1, 2).contiguous())


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "vgg16", "cnn2", "torchvision:mobilenet_v3_small"]
)
def test_logits_are_those_of_the_plain_network(name, images):
    torch.manual_seed(0)
    network = shaken(build_network(name, 10))
    card = card_of(network, name)
    _, logits = Sensing(network, card)(images)
    expected = plain_logits(network, card, images)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_the_last_layer_of_the_features_exactly(network, images, precision):
    sensing = Sensing(network, card_of(network), precision)
    features, logits = sensing(images)
    assert features.shape == (6, 64)
    assert features.dtype == logits.dtype == torch.float32
    assert torch.equal(logits, nn.functional.linear(features, sensing.weight, sensing.bias))


def test_features_are_the_input_of_the_last_layer(network, images):
    seen = []
    network.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    card = card_of(network)
    seen.clear()
    plain_logits(network, card, images)
    features, _ = Sensing(network, card)(images)
    assert torch.allclose(features, seen[0], atol=1e-5)


def test_bf16_stays_near_fp32(network, images):
    card = card_of(network)
    _, exact = Sensing(network, card)(images)
    _, rounded = Sensing(network, card, "bf16")(images)
    assert (rounded - exact).abs().max() < 0.02 * exact.abs().max()


def test_rows_do_not_depend_on_the_batch_around_them(network, images):
    sensing = Sensing(network, card_of(network))
    _, together = sensing(images)
    _, alone = sensing(images[2:3])
    assert torch.allclose(together[2:3], alone, atol=1e-5)


def test_sensing_stays_in_eval_mode_and_leaves_the_network_alone(network, images):
    before = save_weights(network)
    sensing = Sensing(network, card_of(network)).train()
    sensing(images)
    assert not any(module.training for module in sensing.modules())
    assert save_weights(network) == before
    assert isinstance(network.linear, nn.Linear)


@pytest.mark.parametrize(
    "resizing", [None, Resize((32, 32), 40, "bicubic"), Resize((32, 32), (50, 40))]
)
def test_model_comes_back_from_its_card_and_weights(network, images, tmp_path, resizing):
    card = dataclasses.replace(card_of(network), M=3.5, resizing=resizing)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save_weights(network))
    values = json.loads(json.dumps(card.to_dict()))
    assert values == card.to_dict()
    again = ModelCard.from_dict(values)
    assert again == card
    assert torch.equal(load_sensing(again, path)(images)[1], Sensing(network, card)(images)[1])


def test_other_weights_than_the_cards_are_refused(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save_weights(cifar_resnet("resnet18", 10)))
    with pytest.raises(InputError, match="not those of model m"):
        load_sensing(card_of(network), path)


def test_network_with_another_number_of_classes_is_refused():
    with pytest.raises(InputError, match="returns 7 logits, the data set has 10 classes"):
        card_of(cifar_resnet("resnet18", 7))


@pytest.mark.parametrize(("change", "message"), [("drop", "no 'mean'"), ("add", "unknown key 'x'")])
def test_card_with_missing_or_unknown_keys_is_refused(network, change, message):
    values = card_of(network).to_dict()
    changed = (
        {k: v for k, v in values.items() if k != "mean"} if change == "drop" else {**values, "x": 1}
    )
    with pytest.raises(InputError, match=message):
        ModelCard.from_dict(changed)


def test_unknown_precision_is_refused(network):
    with pytest.raises(InputError, match="expected fp32 or bf16"):
        Sensing(network, card_of(network), "fp16")


def test_unknown_precision_is_refused_by_the_check_too(network, images):
    with pytest.raises(InputError, match="precision 'fp16': expected fp32 or bf16"):
        sensing_of(network, card_of(network), images, "fp16")


def test_card_of_another_network_is_refused(network):
    card = dataclasses.replace(card_of(network), last_layer="layer1")
    with pytest.raises(InputError, match="belongs to another network"):
        Sensing(network, card)


def test_card_of_a_users_network_holds_the_hash_of_its_source(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("from stages.sensing.networks import cnn2 as net\n")
    card = card_of(build_network(f"{path}:net", 10), f"{path}:net")
    assert len(card.extra["source_sha256"]) == 64


def test_folding_removes_every_batch_norm_of_a_resnet(network):
    copy = folded(network)
    assert "BatchNorm2d" not in copy.code
    assert not any(target.endswith(("bn1", "bn2")) for target in _called(copy))


def test_folding_leaves_a_shared_convolution_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(self.conv(x)) + self.conv(x)

    network, x = shaken(Shared()), torch.randn(2, 3, 4, 4)
    assert torch.allclose(folded(network)(x), network(x), atol=1e-6)


def test_folding_leaves_a_convolution_with_a_parametrised_weight_alone():
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 3))
    network, x = shaken(nn.Sequential(conv, nn.BatchNorm2d(3))), torch.randn(2, 3, 4, 4)
    assert torch.allclose(folded(network)(x), network(x), atol=1e-6)


def test_network_that_cannot_be_traced_runs_unfolded():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    x = torch.ones(2, 3)
    assert torch.equal(folded(Branching())(-x), x)


def test_bottleneck_of_another_width_folds_too():
    block, x = shaken(Bottleneck(8, 4, 2)), torch.randn(2, 8, 6, 6)
    assert torch.allclose(folded(block)(x), block(x), atol=1e-5)


def test_cnn_features_are_never_negative(images):
    network = cnn2(10)
    assert Sensing(network, card_of(network, "cnn2"))(images)[0].min() >= 0


def _called(traced):
    return [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]


class Typed(nn.Module):
    """Tracing misses the clamp: what flows then is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, torch.Tensor):
            x = x.clamp(-0.1, 0.1)
        return self.last(x.mean(dim=(2, 3)))


def test_a_network_that_tracing_would_change_runs_unmodified() -> None:
    network = Typed().eval()
    names = tuple("abcd")
    card = describe(
        network, name="t", network_name="t", class_names=names, image_size=8, family="t"
    )
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    sensing = sensing_of(network, card, images)
    with torch.no_grad():
        expected = network(normalised(images, sensing.mean, sensing.scale))
    torch.testing.assert_close(sensing(images)[1], expected)


class Sharing(Cnn2):
    """A copy has its own last layer, but shares the first one."""

    def __deepcopy__(self, memo):
        copied = cnn2(10)
        copied.load_state_dict(self.state_dict())
        copied.conv1 = self.conv1
        return copied


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_copy_that_shares_a_layer_is_refused_and_nothing_is_changed(images, precision):
    network = Sharing(10).train()
    card = card_of(network, "cnn2")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError, match=r"deepcopy does not copy .*'conv1.weight'.*__deepcopy__"):
        sensing_of(network, card, images, precision)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_a_singleton_is_refused_before_its_last_layer_is_replaced(images):
    network = cnn2(10)
    card, last = card_of(network, "cnn2"), network.linear
    network.__deepcopy__ = lambda _: network
    with pytest.raises(InputError, match=r"deepcopy does not copy"):
        sensing_of(network, card, images)
    assert network.linear is last
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError("full")])
@pytest.mark.parametrize("is_in_copy", [True, False])
def test_exhausted_memory_is_not_reported_as_a_fault_of_the_network(images, error, is_in_copy):
    network = cnn2(10)
    card = card_of(network, "cnn2")

    def fail(*_):
        raise error

    def copied(_):
        if is_in_copy:
            fail()
        other = cnn2(10)
        other.register_forward_pre_hook(fail)
        return other

    network.__deepcopy__ = copied
    with pytest.raises(type(error), match=r"^full$"):
        sensing_of(network, card, images)
