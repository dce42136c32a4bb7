"""SimCLR: views, loss, training without labels, and classifiers on the frozen network."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Refusal
from made import make_in
from safetensors.torch import load
from scipy.stats import ks_2samp
from small_data import write_npz_set
from stripes import Stripes
from tiny_recipe import run_tiny

from stages.errors import InputError
from stages.introspection.head_card import head_card
from stages.recipes.shipped import shipped_text
from stages.sensing.build import build_network
from stages.sensing.hidden_layers import add_hidden_layers
from stages.sensing.initial_weights import initial_weights
from stages.sensing.methods.method_params import SimClr
from stages.sensing.methods.random_views import random_views, view_draws
from stages.sensing.methods.simclr import nt_xent
from stages.sensing.sensing_training import SensingTraining
from stages.sensing.start import Start
from stages.sensing.torchvision_ops import import_torchvision
from stages.sensing.train_params import PRESETS, TrainParams, planned_params
from stages.sensing.train_sensing import TrainSensing
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import DamagedError

SIMCLR = dataclasses.replace(
    PRESETS["simclr"], network="cnn2", epochs=2, batch=16, method=SimClr(projection=(12, 6))
)
MLP = dataclasses.replace(PRESETS["linear"], network="cnn2+9", epochs=2, train="classifier")


def silent(n_rows: int) -> None:
    pass


def step_through(stage: SensingTraining, units: range, state=None):
    state = stage.start() if state is None else state
    for unit in units:
        stage.step(state, unit, silent)
    return state


# Views


def test_views_are_those_of_torchvision_with_the_same_numbers() -> None:
    import_torchvision()
    from torchvision.transforms import functional as theirs

    height, width, n = 24, 32, 40
    shape = (n, height, width, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator())
    draws = view_draws(n, (height, width), (0, 0))
    found = random_views(images, draws)
    changes = (
        *(theirs.adjust_brightness, theirs.adjust_contrast),
        *(theirs.adjust_saturation, theirs.adjust_hue),
    )
    for row in range(n):
        image = images[row].permute(2, 0, 1) / 255
        top, left, rows, columns = map(int, draws.crop[row])
        image = theirs.resized_crop(
            image, top, left, rows, columns, [height, width], antialias=True
        )
        image = theirs.hflip(image) if draws.flip[row] else image
        for change in draws.order[row] if draws.is_coloured[row] else ():
            image = changes[change](image, float(draws.strength[row, change]))
        image = theirs.rgb_to_grayscale(image, 3) if draws.is_grey[row] else image
        torch.testing.assert_close(found[row], 255 * image.permute(1, 2, 0), atol=0.1, rtol=0)
    assert (draws.crop[:, 2:] < torch.tensor([height, width])).any()


@pytest.mark.parametrize("size", [(32, 32), (12, 40)])  # of the second, many crops do not fit
def test_numbers_are_distributed_as_those_of_torchvision(size: tuple[int, int]) -> None:
    import_torchvision()
    from torchvision.transforms import ColorJitter, RandomResizedCrop

    torch.manual_seed(0)
    n, image = 1500, torch.zeros(3, *size)
    draws = view_draws(n, size, (0, 0))
    crops = [RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(n)]
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    colours = [ColorJitter.get_params(*ranges) for _ in range(n)]
    for column in range(4):
        ours = draws.crop[:, column].numpy()
        assert ks_2samp(ours, np.array(crops)[:, column]).pvalue > 0.001
        strengths = np.array([each[1 + column] for each in colours])
        assert ks_2samp(draws.strength[:, column].numpy(), strengths).pvalue > 0.001
    orders = {tuple(order) for order in draws.order.tolist()}
    assert orders == set(itertools.permutations(range(4)))
    for chance, is_so in ((0.5, draws.flip), (0.8, draws.is_coloured), (0.2, draws.is_grey)):
        assert abs(float(is_so.float().mean()) - chance) < 4 * math.sqrt(0.25 / n)


# The loss


def test_nt_xent_is_that_of_a_loop() -> None:
    first, second = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    views = [view / view.norm() for view in (*first, *second)]
    total = 0.0
    for i, view in enumerate(views):
        cosines = [float(view @ other) / 0.3 for other in views]
        others = sum(math.exp(cosine) for j, cosine in enumerate(cosines) if j != i)
        total -= math.log(math.exp(cosines[(i + 5) % 10]) / others)
    assert float(nt_xent(first, second, 0.3)) == pytest.approx(total / 10, rel=1e-5)


def test_nt_xent_is_float32_under_autocast() -> None:
    views = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = nt_xent(*views.bfloat16().float(), 0.5)
    assert found == nt_xent(*views.bfloat16().float(), 0.5)


# Training


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_training_resumes_to_the_same_weights(precision: str) -> None:
    stage = SensingTraining("m", dataclasses.replace(SIMCLR, precision=precision), Stripes())
    whole = step_through(stage, range(2))
    resumed = stage.load(stage.save(step_through(stage, range(1))))
    assert stage.save(step_through(stage, range(1, 2), resumed)) == stage.save(whole)


def test_labels_do_not_reach_the_features() -> None:
    class Swapped(Stripes):
        def read(self, start, stop):
            rows = super().read(start, stop)
            return dataclasses.replace(
                rows, columns={**rows.columns, "label": 1 - rows.columns["label"]}
            )

    mine, theirs = (
        step_through(SensingTraining("m", SIMCLR, source), range(1)).network.state_dict()
        for source in (Stripes(), Swapped())
    )
    differing = [name for name, value in mine.items() if not torch.equal(value, theirs[name])]
    assert differing == ["linear.weight", "linear.bias"]


def test_the_loss_falls_and_the_classifier_learns() -> None:
    params = dataclasses.replace(SIMCLR, epochs=6, lr=0.01)
    stage = SensingTraining("m", params, Stripes(), Stripes(seed=1))
    state = stage.start()
    history = [stage.step(state, unit, silent) for unit in range(6)]
    assert history[-1]["loss"] < history[0]["loss"]
    assert stage.finish(state)[1]["test_accuracy"] > 0.9


def test_plans_of_other_trainings_do_not_change() -> None:
    assert not {"optimiser", "method"} & set(planned_params(TrainParams()))
    planned = planned_params(SIMCLR)
    assert (planned["optimiser"], planned["method"]["projection"]) == ("adam", (12, 6))


# Classifiers on the frozen network


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.manual_seed(1)
    torch.save(build_network("cnn2", 2).state_dict(), path)
    return str(path)


def mlp_training(pretrained: str, **changes: object) -> SensingTraining:
    params = dataclasses.replace(MLP, **changes)
    start = Start(initial_weights(params.network, pretrained, n_classes=2, image_size=16))
    return SensingTraining("m", params, Stripes(), initial=start)


@pytest.mark.parametrize("augmentation", ["none", "flip"])
def test_a_classifier_is_trained_on_the_frozen_network(pretrained: str, augmentation: str) -> None:
    stage = mlp_training(pretrained, augmentation=augmentation)
    whole = step_through(stage, range(2))
    found, before = whole.network.state_dict(), torch.load(pretrained, weights_only=True)
    first = stage.start().network.state_dict()
    assert whole.card.last_layer == "linear.2"
    assert [tuple(whole.network.linear[at].weight.shape) for at in (0, 2)] == [(9, 50), (2, 9)]
    for name, value in found.items():
        is_of_classifier = name.startswith("linear")
        assert torch.equal(value, first[name] if is_of_classifier else before[name]) != (
            is_of_classifier
        )
    resumed = stage.load(stage.save(step_through(stage, range(1))))
    assert stage.save(step_through(stage, range(1, 2), resumed)) == stage.save(whole)
    assert whole.frozen is not None
    assert not whole.frozen.training


def test_the_weights_of_a_classifier_are_loaded_if_they_are_there(
    pretrained: str, tmp_path: Path
) -> None:
    trained = step_through(mlp_training(pretrained), range(1)).network
    torch.save(trained.state_dict(), tmp_path / "mlp.pt")
    again = mlp_training(str(tmp_path / "mlp.pt")).start().network.state_dict()
    assert all(torch.equal(again[name], value) for name, value in trained.state_dict().items())


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(Exception, match="expected a linear layer inside it"):
        add_hidden_layers(torch.nn.Sequential(torch.nn.ReLU()), "mine:net+8", (8,))


def test_a_classifier_is_by_default_that_of_the_stored_model(
    store: FeatureStore, tmp_path: Path
) -> None:
    data = str(write_npz_set(tmp_path / "tiny", 40, 10))

    def made(name: str, **options: object) -> Artifact:
        stage = TrainSensing(dataset=data, epochs=1, name=name, **options)
        return make_in(store, stage).output

    plain = made("plain", network="cnn2", preset="quick")
    whole = made("whole", network="cnn2+6", preset="quick")
    part = made("part", from_model="whole", train="classifier", preset="linear")

    assert part.card()["card"]["network"] == "cnn2+6"
    before, after = (load(each.read("weights.safetensors")) for each in (whole, part))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"linear"}
    with pytest.raises(InputError, match="network cnn2: --train classifier needs hidden layers"):
        made("other", from_model=plain.name, train="classifier", preset="linear")
    weights = Path(plain.storage.location) / "weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(DamagedError, match="does not match its checksum"):
        made("other", from_model=plain.name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            "--train classifier --network cnn2 --from-model m",
            "network cnn2: --train classifier needs hidden layers in the classifier: add their",
        ),
        ("--train last-layer", "add --weights FILE, --weights pretrained, or --from-model MODEL"),
        ("--weights w.pt --from-model m", "--from-model replaces --weights"),
        ("--from-model missing", "model 'missing' does not exist"),
        ("--method simclr --projection 8", "expected two widths, such as 512,128"),
        ("--projection 8,8", "has no effect with --method plain"),
        ("--network cnn2+0", "cnn2+0"),
    ],
)
def test_options_that_do_not_fit_are_refused(refused: Refusal, options: str, reason: str) -> None:
    assert reason in refused("train-sensing", "--dataset", "digits", *options.split())


def test_a_method_uses_the_preset_of_its_name() -> None:
    params = TrainSensing(dataset="digits", method="simclr").params
    assert params == PRESETS["simclr"]
    assert TrainSensing(dataset="digits", method="simclr", preset="quick").params.lr == 0.02


@pytest.mark.slow
def test_table_6_compares_three_classifiers_of_simclr(store: FeatureStore, tmp_path: Path) -> None:
    write_npz_set(tmp_path / "tiny", 300, 10)
    changes = {
        "dataset": "tiny",
        "corrupted": "tiny-c",
        "networks": "[cnn2]",
        "epochs": "1",
        "batch_size": "64",
        "hidden": "12",
        "classifier_epochs": "12",
        "classifier_batch_size": "10",
        "neighbours": "20",
        "seeds": "[0]",
        "layers": "[]",
        "head_epochs": "30",
        "head_weight_decay": "0.0",
    }
    report = run_tiny(store, tmp_path, shipped_text("table-6"), changes)
    page = report.statuses[-1].job.output.read("report.md").decode()
    models = {each.card()["card"]["network"]: each for each in store.artifacts("model")}

    assert set(models) == {"cnn2", "cnn2+12"}
    assert models["cnn2+12"].card()["card"]["last_layer"] == "linear.2"
    assert models["cnn2+12"].card()["card"]["feature_dim"] == 12
    votes = [head_card(each) for each in store.artifacts("head")]
    assert "neighbours" in {each.kind for each in votes}
    for words in ("weighted kNN", "H on scaled f", "linear", "mlp", "votes exp(cosine / 0.5)"):
        assert words in page
