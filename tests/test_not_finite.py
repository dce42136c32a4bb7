"""Rows that are not finite are failed rows everywhere: never predicted, selected or trained on.

A black image is NaN under one network, a white one an infinity under another: networks that people
write divide by the spread of an image, take its logarithm, or compute in half precision.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from made import extract
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from stages.active_learning.active_runs import ActiveRuns, curves_job, lessons_of
from stages.active_learning.lesson import Factors, LessonParams, choose, train_h
from stages.active_learning.rounds import LEFT_OUT, ActiveLearning, RoundParams
from stages.active_learning.strategies import STRATEGIES
from stages.data.registry import SourceSpec
from stages.errors import InputError, StageError
from stages.introspection.head import Head
from stages.introspection.head_params import HeadParams
from stages.introspection.head_spec import HeadSpec
from stages.introspection.head_training import HeadTraining
from stages.metrics.calibration import accuracy
from stages.metrics.finite import finite_rows, why_not_finite
from stages.metrics.sums import judge, sums
from stages.prediction.introspective import Introspective
from stages.prediction.predict import predict
from stages.reflection.extraction import Extraction
from stages.reflection.perturbation import Odin, Pgd
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard, Normalisation
from stages.sensing.model import Sensing, describe
from stages.sensing.sensing_training import SensingTraining
from stages.sensing.train_params import TrainParams
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore

BLACK, WHITE = 3, 5
"""Rows of the images that are one colour."""

N_IMAGES = 24
CLASSES = ("blue", "red")

NETWORKS = """
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self, n_classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.last = nn.Linear(8, n_classes)

    def forward(self, x):
        return self.last(self.conv(self.prepared(x)).relu().mean(dim=(2, 3)))

class Spread(Base):  # 0 / 0 for an image of one colour
    def prepared(self, x):
        low = x.amin(dim=(2, 3), keepdim=True)
        return (x - low) / (x.amax(dim=(2, 3), keepdim=True) - low)

class Logarithm(Base):  # NaN for an image whose mean is negative
    def prepared(self, x):
        return x + x.mean(dim=(1, 2, 3), keepdim=True).add(0.9).log()

class Half(Base):  # an infinity for what is very bright or dark
    def prepared(self, x):
        return (x.float() * 3.5e4).half().float() / 3.5e4

class Feature(Base):  # one feature that is NaN, and a last layer that hardly reads it
    def prepared(self, x):
        return x

    def forward(self, x):
        hidden = self.conv(x).relu().mean(dim=(2, 3))
        is_flat = (x.amax(dim=(2, 3)) == x.amin(dim=(2, 3))).all(dim=1)
        first = torch.where(is_flat, torch.nan, hidden[:, 0])
        return self.last(torch.cat([first[:, None], hidden[:, 1:]], dim=1))

class Hopeless(Base):  # an infinity for every image
    def prepared(self, x):
        return x / 0

class Slope(Base):  # finite, but its gradient is not where the image has one colour
    def prepared(self, x):
        spread = (x - x.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(2, 3), keepdim=True)
        return x / (spread.sqrt() + 1e-3)
"""
BAD = {
    "Spread": [BLACK, WHITE],
    "Logarithm": [BLACK],
    "Half": [BLACK, WHITE],
    "Feature": [BLACK, WHITE],
}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def images_of(n_rows: int, **flat: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Dim noise, blue or red; ``flat`` rows are black or white."""
    rng = np.random.default_rng(n_rows)
    images = rng.integers(60, 180, (n_rows, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(n_rows) % 2
    images[labels == 1, :, :, 0] += 60
    images[labels == 0, :, :, 2] += 60
    for row, level in flat.items():
        images[int(row[1:])] = level
    return images, labels


FLAT = {f"_{BLACK}": 0, f"_{WHITE}": 255}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks, and images with two for which each network has an output that is not finite."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "nets.py").write_text(NETWORKS)
    images, labels = images_of(N_IMAGES, **FLAT)
    for name, flat in (("good", {}), ("bad", FLAT)):
        (folder / name).mkdir()
        for split in ("train", "test"):
            images, labels = images_of(N_IMAGES, **flat)
            np.savez(folder / name / f"{split}.npz", images=images, labels=labels)
    (folder / "files").mkdir()
    for row, image in enumerate(images_of(N_IMAGES, **FLAT)[0]):
        Image.fromarray(image).save(folder / "files" / f"{row:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network_of(home: Path, factory: str) -> tuple[nn.Module, ModelCard]:
    torch.manual_seed(0)
    name = f"{home}/nets.py:{factory}"
    network = build_network(name, 2).eval()
    card = describe(
        network,
        name=factory,
        network_name=name,
        class_names=CLASSES,
        image_size=32,
        family="bad",
        normalisation=Normalisation(MEAN, STD),
        last_layer="last",
    )
    return network, card


def source_of(home: Path, name: str, split: str = "train") -> SourceSpec:
    return SourceSpec(str(home / name), split, "")


def introspective(home: Path, factory: str, head: nn.Module | None = None, **options: str):
    network, card = network_of(home, factory)
    facts = {"model": "m", "head": "h", "resize": None}
    return Introspective(Sensing(network, card, **options), head or Halved(), facts)


class Halved(nn.Module):
    def forward(self, features, logits):
        return logits / 2


# --- the rule


@pytest.mark.parametrize("xp", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_a_row_is_finite_where_every_number_in_every_array_is(xp: Callable) -> None:
    first, second = np.zeros((3000, 4)), np.zeros((3000, 2, 3))
    first[1, 2], first[2047, 0] = np.nan, np.inf
    second[2999, 1, 2] = -np.inf
    found = np.asarray(finite_rows(xp(first), xp(second)))
    assert np.flatnonzero(~found).tolist() == [1, 2047, 2999]
    assert finite_rows(xp(first[:0])).shape == (0,)


def test_the_reason_names_the_first_array_that_is_not_finite() -> None:
    features, logits = np.zeros((4, 2)), np.zeros((4, 3))
    logits[1, 0] = features[2, 0] = logits[2, 0] = np.inf
    assert why_not_finite({"features": features, "logits": logits}) == {
        1: "the network's logits are not finite",
        2: "the network's features are not finite",
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_metrics_count_such_rows_and_assign_them_no_class(value: float) -> None:
    probabilities = np.array([[0.2, 0.8], [value, 0.5], [0.7, 0.3]])
    labels = np.array([1, 0, 0])  # of class 0, which argmax would make of a NaN
    for total in (judge(probabilities, labels).sums(), sums(probabilities, labels)):
        assert (int(total.n_rows), total.n_failed, float(accuracy(total))) == (2, 1, 1.0)


# --- extract and predict


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("factory", BAD)
def test_extract_and_predict_agree_on_the_rows_that_fail(
    home: Path, tmp_path: Path, factory: str, precision: str
) -> None:
    network, card = network_of(home, factory)
    (tmp_path / "w.safetensors").write_bytes(save_weights(network))
    stage = Extraction(source_of(home, "bad"), card, str(tmp_path / "w.safetensors"), precision)
    store = FeatureStore(str(tmp_path / "store")).prepare()
    found = extract(store, stage)
    samples, bad = found.samples(), BAD[factory]
    assert np.flatnonzero(samples["status"] != "ok").tolist() == bad
    assert set(samples["status"][bad]) == {"the network's features are not finite"}

    files = sorted((home / "files").glob("*.png"))
    frame = predict(introspective(home, factory, precision=precision), files, batch_rows=7)
    assert np.flatnonzero(frame["status"] != "ok").tolist() == bad
    assert set(frame["status"][bad]) == {"the network's logits are not finite"}
    answers = ["f_label", "f_confidence", "H_label", "H_confidence"]
    assert frame.loc[bad, answers].isna().all(axis=None)
    good = np.delete(np.arange(N_IMAGES), bad)
    labels = [CLASSES[k] for k in samples["prediction"][good]]
    assert frame["f_label"][good].tolist() == labels
    np.testing.assert_allclose(frame["f_confidence"][good], samples["confidence"][good], atol=1e-5)


class Overflowing(nn.Module):
    """A head that overflows although f is finite."""

    def forward(self, features, logits):
        return torch.where(features[:, :1] == features[BLACK, 0], torch.inf, logits)


def test_a_head_that_overflows_leaves_the_answer_of_f(home: Path) -> None:
    files = sorted((home / "files").glob("*.png"))
    frame = predict(introspective(home, "Slope", Overflowing()), files)
    row = frame.iloc[BLACK]
    assert row["status"] == "the head's logits are not finite"
    assert row["f_label"] in CLASSES
    assert row["f_confidence"] > 0.5
    assert row[["H_label", "H_confidence"]].isna().all()


Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch, intro_pipe: Command) -> Run:
    """A command: its stdout and its stderr."""
    monkeypatch.setenv("INTRO_PIPE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.sensing.trust.trust", lambda network: None)
    monkeypatch.setattr("stages.sensing.trust.require_trust", lambda *_: None)
    return intro_pipe


def test_predict_prints_no_class_for_such_an_image_in_any_format(
    home: Path, run: Run, monkeypatch
) -> None:
    monkeypatch.setattr(
        "stages.prediction.introspective.open_introspective",
        lambda *_, **__: introspective(home, "Spread"),
    )
    FeatureStore("store").prepare()
    files = " ".join(f"{home}/files/{row:02d}.png" for row in (0, BLACK))
    reason = "the network's logits are not finite"
    out, err = run(f"predict --head h {files}")
    assert out.splitlines()[2].split()[1:5] == ["-", "-", "-", "-"]
    assert out.splitlines()[2].endswith(reason)
    assert "1 of 2 images have no prediction: see the column `status`" in err
    (_, row) = csv.DictReader(io.StringIO(run(f"predict --head h {files} --format csv")[0]))
    assert [row[name] for name in ("f_label", "f_confidence", "H_label")] == ["", "", ""]
    assert row["status"] == reason
    (_, row) = json.loads(run(f"predict --head h {files} --json")[0])
    assert (row["f_label"], row["f_confidence"], row["status"]) == (None, None, reason)
    run(f"predict --head h {home}/files/{BLACK:02d}.png", code=1)


# --- training


def training_on(home: Path, factory: str, name: str = "bad", **changes: object) -> SensingTraining:
    params = TrainParams(network=f"{home}/nets.py:{factory}", epochs=1, batch=8, lr=0.05)
    params = dataclasses.replace(params, augmentation="none", **changes)
    test = source_of(home, "bad", "test")
    return SensingTraining("m", params, source_of(home, name), test, last_layer="last")


def no_tick(n_rows: int) -> None:
    pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("factory", ["Spread", "Feature"])
def test_training_names_the_images_at_fault_and_not_the_rate(
    home: Path, factory: str, precision: str
) -> None:
    stage = training_on(home, factory, precision=precision)
    with pytest.raises(StageError, match="for 2 of 24 images before training starts") as error:
        stage.step(stage.start(), 0, no_tick)
    assert "the cause is these images, not the learning rate; remove them" in str(error.value)
    first = str(error.value).partition("(first: ")[2].partition(")")[0]
    assert int(first.rpartition("/")[2]) in (BLACK, WHITE)


def test_training_names_the_network_where_no_image_gives_numbers(home: Path) -> None:
    stage = training_on(home, "Hopeless")
    state = stage.start()
    with pytest.raises(StageError, match=r"not finite for any of 24 images .*check its code"):
        stage.step(state, 0, no_tick)


def test_a_rate_that_is_too_high_is_still_named(home: Path) -> None:
    stage = training_on(home, "Spread", "good", lr=1e30)
    state = stage.start()
    with pytest.raises(StageError, match="use a lower learning rate than 1e"):
        stage.step(state, 0, no_tick)


def test_accuracy_and_m_leave_such_images_out(home: Path) -> None:
    stage = training_on(home, "Spread", "good")
    state = stage.start()
    facts = stage.finish(state)[1]
    images, labels = images_of(N_IMAGES, **FLAT)
    sensing = Sensing(state.network.eval(), state.card)
    logits = sensing(torch.from_numpy(images))[1].numpy()
    kept = np.delete(np.arange(N_IMAGES), [BLACK, WHITE])
    expected = (logits[kept].argmax(axis=1) == labels[kept]).mean()
    assert facts["test_accuracy"] == pytest.approx(expected)
    assert facts["n_test_not_finite"] == 2
    assert "n_train_not_finite" not in facts
    bad = dataclasses.replace(stage, train=source_of(home, "bad")).start()
    found = stage.model_after(dataclasses.replace(state, data=bad.data), 1)[1]
    assert found.n_train_not_finite == 2
    assert pytest.approx(float(logits[kept].max(axis=1).mean()), abs=1e-5) == found.M


def test_heads_name_the_rows_whose_gradients_overflow() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 4)).astype(np.float32)
    logits = rng.normal(size=(20, 2)).astype(np.float32)
    features[7], logits[7] = 1e38, 1e38
    params = HeadParams(epochs=1, batch_rows=8, seeds=(0,))
    stage = HeadTraining(features, logits, np.arange(20) % 2, HeadSpec(2, 4, (4,), M=1.0), params)
    with pytest.raises(StageError, match=r"1 of 20 rows \(first: row 7\) overflow") as error:
        stage.step(stage.start(), 0, no_tick)
    assert "not the learning rate" in str(error.value)


# --- active learning


def factors(n_rows: int, bad: list[int], seed: int = 0) -> Factors:
    rng = np.random.default_rng([seed, n_rows])
    features = rng.normal(size=(n_rows, 8)).astype(np.float32)
    logits = rng.normal(size=(n_rows, 2)).astype(np.float32)
    for row, value in zip(bad, (np.nan, np.inf, -np.inf), strict=False):
        features[row, row % 8] = logits[row, row % 2] = value
    return Factors(features, logits)


@pytest.mark.parametrize("kind", ["f", "h"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_chooses_a_row_that_is_not_finite(home: Path, strategy: str, kind: str) -> None:
    sensing = Sensing(*network_of(home, "Slope"))
    head = Head(HeadSpec(2, 8, (4,), M=1.0)).eval() if kind == "h" else None
    params = LessonParams(strategy=strategy, kind=kind)  # type: ignore[arg-type]  # both are Literals
    pool, labelled, bad = factors(30, [0, 11, 29]), factors(6, [2], seed=1), [0, 11, 29]
    good = np.delete(np.arange(30), bad)
    query = choose(params, sensing, head, pool, labelled, 20, seed=3)
    assert not set(bad) & set(query.rows.tolist())
    assert (len(set(query.rows.tolist())), query.n_left_out) == (20, 3)
    assert np.isfinite(query.scores).all()
    finite = labelled.take(np.array([0, 1, 3, 4, 5]))
    expected = choose(params, sensing, head, pool.take(good), finite, 20, seed=3)
    assert query.rows.tolist() == good[expected.rows].tolist()
    with pytest.raises(InputError, match="28 images were requested, but only 27 images"):
        choose(params, sensing, head, pool, labelled, 28, seed=3)


def test_h_is_trained_and_m_measured_without_rows_that_are_not_finite() -> None:
    params = LessonParams(kind="h", epochs=2, layers=(4,))
    labels = torch.arange(12) % 2
    head, _ = train_h(factors(12, [1, 4]), labels, params, 0, no_tick)
    good = np.delete(np.arange(12), [1, 4])
    kept, _ = train_h(factors(12, [1, 4]).take(good), labels[good], params, 0, no_tick)
    assert head.spec.M == kept.spec.M
    assert all(map(torch.equal, head.state_dict().values(), kept.state_dict().values()))
    with pytest.raises(StageError, match="fewer than two labelled images"):
        train_h(factors(2, [0, 1]), labels[:2], params, 0, no_tick)


ASK = "active-learn --dataset {home}/files --network {home}/nets.py:Spread --ask 4 --epochs 2"


def write_labels(path: Path, rows: list[int]) -> Path:
    lines = [f"{row:02d}.png,{CLASSES[row % 2]}" for row in rows]
    path.write_text("\n".join(["sample_id,label", *lines]))
    return path


@pytest.mark.parametrize("strategy", ["badge", "core-set", "k-means", "random"])
def test_queries_leave_such_images_out_but_count_them(
    home: Path, tmp_path: Path, run: Run, strategy: str
) -> None:
    labels = write_labels(tmp_path / "labels.csv", [0, 1, 2, 7])
    words = f"{ASK.format(home=home)} --labels {labels} --strategy {strategy}"
    out, err = run(f"{words} --out asked --json")
    asked = json.loads(out)["asked"]
    assert len(asked) == 4
    assert not {f"{BLACK:02d}.png", f"{WHITE:02d}.png"} & set(asked)
    assert "2 images were not selected: the network's logits for them are not finite" in err
    _, err = run(words.replace("--ask 4", "--ask 19") + " --out other", code=2)
    assert "19 images were requested, but only 18 images without a label can be selected" in err


def test_a_labelled_image_that_is_not_finite_is_named(home: Path, tmp_path: Path, run: Run) -> None:
    labels = write_labels(tmp_path / "labels.csv", [0, 1, 2, BLACK])
    _, err = run(f"{ASK.format(home=home)} --labels {labels}", code=1)
    assert "for 1 of 4 images before training starts (first: 03.png)" in err
    assert "leave their labels empty" in err


def runs_on(home: Path, seed: int) -> ActiveRuns:
    lesson = LessonParams(network=f"{home}/nets.py:Spread", epochs=2, batch=8)
    lessons = lessons_of(lesson, ("badge",), ("f",), (seed,))
    tests = {"clean": source_of(home, "bad", "test")}
    return ActiveRuns(lessons, RoundParams(2, 6, 6), source_of(home, "bad"), tests)


def test_rounds_never_query_such_images_but_count_them(home: Path, tmp_path: Path) -> None:
    def first_rows(seed: int) -> list[int]:
        runs = runs_on(home, seed)
        lesson = runs.lessons[0]
        found: list[int] = (
            ActiveLearning(lesson, runs.rounds, runs.source, runs.tests).start().rows.tolist()
        )
        return found

    seed = next(s for s in range(99) if not {BLACK, WHITE} & set(first_rows(s)))
    store = FeatureStore(str(tmp_path)).prepare()
    runs = runs_on(home, seed)
    journal = Journal.of(store.location, ["active-learn"])
    card = curves_job(store, runs, lambda: (LocalExecutor(1), "cpu")).run(journal).output.card()
    assert card["left_out"] == {"clean": 2, "pool": 2}
    history = runs.run_of(store, runs.lessons[0]).card()["history"]
    assert history[0][f"{LEFT_OUT}clean"] == 2
    assert (history[0]["f on clean"] * 22) % 1 == pytest.approx(0, abs=1e-9)


# --- perturbations


@pytest.mark.parametrize("move", [Odin(0.01), Pgd("uniform", steps=2)], ids=["odin", "pgd"])
def test_an_image_without_a_finite_gradient_is_not_left_unmoved(
    home: Path, move: Odin | Pgd
) -> None:
    images, _ = images_of(N_IMAGES, **FLAT)
    sensing = Sensing(*network_of(home, "Slope"))
    assert finite_rows(sensing(torch.from_numpy(images))[1]).all()
    moved = move.of(sensing)(torch.from_numpy(images))
    bad = np.flatnonzero(~finite_rows(sensing(moved)[1]).numpy()).tolist()
    assert bad == [BLACK, WHITE]
