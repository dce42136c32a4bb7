"""torchvision's networks with weights in the forms in which torchvision publishes them."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.sensing.build import build_network, located
from stages.sensing.checkpoint import Checkpoint, read_checkpoint
from stages.sensing.models import model_name
from stages.sensing.published import published, published_files
from stages.sensing.torchvision_networks import with_settings_of
from stages.sensing.torchvision_ops import import_torchvision
from stages.sensing.weights import load_checkpoint, save_weights

models = import_torchvision().models

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]

OLD_DENSENET = (r"(denselayer\d+\.(?:norm|relu|conv))([12]\.)", r"\1.\2")
OLD_MLP_1 = (r"\.mlp\.0\.", ".mlp.linear_1.")
OLD_MLP_2 = (r"\.mlp\.3\.", ".mlp.linear_2.")


def renamed(weights: dict[str, Tensor], *names: tuple[str, str]) -> dict[str, Tensor]:
    """Under the names that published files have: https://github.com/pytorch/vision."""
    found = {}
    for name, value in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def plain(name: str, n_classes: int = 3, **settings: Any) -> nn.Module:
    """torchvision's own network, as its function builds it."""
    if name in ("googlenet", "inception_v3"):
        settings["init_weights"] = False
    network: nn.Module = models.get_model(name, weights=None, num_classes=n_classes, **settings)
    with torch.no_grad():  # batch norms that do something
        for key, value in network.state_dict().items():
            if key.endswith(("running_mean", "running_var")):
                value.uniform_(0.5, 1.5)
    return network.eval()


def loaded(network: str, path: Path) -> tuple[str, nn.Module, tuple[str, ...]]:
    """The network as `extract --network` loads it from a file."""
    checkpoint = read_checkpoint(path)
    network, notes = with_settings_of(network, checkpoint)
    module = build_network(network, 3)
    notes += load_checkpoint(module, checkpoint)
    return located(network), module.eval(), notes


def pixels(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "size", "settings", "form", "taken"),
    [
        ("densenet121", 32, {}, [OLD_DENSENET], ""),
        ("mnasnet0_5", 32, {}, [], ""),
        ("squeezenet1_1", 32, {}, [], ""),
        ("shufflenet_v2_x0_5", 32, {}, [], ""),
        ("googlenet", 32, {"aux_logits": False}, [], ",aux_logits=false"),
    ],
)
def test_published_form_gives_torchvisions_logits(
    tmp_path: Path,
    name: str,
    size: int,
    settings: dict[str, Any],
    form: list[tuple[str, str]],
    taken: str,
) -> None:
    theirs = plain(name, **settings)
    torch.save(renamed(dict(theirs.state_dict()), *form), tmp_path / "w.pth")
    given = ",transform_input=false" if name == "googlenet" else ""
    network, ours, _ = loaded(f"torchvision:{name}{given}", tmp_path / "w.pth")
    assert network == f"torchvision:{name}{taken}"
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels(size)), theirs(pixels(size)), rtol=0, atol=0)


def test_older_names_of_a_vision_transformer_give_its_logits() -> None:
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16, "num_classes": 3}
    theirs, ours = (
        models.VisionTransformer(image_size=32, patch_size=16, **sizes).eval() for _ in range(2)
    )
    nn.init.normal_(theirs.heads.head.weight)
    load_checkpoint(ours, Checkpoint("w", renamed(theirs.state_dict(), OLD_MLP_1, OLD_MLP_2)))
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels(32)), theirs(pixels(32)), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 75), ("googlenet", 32)])
def test_published_file_is_known_by_its_hash_and_changes_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    made = plain(name, n_classes=1000).state_dict()
    (weights,) = models.get_model_weights(name)
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: made)
    theirs = models.get_model(name, weights=weights).eval()
    path = tmp_path / "w.pth"
    torch.save(made, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    mine = SimpleNamespace(
        url=f"https://host/{name}-{digest[:8]}.pth",
        meta=weights.meta,
        transforms=weights.transforms,
    )
    monkeypatch.setattr(models, "get_model_weights", lambda _: [mine])
    network, ours, notes = loaded_as_published(name, path)
    assert network == f"torchvision:{name},transform_input=true"
    assert network in " ".join(notes)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels(size)), theirs(pixels(size)), rtol=0, atol=0)


def loaded_as_published(name: str, path: Path) -> tuple[str, nn.Module, tuple[str, ...]]:
    checkpoint = read_checkpoint(path)
    is_published = published(f"torchvision:{name}", path) is not None
    network, notes = with_settings_of(f"torchvision:{name}", checkpoint, is_published=is_published)
    module = build_network(network)
    load_checkpoint(module, checkpoint)
    return network, module.eval(), notes


def test_hashes_are_those_in_torchvisions_file_names() -> None:
    assert list(published_files("torchvision:inception_v3")) == ["0cc3c7bd"]
    assert list(published_files("torchvision:googlenet,aux_logits=false")) == ["1378be20"]


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_an_input_setting_that_no_file_records_must_be_given(tmp_path: Path, name: str) -> None:
    torch.save({"aux1.x": torch.ones(1)}, tmp_path / "w.pth")
    checkpoint = read_checkpoint(tmp_path / "w.pth")
    network = f"torchvision:{name}"
    with pytest.raises(InputError, match=rf"give {network},transform_input=true for published"):
        with_settings_of(network, checkpoint)
    with_it, without = (
        with_settings_of(f"{network},transform_input={each}", checkpoint)
        for each in ("true", "false")
    )
    assert with_it == (f"{network},transform_input=true", ())
    assert without == (network, ())


@pytest.mark.parametrize(
    ("rows", "patch", "expected"),
    [(197, 16, ""), (577, 16, ",image_size=384"), (50, 32, ""), (1370, 14, ",image_size=518"),
     (1025, 16, ",image_size=512"), (5, 16, ",image_size=32")],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module."])
def test_image_size_of_a_vision_transformer_is_read_from_its_weights(
    rows: int, patch: int, expected: str, prefix: str
) -> None:
    shapes = {"encoder.pos_embedding": (1, rows, 8), "conv_proj.weight": (8, 3, patch, patch)}
    weights = {prefix + name: torch.empty(shape) for name, shape in shapes.items()}
    found, _ = with_settings_of("torchvision:vit_b_16", Checkpoint("w", weights))
    assert found == f"torchvision:vit_b_16{expected}"


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize(
    "name",
    ["alexnet", "convnext_tiny", "efficientnet_b0", "efficientnet_v2_s", "maxvit_t",
     "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
     "swin_t", "swin_v2_t", "vgg11_bn", "wide_resnet50_2", "mnasnet1_3", "densenet161"],
)  # fmt: skip
def test_every_family_loads_what_it_saves(name: str) -> None:
    """On no device: names, shapes and hooks of loading are all that is looked at."""
    device = "cpu" if name.startswith("regnet") else "meta"  # its widths are made of tensors
    with torch.device(device):
        network = build_network(f"torchvision:{name}", 3)
    old = renamed(dict(network.state_dict()), OLD_DENSENET)
    weights = {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in old.items()
        if not key.endswith("num_batches_tracked")
    }
    with torch.device("cpu"):
        load_checkpoint(network, Checkpoint("w", weights))


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        ("torchvision:inception_v3,transform=true", "unknown setting 'transform'; known: aux_log"),
        ("torchvision:inception_v3,transform_input", "transform_input is '', expected true or fa"),
        ("torchvision:inception_v3,aux_logits=1", "aux_logits is '1', expected true or false"),
        ("torchvision:vit_b_16,image_size=0", "image_size is '0', expected a num"),
        ("torchvision:vit_b_16,image_size=1e9", "image_size is '1e9', expected a n"),
        ("torchvision:resnet18,image_size=32", "unknown setting 'image_size'; known: none"),
        ("torchvision:resnet18,", "unknown setting ''"),
        ("torchvision:inceptionv3", "did you mean inception_v3"),
    ],
)
def test_unknown_setting_is_refused(network: str, problem: str) -> None:
    with pytest.raises(InputError, match=re.escape(problem)):
        build_network(network, 3)


def test_name_of_a_network_with_settings_is_one_name() -> None:
    given = "torchvision:googlenet,transform_input=TRUE,aux_logits=false"
    assert located(given) == "torchvision:googlenet,aux_logits=false,transform_input=true"
    assert located("torchvision:googlenet,aux_logits=true") == "torchvision:googlenet"
    assert model_name(given) == "googlenet"


def test_version_of_the_state_dict_is_not_needed(tmp_path: Path) -> None:
    """safetensors stores no versions, and MNASNet refuses to load without them."""
    theirs = plain("mnasnet0_5")
    (tmp_path / "w.safetensors").write_bytes(save_weights(theirs))
    _, ours, _ = loaded("torchvision:mnasnet0_5", tmp_path / "w.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels(32)), theirs(pixels(32)), rtol=0, atol=0)
