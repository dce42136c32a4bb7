"""Statistics of feature maps equal a slow loop with plain hooks, in every arrangement."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import extract
from small_data import write_npz_set
from torch import Tensor, nn

from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.reflection.extraction import Extraction
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.feature_maps import map_layers, map_statistics
from stages.sensing.map_layers import MapLayer
from stages.sensing.model import ARRANGEMENTS, Sensing, describe, pixels_of, sensing_of
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore

STAGES = (MapLayer("layer1", 16), MapLayer("layer2", 32), MapLayer("layer3", 64))


def network_of(name: str, seed: int = 0) -> tuple[nn.Module, ModelCard]:
    """A network with random weights and batch norm that is not the identity."""
    torch.manual_seed(seed)
    network = build_network(name, 10).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.bias)
    names = tuple(map(str, range(10)))
    card = describe(
        network, name="net", network_name=name, class_names=names, image_size=32, family="digits"
    )
    return network, card


def images_of(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)


def slow(network: nn.Module, card: ModelCard, layers: list[str], images: Tensor) -> np.ndarray:
    """One image at a time, one channel at a time, in float64, with plain hooks."""
    rows = []
    for image in images:
        seen: dict[str, np.ndarray] = {}
        handles = [
            network.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, name=name, seen=seen: seen.update({name: out.numpy().copy()})
            )
            for name in layers
        ]
        with torch.no_grad():
            network(pixels_of(card, image[None], torch.device("cpu")))
        for handle in handles:
            handle.remove()
        row: list[float] = []
        for name in layers:
            maps = seen[name][0].astype(np.float64)
            channels = list(maps.T) if maps.ndim == 2 else list(maps)
            row += [float(each.mean()) for each in channels]
            row += [float(each.std()) for each in channels]
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_statistics_are_those_of_a_slow_loop(arrangement) -> None:
    network, card = network_of("resnet18")
    layers = ["layer1", "layer2.0.conv1", "layer2.1.bn2", "layer3"]  # a stage, and parts that fuse
    images = images_of(3)
    sensing = Sensing(network, card, "fp32", arrangement, layers)

    features, logits = sensing(images)

    expected = slow(network, card, layers, images)
    np.testing.assert_allclose(sensing.statistics(), expected, rtol=1e-4, atol=1e-4)
    plain_features, plain_logits = Sensing(network, card, "fp32", arrangement)(images)
    torch.testing.assert_close(features, plain_features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, plain_logits, rtol=1e-4, atol=1e-4)


def test_other_layers_are_still_fused() -> None:
    network, card = network_of("resnet18")
    traced = Sensing(network, card, maps=["layer1", "layer2"]).network
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert not [name for name in called if isinstance(traced.get_submodule(name), nn.BatchNorm2d)]


def test_bf16_statistics_are_near_those_of_fp32() -> None:
    network, card = network_of("resnet18")
    sensing = Sensing(network, card, "bf16", maps=["layer1", "layer3"])
    sensing(images_of(2))
    found, expected = sensing.statistics(), slow(network, card, ["layer1", "layer3"], images_of(2))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("shape", "places"), [((2, 3, 4, 5), (2, 3)), ((2, 4, 4, 3), (1, 2)), ((2, 7, 3), (1,))]
)
def test_places_are_found_by_the_shape(shape: tuple[int, ...], places: tuple[int, ...]) -> None:
    maps = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.concatenate([maps.numpy().mean(places), maps.numpy().std(places)], axis=1)
    shifted = expected + np.array([100] * 3 + [0] * 3)  # a large mean costs no digits
    np.testing.assert_allclose(map_statistics(maps + 100), shifted, rtol=1e-4)


class Tokens(nn.Module):
    """A network of tokens: patches, an attention layer, and the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 8, 16, 16)
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.attend(self.cut(x).flatten(2).transpose(1, 2))
        logits: Tensor = self.linear(tokens.mean(dim=1))
        return logits


def test_statistics_of_a_transformer_are_over_tokens() -> None:
    torch.manual_seed(0)
    network = Tokens().eval()
    _, card = network_of("cnn2")
    card = replace(card, last_layer="linear", feature_dim=8)
    sensing = sensing_of(network, card, images_of(2), maps=["attend"])
    sensing(images_of(2))
    found = sensing.statistics()
    np.testing.assert_allclose(
        found, slow(network, card, ["attend"], images_of(2)), rtol=1e-4, atol=1e-5
    )


def test_auto_is_the_ends_of_the_stages() -> None:
    assert map_layers(network_of("resnet18")[1], ["auto"]) == STAGES


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere"], "statistics nowhere: this layer does not exist; expected some of conv1, bn1"),
        (["linear"], "statistics linear: this layer is not called once, or returns no feature map"),
        (["layer1", "layer1"], "names a layer twice"),
    ],
)
def test_other_layers_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        map_layers(network_of("resnet18")[1], names)


def test_auto_needs_stages() -> None:
    with pytest.raises(InputError, match="no stages; name some of its layers: conv1, conv2"):
        map_layers(network_of("cnn2")[1], ["auto"])


def test_statistics_are_an_array_of_the_set(store: FeatureStore, tmp_path: Path) -> None:
    network, card = network_of("resnet18")
    folder = write_npz_set(tmp_path / "digits-npz", 20, 23)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(save_weights(network))
    plain = Extraction(SourceSpec(str(folder), "test", ""), card, str(weights), shard_rows=7)

    found = extract(store, replace(plain, maps=STAGES[1:]))

    images = torch.from_numpy(plain.source.open().read(0, 23).images)
    expected = slow(network, card, ["layer2", "layer3"], images)
    np.testing.assert_allclose(found.read("statistics"), expected, rtol=1e-4, atol=1e-4)
    # The last stage is pooled into the features: their means are the same numbers.
    np.testing.assert_allclose(
        found.read("statistics")[:, 64:128], found.read("features"), rtol=1e-4, atol=1e-5
    )
    told = found.plan["stage"]["params"]["statistics"]
    assert told == [{"layer": "layer2", "channels": 32}, {"layer": "layer3", "channels": 64}]
    assert "statistics" not in plain.plan()["stage"]["params"]


def test_a_copy_for_another_thread_records_its_own() -> None:
    network, card = network_of("cnn2")
    for arrangement in ARRANGEMENTS[:2]:
        sensing = Sensing(network, card, "fp32", arrangement, ["conv1"])
        twin = copy.deepcopy(sensing)
        sensing(images_of(2))
        twin(images_of(3))
        assert (len(sensing.statistics()), len(twin.statistics())) == (2, 3)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_taps_are_not_layers_of_a_sequential_network(arrangement) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(64, 10)).eval()
    _, card = network_of("cnn2")
    card = replace(card, last_layer="4", feature_dim=64)
    sensing = Sensing(network, card, "fp32", arrangement, ["0", "2"])

    _, logits = sensing(images_of(3))

    expected = slow(network, card, ["0", "2"], images_of(3))
    np.testing.assert_allclose(sensing.statistics(), expected, rtol=1e-4, atol=1e-5)
    plain = network(pixels_of(card, images_of(3), torch.device("cpu")))
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)
