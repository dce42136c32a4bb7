"""Weights that libraries publish, from files in their caches; nothing is downloaded."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from conftest import Command
from safetensors.torch import save_file

from stages.errors import DataNotFoundError, InputError
from stages.sensing.models import models_of
from stages.sensing.pretrained import pretrained_file
from stages.sensing.torchvision_ops import define_missing_operators
from store.catalog import FeatureStore

define_missing_operators()
timm = pytest.importorskip("timm")


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches on a machine without a connection."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def on_the_hub(caches: Path, repository: str, name: str) -> Path:
    """Where the cache keeps a file of the main branch of a repository."""
    folder = caches / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("0" * 40) / name


def test_torchvisions_default_file_is_found_in_its_cache(caches: Path) -> None:
    file = caches / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"content")

    assert pretrained_file("torchvision:resnet50") == str(file)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_timms_file_is_found_in_the_cache_of_the_hub(caches: Path, name: str) -> None:
    file = on_the_hub(caches, "timm/resnet18.a1_in1k", name)
    file.write_bytes(b"content")

    assert pretrained_file("timm:resnet18") == str(file)


@pytest.mark.parametrize("network", ["torchvision:resnet18", "timm:resnet18"])
def test_without_cache_and_connection_the_ways_out_are_named(network: str) -> None:
    with pytest.raises(DataNotFoundError, match=r"not in the cache and cannot be .*--weights FILE"):
        pretrained_file(network)


@pytest.mark.parametrize("network", ["resnet18", "mine.py:net", "timm:mixer_s32_224"])
def test_networks_without_published_weights_need_a_file(network: str) -> None:
    with pytest.raises(InputError, match="no pretrained weights are published for it; give --wei"):
        pretrained_file(network)


def test_a_model_of_pretrained_weights_is_that_of_their_file(
    caches: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command
) -> None:
    """timm converts the file, where the first layer is a matrix, as in DeiT's first release."""
    torch.manual_seed(0)
    weights = timm.create_model("test_vit").state_dict()
    plain, theirs = (
        caches / "w.safetensors",
        on_the_hub(caches, "timm/test_vit.r160_in1k", "model.safetensors"),
    )
    save_file(weights, plain)
    first = {key: value.flatten(1) for key, value in weights.items() if "patch_embed.proj.w" in key}
    save_file({**weights, **first}, theirs)
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    intro_pipe("import-model --network timm:test_vit --weights pretrained --name a")
    intro_pipe(f"import-model --network timm:test_vit --weights {plain} --name b")

    one, other = (card.to_dict() | {"name": ""} for card in models_of(store))
    assert one == other
