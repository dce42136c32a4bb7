"""Training that starts from pretrained weights: of all layers, or of the last one."""

import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Refusal
from PIL import Image
from stripes import Stripes
from test_stages_sensing_sensing_training import silent, trained
from torch.nn import functional

from pipeline.workspace import Workspace
from stages.errors import InputError
from stages.sensing.augmentation import epoch_draws
from stages.sensing.build import build_network
from stages.sensing.card import Normalisation
from stages.sensing.initial_weights import initial_weights
from stages.sensing.labelled import read_labelled
from stages.sensing.model import pixels_of
from stages.sensing.sensing_training import SensingTraining
from stages.sensing.start import RANDOM, Start
from stages.sensing.torchvision_ops import import_torchvision
from stages.sensing.train_params import TrainParams, learning_rate
from stages.sensing.train_sensing import TrainSensing
from store.catalog import FeatureStore

GREY = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
PARAMS = TrainParams(network="resnet18", epochs=2, batch=16, lr=0.05, augmentation="none")
LAST = dataclasses.replace(PARAMS, train="last-layer")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network of five classes, in the form of a training script."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "five.pt"
    torch.save({"state_dict": build_network("resnet18", 5).state_dict(), "epoch": 9}, path)
    return path


def state_of(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def training(path: Path, params: TrainParams, n_rows: int = 40) -> SensingTraining:
    weights = initial_weights(params.network, str(path), n_classes=2, image_size=16)
    start = Start(weights, GREY)
    return SensingTraining("m", params, Stripes(n_rows=n_rows), initial=start)


def test_a_training_starts_from_the_weights_with_a_new_classifier(five: Path) -> None:
    stage = training(five, PARAMS)
    found, theirs = stage.start().network.state_dict(), state_of(five)

    assert all(torch.equal(found[name], theirs[name]) for name in found if "linear" not in name)
    assert tuple(found["linear.weight"].shape) == (2, 64)
    assert stage.initial.notes[0].endswith(
        "trained for 5 classes; the last layer 'linear' is newly initialised, for 2"
    )


def test_a_classifier_of_as_many_classes_is_kept(five: Path, tmp_path: Path) -> None:
    stage = training(five, PARAMS)
    state, _ = trained(stage, 1)
    torch.save(state.network.state_dict(), tmp_path / "two.pt")

    again = training(tmp_path / "two.pt", PARAMS)
    found, before = again.start().network.state_dict(), state.network.state_dict()
    assert all(torch.equal(found[name], before[name]) for name in found)
    assert again.initial.weights is not None
    assert again.initial.weights.notes == ()


def test_weights_without_a_classifier_are_accepted(five: Path, tmp_path: Path) -> None:
    backbone = {name: x for name, x in state_of(five).items() if "linear" not in name}
    torch.save({f"module.{name}": x for name, x in backbone.items()}, tmp_path / "none.pt")
    found = initial_weights("resnet18", str(tmp_path / "none.pt"), n_classes=2, image_size=16)

    assert "has no last layer 'linear', which is newly initialised" in found.notes[0]


def test_training_the_last_layer_equals_a_plain_loop(five: Path) -> None:
    stage = training(five, LAST, n_rows=37)
    state = stage.start()
    first = {name: x.clone() for name, x in state.network.state_dict().items()}
    plain = build_network("resnet18", 2)
    plain.load_state_dict(first)
    plain.eval().requires_grad_(False)
    plain.linear.requires_grad_(True)
    optimiser = torch.optim.SGD(plain.linear.parameters(), 0.05, 0.9, weight_decay=5e-4)
    data = read_labelled(Stripes(n_rows=37))
    pixels = pixels_of(state.card, data.images, torch.device("cpu"))
    for unit in range(2):
        stage.step(state, unit, silent)
        for step, rows in enumerate(torch.split(epoch_draws(37, 0, unit).order, 16)):
            optimiser.zero_grad()
            functional.cross_entropy(plain(pixels[rows]), data.labels[rows]).backward()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(LAST, unit + step * 16 / 37)
            optimiser.step()

    assert state.features is not None  # computed once
    found, expected = state.network.state_dict(), plain.state_dict()
    torch.testing.assert_close(found["linear.weight"], expected["linear.weight"])
    assert not torch.equal(found["linear.weight"], first["linear.weight"])
    assert all(torch.equal(found[name], first[name]) for name in found if "linear" not in name)


@pytest.mark.parametrize("augmentation", ["none", "flip"])
def test_a_resumed_training_of_the_last_layer_equals_an_uninterrupted_one(
    five: Path, augmentation: str
) -> None:
    stage = training(five, dataclasses.replace(LAST, augmentation=augmentation))
    whole, _ = trained(stage)
    first, _ = trained(stage, 1)
    resumed = stage.load(stage.save(first))
    stage.step(resumed, 1, silent)

    assert stage.save(resumed) == stage.save(whole)
    assert len(stage.save(whole)) < 5_000  # the frozen layers are not saved again


def test_weights_that_change_before_the_training_are_refused(five: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes(five.read_bytes())
    stage = training(copy, PARAMS)
    torch.save({name: x + 1 for name, x in state_of(five).items()}, copy)

    with pytest.raises(InputError, match=r"copy\.pt: changed since the training was planned"):
        stage.start()


# The command


def plan_of(store: FeatureStore, **options: object) -> dict[str, object]:
    stage = TrainSensing(dataset="digits", network="resnet18", **options)
    return dict(stage.plan(Workspace(store)))


def test_the_weights_enter_the_plan_and_other_plans_stay(store: FeatureStore, five: Path) -> None:
    before, now = plan_of(store), plan_of(store, weights=str(five), train="last-layer")
    sha256 = initial_weights("resnet18", str(five), n_classes=10, image_size=32).sha256

    assert set(before["inputs"]) == {"source"}
    assert not {"train", "mean"} & set(before["stage"]["params"])
    assert now["inputs"] == {**before["inputs"], "weights": sha256}
    assert now["stage"]["params"] == {**before["stage"]["params"], "train": "last-layer"}


class OfLibrary(list[SimpleNamespace]):
    """The published weights of a network, of which the first are its default."""

    @property
    def DEFAULT(self) -> SimpleNamespace:  # noqa: N802 - torchvision's name
        return self[0]


def test_published_weights_bring_their_preprocessing(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = import_torchvision().models
    theirs = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    state = build_network("torchvision:mobilenet_v3_small", 3).state_dict()
    torch.save(state, cache / "w.pt")
    digest = hashlib.sha256((cache / "w.pt").read_bytes()).hexdigest()
    (cache / "w.pt").rename(cache / f"w-{digest[:8]}.pth")
    ours = SimpleNamespace(url=f"/w-{digest[:8]}.pth", meta={}, transforms=theirs.transforms)
    monkeypatch.setattr(models, "get_model_weights", lambda _: OfLibrary([ours]))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "set" / name / "1.png")
    stage = TrainSensing(
        dataset=str(tmp_path / "set"),
        split="all",
        network="torchvision:mobilenet_v3_small",
        weights="pretrained",
    )
    plan = stage.plan(Workspace(store))

    assert plan["inputs"]["source"]["resize"] == (
        "bilinear-antialias shorter side ->256, centre 224x224"
    )
    assert plan["stage"]["params"]["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            "--train last-layer",
            "--train last-layer needs weights to start from: add --weights FILE",
        ),
        ("--weights-key ema", "--weights-key needs weights to start from: add --weights FILE"),
        ("--weights missing.pt", "no such file"),
        ("--weights {five} --network resnet34", "a checkpoint of another architecture"),
        ("--weights {five} --mean 0.5,0.5,0.5", "expected --mean and --std together"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(
    refused: Refusal, five: Path, options: str, reason: str
) -> None:
    words = options.format(five=five).split()
    assert reason in refused("train-sensing", "--dataset", "digits", *words)


def test_random_weights_give_no_notes() -> None:
    assert (RANDOM.notes, RANDOM.planned) == ((), {})


def test_both_layers_of_a_mean_start_anew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = "from torch import nn\nclass net(nn.Module):\n def __init__(self, n_classes):\n"
    file += "  super().__init__()\n  self.a, self.b = (nn.Conv2d(3, n_classes, 1) for _ in 'ab')\n"
    file += " def forward(self, x): return ((self.a(x) + self.b(x)) / 2).mean((2, 3))\n"
    (tmp_path / "mine.py").write_text(file)
    network = f"{tmp_path / 'mine.py'}:net"
    torch.save({"state_dict": build_network(network, 5).state_dict()}, tmp_path / "w.pt")
    stage = training(tmp_path / "w.pt", dataclasses.replace(PARAMS, network=network))

    state = stage.start()
    assert state.card.last_layer == "a+b"
    assert "last layer 'a+b' is newly initialised, for 2" in str(stage.initial)
    alone = dataclasses.replace(LAST, network=network)
    with pytest.raises(InputError, match=r"needs one linear layer, found 'a\+b' \(Conv2d\)"):
        training(tmp_path / "w.pt", alone).start()
