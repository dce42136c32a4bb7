"""Photographs of any size through networks from elsewhere: pixels and logits as in torchvision."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Command
from numpy.typing import NDArray
from PIL import Image

from stages.sensing.build import build_network
from stages.sensing.card import CIFAR10_MEAN, CIFAR10_STD
from stages.sensing.models import models_of
from stages.sensing.torchvision_ops import import_torchvision
from store.catalog import FeatureStore

SIZES = [(300, 451), (256, 256), (240, 260), (500, 180), (64, 48)]
"""Of the photographs; the smallest one is enlarged."""

Run = Callable[..., str]


@pytest.fixture
def run(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command
) -> Run:
    """Runs a command beside photographs in two layouts, and weights of a ResNet-18."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        for folder in ("classes/test/a", "loose"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            small.resize((width, height)).save(tmp_path / folder / f"{number}.jpg")
    torch.manual_seed(0)
    torch.save(build_network("torchvision:resnet18", 1).state_dict(), tmp_path / "one.pt")
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    monkeypatch.setenv("INTRO_PIPE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def command(words: str, code: int = 0) -> str:
        out, err = intro_pipe(words, code)
        return out if code == 0 else err

    return command


@pytest.fixture
def is_published(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision have published the weights, with a preset of its own for them."""
    models = import_torchvision().models
    (theirs,) = (each for each in models.ResNet18_Weights if "V1" in each.name)
    digest = hashlib.sha256((tmp_path / "one.pt").read_bytes()).hexdigest()
    ours = SimpleNamespace(
        url=f"https://host/resnet18-{digest[:8]}.pth", meta={}, transforms=theirs.transforms
    )
    monkeypatch.setattr(models, "get_model_weights", lambda _: [ours])


def logits_of(store: FeatureStore, name: str) -> NDArray[np.float32]:
    found: NDArray[np.float32] = store.resolve(name).array("logits").compute()
    return found


def plain_logits(tmp_path: Path, prepare: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
    """The logits of plain PyTorch for the photographs, in the order of their names."""
    network = build_network("torchvision:resnet18", 1)
    network.load_state_dict(torch.load(tmp_path / "one.pt", weights_only=True))
    files = sorted((tmp_path / "loose").iterdir())
    pixels = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        logits: torch.Tensor = network.eval()(pixels)
    return logits


EXTRACT = "extract --executor local --network torchvision:resnet18 --weights one.pt"


@pytest.mark.usefixtures("is_published")
def test_published_weights_get_their_published_preprocessing_in_every_layout(
    run: Run, store: FeatureStore, tmp_path: Path
) -> None:
    preset = import_torchvision().models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    expected = plain_logits(tmp_path, preset).numpy()
    run(f"{EXTRACT} --dataset classes")
    run("extract --executor local --dataset loose --out-of-distribution --model resnet18")

    for name in ("classes-test@resnet18", "loose-test@resnet18"):
        np.testing.assert_allclose(logits_of(store, name), expected, rtol=0, atol=1e-4)
        rule = store.resolve(name).plan["inputs"]["source"]["resize"]
        assert rule == "bilinear-antialias shorter side ->256, centre 224x224"


@pytest.mark.usefixtures("is_published")
def test_the_published_normalisation_is_not_called_that_of_cifar(
    store: FeatureStore, intro_pipe: Command
) -> None:
    _, said = intro_pipe(f"{EXTRACT} --dataset classes --image-size 64")

    assert "CIFAR" not in said
    (card,) = models_of(store)
    assert card.mean == (0.485, 0.456, 0.406)


def test_options_set_the_resize_the_filter_and_the_crop(
    run: Run, store: FeatureStore, tmp_path: Path
) -> None:
    import_torchvision()
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(80, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )
    how = "--mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 --resize 80 --interpolation bicubic"
    words = f"{EXTRACT} --dataset classes --image-size 64 {how}"
    run(words)
    again = json.loads(run(f"{words} --json"))

    found = logits_of(store, "classes-test@resnet18")
    np.testing.assert_allclose(found, plain_logits(tmp_path, prepare).numpy(), rtol=0, atol=1e-4)
    assert again["n_computed"] == 0


def test_a_resize_that_nobody_chose_is_mentioned(run: Run, intro_pipe: Command) -> None:
    _, said = intro_pipe(f"{EXTRACT} --dataset classes --dry-run")

    rule = "bilinear-antialias shorter side ->32, centre 32x32"
    assert f"images are prepared by {rule}; --resize and --image-size set another way" in said
    _, said = intro_pipe(f"{EXTRACT} --dataset classes --resize 40 --dry-run")
    assert "another way" not in said


def test_photographs_are_cropped_in_every_layout_by_default(
    run: Run, store: FeatureStore, tmp_path: Path
) -> None:
    import_torchvision()
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(32),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD),
        ]
    )
    rows = [f"loose/{number}.jpg,a" for number in range(len(SIZES))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    run(f"{EXTRACT} --dataset classes")
    for dataset in ("loose", "table.csv"):
        run(f"extract --executor local --dataset {dataset} --model resnet18")

    expected = plain_logits(tmp_path, prepare).numpy()
    for name in ("classes", "loose", "table"):
        found = logits_of(store, f"{name}-test@resnet18")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_stored_model_keeps_its_resize_and_refuses_another(run: Run) -> None:
    run(f"{EXTRACT} --dataset classes --image-size 64 --resize 80x70")
    run(f"{EXTRACT} --dataset classes")

    assert "resizing" in run(f"{EXTRACT} --dataset classes --resize 90", 2)
    assert "image_size" in run(f"{EXTRACT} --dataset classes --image-size 60", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--image-size 64 --resize 60", "crop 64x64: expected at most the resized image, which is"),
        ("--resize 0", "--resize: expected"),
        ("--resize 1x2x3", "--resize: expected"),
        ("--resize wide", "--resize: expected"),
        ("--interpolation cubic", "--interpolation: expected"),
    ],
)
def test_a_resize_that_cannot_be_is_one_line(run: Run, words: str, message: str) -> None:
    assert message in run(f"{EXTRACT} --dataset classes {words}", 2)


def test_predict_prepares_files_as_the_network_demands(
    run: Run, store: FeatureStore, tmp_path: Path
) -> None:
    """The head is a temperature; f is right on three of the five images."""
    for number, class_name in enumerate("aaabb"):
        folder = tmp_path / "two" / "test" / class_name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes((tmp_path / f"loose/{number}.jpg").read_bytes())
    torch.manual_seed(0)
    weights = build_network("torchvision:resnet18", 2).state_dict()
    weights["fc.bias"] = torch.tensor([2.0, -2.0])
    torch.save(weights, tmp_path / "two.pt")
    words = "--network torchvision:resnet18 --weights two.pt --image-size 64 --resize 80"
    run(f"extract --executor local --dataset two {words}")
    run("fit-temperature --features two-test@resnet18 --name t")
    files = " ".join(f"loose/{number}.jpg" for number in range(len(SIZES)))
    rows = json.loads(run(f"predict --head t {files} --json"))

    logits = logits_of(store, "two-test@resnet18").astype(np.float64)
    confidences = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)
    found = [row["f_confidence"] for row in rows]
    np.testing.assert_allclose(found, confidences, atol=1e-5)
