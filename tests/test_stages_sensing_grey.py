"""Networks with one input channel see grey images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stages.errors import InputError
from stages.sensing.build import build_network
from stages.sensing.card import Normalisation
from stages.sensing.grey import accepting_rgb, takes_grey
from stages.sensing.model import describe, sensing_of

ONE = Normalisation((0.3,) * 3, (0.2,) * 3)

SOURCE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, n_classes):
        body = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        super().__init__(*body, nn.Linear(144, n_classes))

class Own(Net):
    def forward(self, x):
        return super().forward(x.mean(1, keepdim=True))
"""


@pytest.fixture
def network(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(SOURCE)
    return f"{tmp_path / 'nets.py'}:Net"


def describe_as(name: str, normalisation: Normalisation = ONE):
    torch.manual_seed(0)
    network = build_network(name, 3).eval()
    card = describe(
        network,
        name="m",
        network_name=name,
        class_names=(),
        image_size=8,
        family="x",
        normalisation=normalisation,
    )
    return network, card


def test_logits_are_those_of_the_grey_image(network: str) -> None:
    built, card = describe_as(network)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    grey = image.convert("L")
    images = [np.asarray(image), np.asarray(grey.convert("RGB"))]
    _, logits = sensing_of(built, card, torch.tensor(np.stack(images)))(
        torch.tensor(np.stack(images))
    )

    pixels = (torch.tensor(np.asarray(grey))[None, None] / 255 - 0.3) / 0.2
    with torch.no_grad():
        expected = built(pixels)[0]
    torch.testing.assert_close(logits[1], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=2e-2)  # PIL rounds
    assert card.extra["channels"] == "grey"


def test_a_network_that_converts_by_itself_is_left_alone(network: str) -> None:
    built, card = describe_as(
        network.replace(":Net", ":Own"), Normalisation((0.1, 0.2, 0.3), (1.0,) * 3)
    )

    assert not takes_grey(built)
    assert "channels" not in card.extra


def test_a_network_of_three_channels_gets_no_hook() -> None:
    network = accepting_rgb(nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 1, 1)))

    assert not any(part._forward_pre_hooks for part in network.modules())


def test_a_mean_per_channel_is_refused(network: str) -> None:
    with pytest.raises(InputError, match=r"one input channel, expected one number .* found 0\.1,"):
        describe_as(network, Normalisation((0.1, 0.2, 0.3), (0.2,) * 3))
