"""Networks that cannot be rebuilt from the store are refused before anything is written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made import make_in
from torch import nn

from cli.app import main
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.model import describe, load_sensing, sensing_of
from stages.sensing.models import model_card, weights_path
from stages.sensing.networks import cnn2
from stages.sensing.probe import noise_images
from stages.sensing.round_trip import check_round_trip
from stages.sensing.sensing_training import SensingTraining
from stages.sensing.train_params import params_from
from stages.sensing.train_sensing import TrainSensing
from stages.sensing.trust import trust
from store.catalog import FeatureStore

NETWORKS = '''
import threading
import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm


def net(n_classes=3):
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, n_classes))


def on_both(change):
    made = net()
    change(made[0])
    change(made[5])
    return made


def plain(): return net()
def parallel(): return nn.DataParallel(net())
def compiled(): return torch.compile(net(), backend="eager")
def nested(): return nn.Sequential(nn.Identity(), nn.DataParallel(net()))
def old_weight_norm(): return on_both(weight_norm)
def new_weight_norm(): return on_both(parametrizations.weight_norm)
def old_spectral_norm(): return on_both(spectral_norm)
def new_spectral_norm(): return on_both(parametrizations.spectral_norm)
def pruned(): return on_both(lambda layer: prune.l1_unstructured(layer, "weight", 0.5))
def half(): return net().to(torch.float64).float()


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = net()

    def forward(self, x):
        return self.module(x)


class Unsaved(Wrapper):
    """Its scale is drawn each time it is built, and is not in the state dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.randn(3, 1, 1), persistent=False)

    def forward(self, x):
        return self.module(x + self.shift)


class UnsavedAndRandom(Unsaved):
    """Its output depends on chance as well."""

    def forward(self, x):
        return super().forward(x + 0.1 * torch.rand_like(x))


class Drawing(Wrapper):
    """Its output depends on chance alone."""

    def forward(self, x):
        return super().forward(x + 0.1 * torch.rand_like(x))


class DrawingUnseeded(Wrapper):
    """The same, with its own random generator."""

    def forward(self, x):
        return super().forward(x + torch.tensor(np.random.default_rng().random()).float())


class Locked(Wrapper):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Extra(Wrapper):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        pass


class TwoOutputs(Wrapper):
    def forward(self, x):
        found = self.module(x)
        return (found, found) if self.training else found


class Grown(nn.Module):
    """Another width each time it is built."""

    widths = iter(range(4, 1000))

    def __init__(self):
        super().__init__()
        width = next(Grown.widths)
        self.conv, self.linear = nn.Conv2d(3, width, 3), nn.Linear(width, 3)

    def forward(self, x):
        return self.linear(self.conv(x).mean((2, 3)))


def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
def lazy_inside(): return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten())
def lazy_norm(): return nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(affine=False))
'''

TAKEN = ("plain", "parallel", "compiled", "nested", "Wrapper", "old_weight_norm",
         "new_weight_norm", "old_spectral_norm", "new_spectral_norm", "pruned", "half")  # fmt: skip

REFUSED = {
    "lazy": "the size of '1' (LazyLinear) is not known before the first image",
    "lazy_inside": "the size of '0' (LazyConv2d) is not known before the first image",
    "lazy_norm": "the size of '1' (LazyBatchNorm1d) is not known before the first image",
    "Unsaved": "something that determines them is not in state_dict()",
    "Locked": "cannot be deep-copied (TypeError: cannot pickle '_thread.lock' object)",
    "Extra": "has '_extra_state', a dict; expected only tensors",
    "TwoOutputs": "fails in training mode on images of 8 pixels (expected one tensor of logits",
    "Grown": "another architecture",
}

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:.*[Ll]azy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of networks, and a data set of 24 images in 3 classes."""
    folder = tmp_path_factory.mktemp("networks")
    (folder / "nets.py").write_text(NETWORKS)
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(24) % 3
    for split in ("train", "test"):
        (folder / "data").mkdir(exist_ok=True)
        np.savez(folder / "data" / f"{split}.npz", images=images, labels=labels)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    """The exit code of a command about the data set in ``folder``."""
    options = ["--dataset", str(folder / "data"), "--image-size", "8"]
    monkeypatch.setattr("sys.argv", ["intro-pipe", words[0], *options, *words[1:]])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "home"))
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("network", TAKEN)
def test_network_that_was_trained_here_can_be_loaded_again(
    folder: Path, tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(str(tmp_path / "s"))
    source = SourceSpec(str(folder / "data"), "train", "", image_size=8)
    place = f"{folder / 'nets.py'}:{network}"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "home"))
    trust(place)
    make_in(
        store,
        TrainSensing(
            dataset=source.dataset, network=place, preset="quick", name="m", epochs=1, image_size=8
        ),
    )
    card = model_card(store.artifact("model", "m"))
    sensing = load_sensing(card, weights_path(store, "m"))
    features, logits = sensing(torch.zeros(2, 8, 8, 3).byte())
    assert features.shape == (2, 4)
    assert logits.isfinite().all()


@pytest.mark.parametrize("network", REFUSED)
def test_network_that_cannot_be_loaded_again_is_not_trained(
    folder: Path,
    tmp_path: Path,
    network: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, store = f"{folder / 'nets.py'}:{network}", tmp_path / "s"
    code = command(monkeypatch, folder, "train-sensing", "--network", place, "--store", str(store))
    said = capsys.readouterr().err.strip()
    assert code == 2, said
    assert REFUSED[network] in said
    assert len(said.splitlines()) == 1
    assert not list(store.glob("models/*"))


@pytest.mark.parametrize("network", ["Locked", "Unsaved", "lazy"])
def test_network_that_cannot_be_loaded_again_is_not_imported(
    folder: Path,
    tmp_path: Path,
    network: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, store = f"{folder / 'nets.py'}:{network}", tmp_path / "s"
    torch.save(build_network(f"{folder / 'nets.py'}:plain").state_dict(), tmp_path / "w.pt")
    code = command(
        monkeypatch, folder, "extract", "--network", place, "--weights", str(tmp_path / "w.pt"),
        "--store", str(store), "--executor", "local",
    )  # fmt: skip
    said = capsys.readouterr().err.strip()
    assert code == 2, said
    assert REFUSED[network] in said
    assert not list(store.glob("models/*"))


@pytest.mark.parametrize(
    "name",
    [
        "old_weight_norm",
        "new_weight_norm",
        "old_spectral_norm",
        "new_spectral_norm",
        "pruned",
        "parallel",
    ],
)
def test_features_and_logits_are_those_of_the_network_itself(folder: Path, name: str) -> None:
    network = build_network(f"{folder / 'nets.py'}:{name}").eval()
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    card = describe(
        network, name="m", network_name="cnn2", class_names=(), image_size=8, family="x"
    )
    with torch.no_grad():  # as after loading: hooks have not run since
        for value in network.parameters():
            value.add_(0.5)
    pixels = torch.randn(4, 3, 8, 8)
    features, logits = sensing_of(network, card, noise_images((8, 8))).vectors(pixels)
    with torch.no_grad():
        torch.testing.assert_close(logits, network(pixels), rtol=1e-4, atol=1e-4)
    assert features.shape == (4, 4)


def test_check_changes_neither_network_nor_random_numbers() -> None:
    network = cnn2(3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    card = describe(
        network, name="m", network_name="cnn2", class_names=(), image_size=8, family="x"
    )
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    check_round_trip(network, card, is_trained=True)
    assert torch.equal(torch.rand(1), expected)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_googlenet_with_auxiliary_heads_is_refused_with_a_remedy() -> None:
    network = build_network("torchvision:googlenet", 3)
    card = describe(
        network, name="m", network_name="torchvision:googlenet", class_names=(), image_size=32,
        family="x",
    )  # fmt: skip
    with pytest.raises(InputError, match="give the setting aux_logits=false"):
        check_round_trip(network, card, is_trained=True)


def test_training_of_a_network_with_versions_is_resumed(folder: Path) -> None:
    """MNASNet cannot load a state dict without the versions of its modules."""
    source = SourceSpec(str(folder / "data"), "train", "", image_size=8, limit=4)
    params = params_from("quick", network="torchvision:mnasnet0_5", epochs=2)
    stage = SensingTraining("m", params, source)
    saved = stage.save(stage.start())
    assert stage.save(stage.load(saved)) == saved


@pytest.mark.parametrize("name", ["Unsaved", "UnsavedAndRandom"])
def test_unsaved_state_shows_in_spite_of_chance(folder: Path, name: str) -> None:
    network = f"{folder / 'nets.py'}:{name}"
    with pytest.raises(InputError, match=r"something that determines them is not in state_dict"):
        check_round_trip(*with_card(network))


@pytest.mark.parametrize("name", ["Drawing", "DrawingUnseeded"])
def test_random_outputs_do_not_count_as_unsaved_state(folder: Path, name: str) -> None:
    check_round_trip(*with_card(f"{folder / 'nets.py'}:{name}"))


def with_card(name: str) -> tuple[nn.Module, ModelCard]:
    network = build_network(name)
    card = describe(network, name="m", network_name=name, class_names=(), image_size=8, family="x")
    return network, card
