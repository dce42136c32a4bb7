"""timm's networks: names, settings, and images prepared exactly as timm prepares them."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from PIL import Image

from stages.errors import InputError
from stages.sensing.build import build_network, located, source_hash
from stages.sensing.card import Normalisation
from stages.sensing.models import model_name, models_of
from stages.sensing.timm_networks import timm_preprocessing
from stages.sensing.torchvision_ops import define_missing_operators
from stages.sensing.trust import is_code
from store.catalog import FeatureStore

define_missing_operators()
timm = pytest.importorskip("timm")

SIZES = [(150, 225), (90, 71), (300, 301), (40, 64)]
"""Heights and widths of photographs; the last one is enlarged."""


def photograph(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("network", "image_size"),
    [
        ("timm:resnet18", None),  # bicubic, crop_pct 0.95
        ("timm:resnet18.tv_in1k", 96),  # bilinear, 0.875
        ("timm:beit_base_patch16_224", 64),  # mean and std of 0.5, 0.9
        ("timm:vit_base_patch16_siglip_512", 64),  # crop_mode squash
        ("timm:vit_tiny_patch16_224,img_size=96", None),
    ],
)
def test_pixels_equal_those_of_timm(network: str, image_size: int | None) -> None:
    resizing, normalisation = timm_preprocessing(network, image_size)
    config = timm.get_pretrained_cfg(network[5:].partition(",")[0]).to_dict()
    size = 96 if "img_size" in network else image_size
    options = timm.data.resolve_data_config({"img_size": size}, pretrained_cfg=config)
    theirs = timm.data.create_transform(**options, is_training=False, normalize=False)

    for each in SIZES:
        image = photograph(*each)
        ours = torch.from_numpy(resizing.pixels(image).copy()).permute(2, 0, 1)
        assert torch.equal(ours, theirs(image))
    assert normalisation == Normalisation(options["mean"], options["std"])


def test_extracted_logits_equal_those_of_timm(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command
) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=2).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    images = [photograph(*size) for size in SIZES]
    for number, image in enumerate(images):
        folder = tmp_path / "photos" / "test" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    words = f"--network timm:test_resnet --weights {tmp_path / 'w.pt'}"
    _, said = intro_pipe(f"extract --executor local --dataset {tmp_path / 'photos'} {words}")

    options = timm.data.resolve_model_data_config(network)
    prepare = timm.data.create_transform(**options, is_training=False)
    with torch.no_grad():
        expected = network(torch.stack([prepare(images[row]) for row in (0, 2, 1, 3)]))
    found = store.resolve("photos-test@test_resnet").array("logits").compute()
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)
    assert "images are prepared as in timm's configuration: bilinear-antialias shorter" in said
    (card,) = models_of(store)
    assert card.mean == options["mean"]


def test_settings_are_part_of_the_name() -> None:
    network = "timm:test_vit,in_chans=1,img_size=32"

    assert located(network) == "timm:test_vit,img_size=32,in_chans=1"
    assert model_name("timm:resnet18.a1_in1k,in_chans=1") == "resnet18.a1_in1k"
    assert build_network(network, 3).patch_embed.proj.weight.shape[1] == 1
    assert build_network("timm:test_vit,img_size=32", None).num_classes == 1000


def test_its_code_is_that_of_an_installed_library() -> None:
    assert not is_code("timm:resnet18")
    assert source_hash("timm:resnet18") is None


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        ("timm:resnet19", "unknown timm network 'resnet19': did you mean resnet18"),
        ("timm:resnet18.a9_in1k", "unknown timm network 'resnet18.a9_in1k': did you mean resnet18"),
        ("timm:hf-hub:someone/net", "unknown timm network 'hf-hub:someone/net'"),
        ("timm:../net", "unknown timm network"),
        ("timm:resnet18,checkpoint_path=w", "unknown setting 'checkpoint_path'; known: img_size"),
        ("timm:resnet18,in_chans=one", "in_chans is 'one', expected a number"),
        ("timm:test_vit,global_pool=a/b", "global_pool is 'a/b', expected a word"),
        ("timm:resnet18,img_size=64", "timm cannot build it (TypeError: ResNet"),
    ],
)
def test_what_timm_does_not_have_is_refused(network: str, problem: str) -> None:
    with pytest.raises(InputError, match=re.escape(problem)):
        build_network(network, 3)


def test_images_that_timm_pads_are_refused() -> None:
    with pytest.raises(InputError, match=r"for it by 'border'; expected squares, by 'center' or"):
        timm_preprocessing(next(name for name in padded()))


def padded() -> list[str]:
    configs = {name: timm.get_pretrained_cfg(name) for name in timm.list_pretrained()}
    return [f"timm:{name}" for name, each in configs.items() if each.crop_mode == "border"]


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs timm.*pip install 'intro-pipe\[timm\]'"):
        build_network("timm:resnet18", 3)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_users_file_may_import_the_libraries(tmp_path: Path, library: str) -> None:
    (tmp_path / "mine.py").write_text(f"import {library}\nfrom torch.nn import Identity as net\n")
    build_network(f"{tmp_path / 'mine.py'}:net")
