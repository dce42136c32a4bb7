"""Image classifiers of transformers, in folders that the tests write; nothing is downloaded."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from PIL import Image

from stages.errors import DataNotFoundError, InputError
from stages.sensing.build import build_network, located
from stages.sensing.hf_networks import hf_preprocessing
from stages.sensing.models import model_name, models_of
from stages.sensing.torchvision_ops import define_missing_operators
from store.catalog import FeatureStore

define_missing_operators()


def test_without_transformers_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers.*pip install 'intro-pipe\[transf"):
        build_network(f"hf:{tmp_path}")


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"the folder has no config\.json; save the model"):
        build_network(f"hf:{tmp_path}")


def test_a_folder_gets_its_full_path_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vit").mkdir()
    monkeypatch.chdir(tmp_path)

    assert located("hf:vit") == f"hf:{tmp_path / 'vit'}"
    assert model_name("hf:./vit/") == "vit"
    assert located("hf:owner/vit") == "hf:owner/vit"


PLAIN: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}


def folder_of(place: Path, processor: dict[str, Any], names: dict[int, str]) -> Any:
    """A tiny vision transformer with random weights, saved; its module."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        id2label=names,
    )
    torch.manual_seed(0)
    network = transformers.ViTForImageClassification(config).eval()
    torch.nn.init.normal_(network.classifier.weight)
    transformers.logging.disable_progress_bar()
    network.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps(processor))
    return network


def test_logits_and_classes_are_those_of_transformers(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command
) -> None:
    network = folder_of(tmp_path / "vit", PLAIN, {0: "cat", 1: "dog"})
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (50, side, 3), dtype=np.uint8)) for side in (40, 61)
    ]
    for name, image in zip(("cat", "dog"), images, strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        image.save(tmp_path / "photos" / name / "0.png")
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    monkeypatch.chdir(tmp_path)
    intro_pipe("import-model --network hf:vit --weights pretrained")
    intro_pipe("extract --dataset photos --split all --model vit --executor local")

    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(tmp_path / "vit", backend="pil")
    with torch.no_grad():
        expected = network(**processor(images=images, return_tensors="pt")).logits
    (found,) = store.feature_sets()
    np.testing.assert_allclose(found.array("logits").compute(), expected, rtol=0, atol=1e-4)
    (card,) = models_of(store)
    assert card.class_names == ("cat", "dog")

    config = tmp_path / "vit" / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    _, said = intro_pipe("extract --dataset photos --split all --model vit --limit 1", 2)
    assert "was changed after the model was imported" in said


@pytest.mark.parametrize(
    ("processor", "rule"),
    [
        (PLAIN, "bicubic-antialias ->32x32 (stretched)"),
        (
            {
                "image_processor_type": "ConvNextImageProcessor",
                "size": {"shortest_edge": 96},
                "crop_pct": 0.75,
            },
            "bicubic-antialias shorter side ->128, centre 96x96",
        ),
        (
            {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}},
            "bicubic-antialias shorter side ->256, centre 224x224",
        ),
        (
            {"image_processor_type": "DeiTImageProcessor"},
            "bicubic-antialias ->256x256 (stretched), centre 224x224",
        ),
        (
            {"feature_extractor_type": "ViTFeatureExtractor", "size": 64, "do_normalize": False},
            "bilinear-antialias ->64x64 (stretched)",
        ),
    ],
)
def test_images_are_prepared_as_the_processor_does(
    tmp_path: Path, processor: dict[str, Any], rule: str
) -> None:
    folder_of(tmp_path, processor, {0: "cat", 1: "dog"})

    resizing, _ = hf_preprocessing(f"hf:{tmp_path}")
    assert resizing.rule(None) == rule


@pytest.mark.parametrize(
    "processor",
    [
        {"image_processor_type": "MobileViTImageProcessor"},  # BGR
        {"image_processor_type": "PerceiverImageProcessor"},  # crops before it resizes
        {**PLAIN, "rescale_factor": 1.0},
    ],
)
def test_other_preprocessing_is_refused(tmp_path: Path, processor: dict[str, Any]) -> None:
    folder_of(tmp_path, processor, {0: "cat", 1: "dog"})
    with pytest.raises(InputError, match="prepares images in a way that is not supported"):
        hf_preprocessing(f"hf:{tmp_path}")


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    folder_of(tmp_path, PLAIN, {0: "cat", 1: "dog"})
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name, classes in (
        ("config.json", ("AutoConfig", "AutoModelForImageClassification")),
        ("preprocessor_config.json", ("AutoImageProcessor",)),
    ):
        content = json.loads((tmp_path / name).read_text())
        content["auto_map"] = dict.fromkeys(classes, "evil.Evil")
        (tmp_path / name).write_text(json.dumps({**content, "model_type": "evil"}))

    with pytest.raises(InputError, match=r"transformers cannot use its config\.json"):
        build_network(f"hf:{tmp_path}")
    hf_preprocessing(f"hf:{tmp_path}")
    assert not (tmp_path / "ran").exists()
