"""Batch norm with the statistics of groups of rows, compared with plain torch, group by group."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import extract, retry_failed
from small_data import write_image_folder
from torch import Tensor, nn

from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.introspection.preparation import check_alike
from stages.reflection.extraction import Extraction, check_network
from stages.reflection.footprint import Footprint
from stages.reflection.recheck import differences_now
from stages.sensing.batch_statistics import (
    at_once,
    check_groups,
    fastest,
    in_turn,
    use_batch_statistics,
)
from stages.sensing.card import ModelCard
from stages.sensing.model import describe
from stages.sensing.trust import trust
from stages.sensing.weights import save_weights, weights_hash
from store.catalog import FeatureStore
from store.featureset import FeatureSet

NETWORK = """
import torch
from torch import nn

def net(n_classes=3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)]
    layers += [nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_classes))
"""
BROKEN, N_ROWS = 5, 11


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    write_image_folder(folder, N_ROWS)
    (folder.parent / "mine.py").write_text(NETWORK)
    return folder


@pytest.fixture(scope="module")
def network(photos: Path) -> nn.Module:
    """A network with running statistics that are not those of the images."""
    scope: dict[str, Callable[[], nn.Module]] = {}
    exec(NETWORK, scope)
    network = scope["net"]().eval()
    for norm in (part for part in network if isinstance(part, nn.BatchNorm2d)):
        norm.running_mean = torch.full((norm.num_features,), 0.3)
        nn.init.uniform_(norm.weight, 0.5, 2.0)
    return network


@pytest.fixture(scope="module")
def card(photos: Path, network: nn.Module) -> ModelCard:
    file = photos.parent / "mine.safetensors"
    file.write_bytes(save_weights(network))
    code = f"{photos.parent}/mine.py:net"
    trust([code])
    names = ("one", "two", "zero")
    card = describe(
        network, name="net", network_name=code, class_names=names, image_size=32, family="photos"
    )
    return replace(card, M=1.0)


def stage_of(photos: Path, card: ModelCard, n_rows: int | None, **changes: object) -> Extraction:
    weights = str(photos.parent / "mine.safetensors")
    own = replace(card, batch_statistics=n_rows)
    stage = Extraction(SourceSpec(str(photos), "test", ""), own, weights)
    return replace(stage, **changes)  # type: ignore[arg-type]  # any field


def logits_in_training(network: nn.Module, card: ModelCard, images: Tensor) -> Tensor:
    """Logits of one batch by torch, batch norm in training mode and dropout in eval mode."""
    network = copy.deepcopy(network).eval()
    for part in network.modules():
        part.training = isinstance(part, nn.BatchNorm2d)
    mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    with torch.no_grad():
        found: Tensor = network((images.permute(0, 3, 1, 2) / 255 - mean) / std)
    return found


@pytest.mark.parametrize("n_rows", [1, 4, 128])
def test_rows_are_those_of_training_mode_group_by_group(
    store: FeatureStore, photos: Path, network: nn.Module, card: ModelCard, n_rows: int
) -> None:
    before, weights = weights_hash(network), str(photos.parent / "mine.safetensors")
    images = torch.from_numpy(SourceSpec(str(photos), "test", "").open().read(0, N_ROWS).images)
    groups = [logits_in_training(network, card, group) for group in images.split(n_rows)]
    found = extract(store, stage_of(photos, card, n_rows))
    np.testing.assert_allclose(found.read("logits"), torch.cat(groups), atol=2e-5)
    plain = extract(store, stage_of(photos, card, None))
    assert np.abs(found.read("logits") - plain.read("logits")).max() > 0.01
    assert plain.plan["inputs"]["model"].keys() == card.to_dict().keys()
    assert weights_hash(network) == before
    assert list(differences_now(found, SourceSpec(str(photos), "test", "").open(), weights)) == []


@pytest.mark.parametrize(("shard_rows", "batch_rows"), [(4, 4), (9, 1), (8, 64), (1, 9)])
def test_rows_do_not_depend_on_shards_and_batches(
    store: FeatureStore, photos: Path, card: ModelCard, shard_rows: int, batch_rows: int
) -> None:
    whole = extract(store, stage_of(photos, card, 4))
    found = extract(store, stage_of(photos, card, 4, shard_rows=shard_rows, batch_rows=batch_rows))
    assert found.shard_set.chunk_rows in (4, 8)
    np.testing.assert_allclose(found.read("features"), whole.read("features"), atol=1e-5)


def test_bf16_groups_are_close(store: FeatureStore, photos: Path, card: ModelCard) -> None:
    exact, rounded = (
        extract(store, stage_of(photos, card, 4, precision=each)).read("logits")
        for each in ("fp32", "bf16")
    )
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


def test_an_unreadable_image_is_in_no_statistics_and_a_retry_recomputes_its_group(
    store: FeatureStore, photos: Path, network: nn.Module, card: ModelCard, tmp_path: Path
) -> None:
    stage = stage_of(photos, card, 4, shard_rows=8, batch_rows=8)
    images = torch.from_numpy(stage.source.open().read(0, N_ROWS).images)
    undisturbed = extract(FeatureStore(str(tmp_path / "other")).prepare(), stage)
    file = sorted((photos / "test").rglob("*.png"))[BROKEN]
    whole = file.read_bytes()
    file.write_bytes(bytes(len(whole)))
    damaged = extract(store, stage)
    file.write_bytes(whole)
    rows = [4, 6, 7]
    expected = logits_in_training(network, card, images[rows])
    np.testing.assert_allclose(damaged.read("logits")[rows], expected, atol=2e-5)
    assert np.isnan(damaged.read("logits")[BROKEN]).all()
    others = [row for row in range(N_ROWS) if row not in (*rows, BROKEN)]
    same = undisturbed.read("logits")
    np.testing.assert_allclose(damaged.read("logits")[others], same[others], atol=1e-6)
    found = retry_failed(store, stage)
    np.testing.assert_allclose(found.read("logits"), same, atol=1e-6)
    assert found.shard_set.receipt(found.shard_set.shards[0]).facts["retried"].keys() == {"5"}


def test_features_of_other_statistics_are_not_mixed(
    store: FeatureStore, photos: Path, card: ModelCard
) -> None:
    sets: list[FeatureSet] = [extract(store, stage_of(photos, card, n)) for n in (None, 1, 4)]
    assert len({each.name for each in sets}) == 3
    with pytest.raises(InputError, match=r"batch_statistics: .*running"):
        check_alike(sets[0], sets[1])
    with pytest.raises(InputError, match="batch_statistics"):
        check_alike(sets[1], sets[2])


def test_a_network_is_checked_with_and_without_the_statistics(
    photos: Path, card: ModelCard
) -> None:
    check_network(stage_of(photos, card, 2))


def test_memory_for_less_than_a_group_is_refused() -> None:
    footprint = Footprint(fixed=0, shard=0, image=10, best_rows=32)
    assert footprint.batch_rows(700, None, 8) == 32
    assert footprint.batch_rows(170, None, 8) == 16
    assert footprint.batch_rows(1000, None, 50) == 50
    assert footprint.batch_rows(490, None, 50) == 0
    assert "with 50 images at a time" in footprint.refusal("x", 490, 50)


class Flat(nn.Module):
    """Batch norm of vectors, and optionally a branch that depends on the values."""

    def __init__(self, *, branches: bool) -> None:
        super().__init__()
        self.norm, self.branches = nn.BatchNorm1d(12), branches

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.norm(pixels.flatten(1))
        if self.branches and found.sum() > 1e9:
            found = found + 1
        return found, found.square()


@pytest.mark.parametrize(("branches", "way"), [(False, at_once), (True, in_turn)])
def test_groups_are_computed_at_once_where_torch_can(branches: bool, way: object) -> None:
    torch.manual_seed(0)
    network = Flat(branches=branches).eval()
    use_batch_statistics(network, "flat")
    pixels = torch.randn(11, 3, 2, 2)
    with torch.no_grad():
        found = fastest(network, pixels[:3])
        assert found is way
        expected = [network(group) for group in pixels.split(4)]
        for ours, theirs in zip(
            found(network, pixels, 4), zip(*expected, strict=True), strict=True
        ):
            torch.testing.assert_close(ours, torch.cat(theirs))


def test_networks_and_groups_without_statistics_are_refused() -> None:
    with pytest.raises(InputError, match=re.escape("network m: has no batch norm, expected some")):
        use_batch_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), "m")
    network = Flat(branches=False).eval()
    use_batch_statistics(network, "flat")
    with pytest.raises(InputError, match=r"cannot compute a group of 1 .*--batch-statistics 2"):
        check_groups(network, torch.randn(4, 3, 2, 2), 1, "flat")
