"""Checks of networks: logits other than W f + b, randomness, dependence on the batch, copies."""

import numpy as np
import odd_networks
import pytest
import torch
from torch import Tensor, nn

from stages.data.source import Rows
from stages.errors import InputError
from stages.sensing.build import build_network
from stages.sensing.card import ACCEPTS_UNSTABLE, ModelCard
from stages.sensing.model import ARRANGEMENTS, Sensing, check_twin, describe, sensing_of
from stages.sensing.probe import check_stable, noise_images, own_answer, sample_images
from stages.sensing.weights import weights_hash

CLASSES = tuple("abcd")


@pytest.fixture
def images() -> Tensor:
    return noise_images((32, 32))


def network_of(name: str) -> nn.Module:
    """With random weights and running statistics, in eval mode."""
    torch.manual_seed(0)
    network: nn.Module = getattr(odd_networks, name)(len(CLASSES))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean += 0.2 * torch.randn(8)
            module.running_var += torch.rand(8)  # type: ignore[operator]  # it has one too
    return network.eval()


def card_of(network: nn.Module, **extra: str) -> ModelCard:
    return describe(
        network,
        name="mine",
        network_name="cnn2",
        class_names=CLASSES,
        image_size=32,
        family="x",
    ).with_facts(extra)


def checked(name: str, images: Tensor, **extra: str) -> Sensing:
    network = network_of(name)
    return sensing_of(network, card_of(network, **extra), images, is_new=True)


def own_logits(network: nn.Module, sensing: Sensing, images: Tensor) -> Tensor:
    pixels = (images - sensing.mean) * sensing.scale
    with torch.no_grad():
        logits: Tensor = network(pixels.permute(0, 3, 1, 2).contiguous())
    return logits


@pytest.mark.parametrize("name", odd_networks.NOT_THE_HEAD)
def test_logits_that_are_not_those_of_the_last_layer_are_refused(name: str, images: Tensor) -> None:
    with pytest.raises(
        InputError,
        match=r"model mine: its logits are not W f \+ b of its last layer 'fc' \((\w+)\): they "
        r"differ by up to [\d.e-]+, with values up to [\d.e-]+; end the network in a plain",
    ):
        checked(name, images)


@pytest.mark.parametrize("name", odd_networks.NOT_THE_COPY)
def test_a_network_whose_copy_differs_is_refused(name: str, images: Tensor) -> None:
    with pytest.raises(
        InputError,
        match=r"mine: a copy whose last layer 'fc' .*(gives different|fails with)|not (copy|give)",
    ):
        checked(name, images)


@pytest.mark.parametrize("name", odd_networks.CHANCE)
def test_an_output_that_depends_on_chance_is_refused(name: str, images: Tensor) -> None:
    with pytest.raises(
        InputError, match=r"different features \(by up to .* depend on chance.*--acce"
    ):
        checked(name, images)


@pytest.mark.parametrize("name", odd_networks.NEIGHBOURS)
def test_an_output_that_depends_on_the_batch_is_refused(name: str, images: Tensor) -> None:
    with pytest.raises(InputError, match=r"than in a batch: they depend on the other images"):
        checked(name, images)


@pytest.mark.parametrize("name", odd_networks.NEIGHBOURS)
def test_one_image_is_enough_to_see_that(name: str, images: Tensor) -> None:
    with pytest.raises(InputError, match="than in a batch"):
        checked(name, images[:1])


@pytest.mark.parametrize("name", [*odd_networks.CHANCE[:-1], *odd_networks.NEIGHBOURS])
def test_both_can_be_accepted(name: str, images: Tensor) -> None:
    features, logits = checked(name, images, **ACCEPTS_UNSTABLE)(images)
    assert features.shape == (4, odd_networks.WIDTH)
    assert logits.shape == (4, 4)


def test_acceptance_does_not_cover_another_head(images: Tensor) -> None:
    with pytest.raises(InputError, match="not W f"):
        checked("cosine", images, **ACCEPTS_UNSTABLE)


@pytest.mark.parametrize("name", odd_networks.RIGHT)
def test_networks_that_are_right_give_their_own_answer(name: str, images: Tensor) -> None:
    network = network_of(name)
    sensing = sensing_of(network, card_of(network), images, is_new=True)
    expected = own_logits(network, sensing, images)
    scale = 1e-2 if name == "half_precision" else 1e-4 if name == "tiny_logits" else 1e-5
    atol = scale * float(expected.abs().max())
    torch.testing.assert_close(sensing(images)[1], expected.float(), atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("name", "size", "precision"),
    [
        *(("resnet18", 32, "bf16"), ("resnet101", 32, "bf16"), ("vgg16", 32, "fp32")),
        *(("torchvision:resnet50", 64, "bf16"), ("torchvision:densenet121", 64, "fp32")),
        ("torchvision:efficientnet_b0", 64, "fp32"),
    ],
)
def test_deep_networks_with_random_weights_pass(name: str, size: int, precision: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, 4).eval()
    card = describe(
        network, name="m", network_name=name, class_names=CLASSES, image_size=size, family="x"
    )
    images = noise_images((size, size))[:2]
    found = sensing_of(network, card, images, precision, is_new=True)  # type: ignore[arg-type]  # a Literal's value
    assert found.arrangement == ARRANGEMENTS[0]


def test_a_network_that_depends_on_the_memory_layout_gets_contiguous_images(images: Tensor) -> None:
    assert checked("viewing", images).arrangement == ARRANGEMENTS[-1]


def test_rows_of_nan_do_not_count(images: Tensor) -> None:
    images[1:3] = 0
    assert checked("dividing_by_std", images)(images)[1].isnan().any(dim=1).tolist() == [
        *(False, True, True, False),
    ]


def test_a_network_of_nan_everywhere_is_left_to_extraction() -> None:
    black = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    checked("dividing_by_std", black)


def test_training_mode_and_random_generators_are_left_as_they_were(images: Tensor) -> None:
    network = network_of("dropout_module").train()
    network.conv.eval()
    before = [module.training for module in network.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # the legacy state is a tuple
    sensing_of(network, card_of(network), images, is_new=True)
    assert [module.training for module in network.modules()] == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]  # the legacy state is a tuple
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_gpu_that_is_not_used_is_left_alone(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver may be too old for this torch; without CUDA, asking for its state fails too."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 99)
    checked("ordinary", images)


def test_a_copy_for_another_thread_is_compared(images: Tensor) -> None:
    sensing = checked("ordinary", images)
    other = checked("ordinary", images)
    check_twin(sensing, other, images)
    other.taps[0].weight.data *= 1.01
    with pytest.raises(InputError, match="does not give an independent copy of the network"):
        check_twin(sensing, other, images)
    with pytest.raises(InputError, match="does not give"):
        check_twin(sensing, sensing, images)


class Rough:
    """A source of twenty rows of which some cannot be read; ``tried`` notes which were."""

    n_rows = 20
    image_size = (4, 4)

    def __init__(self, good: range) -> None:
        self.good, self.tried = good, list[int]()

    def read(self, start: int, stop: int) -> Rows:
        self.tried.append(start)
        if start % 2 and start not in self.good:
            raise OSError("gone")
        failed = {} if start in self.good else {0: "torn"}
        return Rows(np.full((1, 4, 4, 3), start, np.uint8), {}, failed)


@pytest.mark.parametrize(
    ("good", "expected"), [(range(20), [0, 5, 10, 15]), (range(17, 19), [17]), (range(0), None)]
)
def test_the_sample_is_spread_over_the_rows_that_can_be_read(
    good: range, expected: list[int] | None
) -> None:
    found = sample_images(Rough(good))  # type: ignore[arg-type]  # all that is asked of it
    if expected is None:
        assert torch.equal(found, noise_images((4, 4)))
    else:
        assert found[:, 0, 0, 0].tolist() == expected


def test_large_images_are_sent_one_by_one() -> None:
    assert [len(noise_images((size, size))) for size in (224, 600, 3000)] == [4, 2, 1]


@pytest.mark.parametrize("name", ["call_counting", "training_norm"])
def test_a_network_is_left_with_the_buffers_that_it_had(name: str, images: Tensor) -> None:
    network = network_of(name)
    before = {
        key: (value, value.clone()) for key, value in network.state_dict(keep_vars=True).items()
    }
    card = card_of(network, **ACCEPTS_UNSTABLE)
    sensing_of(network, card, images, is_new=True)
    assert card.weights_sha256 == weights_hash(network)
    for key, value in network.state_dict(keep_vars=True).items():
        assert value is before[key][0]
        assert torch.equal(value, before[key][1])


def test_passes_end_with_the_first_that_differs(images: Tensor) -> None:
    network, n_passes = network_of("dropping"), 0

    def count(*_: object) -> None:
        nonlocal n_passes
        n_passes += 1

    network.register_forward_hook(count)
    card = card_of(network)
    pixels = images.permute(0, 3, 1, 2).float()
    with torch.no_grad():
        answer = own_answer(network, card.last_layer, pixels)
        n_passes = 0
        with pytest.raises(InputError, match="depend on chance"):
            check_stable(network, card.last_layer, pixels, answer, "m")
    assert n_passes == 1
