"""Out-of-distribution detection from images to results: what is computed, once, and what is not."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from small_data import train_small, write_npz_set

from cli.app import main
from cli.states import states
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from stages.applications.detection import Comparison, Sides, detect
from stages.applications.detectors import DETECTORS, max_softmax
from stages.applications.evaluation import Contender, evaluate
from stages.applications.ood import Attack, Setting, detect_all, labels_that_fit
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.introspection.heads import head_spec, train_head
from stages.introspection.predictors import factors
from stages.introspection.recipe import HeadParams
from stages.metrics.definitions import DETECTION
from stages.metrics.detection import detection_summary
from stages.reflection.extract import Extract, extract
from stages.reflection.perturbation import Odin, Pgd
from stages.sensing.model import Sensing
from stages.sensing.models import choose_model, weights_path
from store.catalog import FeatureStore

N_PASSED = [0]
"""Images that have gone through a network in a test."""

N_TRAIN, N_TEST, N_OUT = 120, 40, 30
BROKEN = 4
"""The file of the out-of-distribution set that cannot be read."""


def write_outside(folder):
    """Images of no digit, in a loose folder; one is broken."""
    rng = np.random.default_rng(1)
    (folder / "some").mkdir(parents=True)
    for number in range(N_OUT):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "some" / f"{number:03d}.png")
    (folder / "some" / f"{BROKEN:03d}.png").write_bytes(b"broken")
    return folder


@dataclasses.dataclass
class World:
    """A data root, and a store with a trained network and a head."""

    root: Path
    store: FeatureStore

    def spec(self, dataset, split="test", **options):
        return SourceSpec(dataset, split, str(self.root), **options)

    @property
    def inside(self):
        card = choose_model(self.store, "few", None)
        weights = weights_path(self.store, card.name)
        return Extract(self.spec("few"), card, weights, shard_rows=50)

    @property
    def head(self):
        return Contender("H", self.store.artifact("head", "h"))

    @property
    def journal(self):
        return Journal.of(self.store.location, ["ood"])

    def setting(self, *detectors, **changes):
        plain = Setting(
            self.inside,
            (self.spec("outside"),),
            detectors,
            (self.head,),
            Odin(0.01),
            None,
            rows=10_000,
            n_resamples=0,
            seed=0,
        )
        return dataclasses.replace(plain, **changes)

    def detect(self, *detectors, journal=None, **changes):
        setting = self.setting(*detectors, **changes)
        return detect_all(self.store, setting, LocalExecutor(1), journal or self.journal)

    def files(self):
        return sorted(path for path in Path(self.store.location).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The world before anything was detected, made once."""
    folder = tmp_path_factory.mktemp("made")
    write_npz_set(folder / "data" / "few", N_TRAIN, N_TEST)
    write_outside(folder / "data" / "outside")
    store = FeatureStore(str(folder / "store")).prepare()
    train_small(store, folder / "data" / "few")
    world = World(folder / "data", store)
    stage = dataclasses.replace(world.inside, source=world.spec("few", "train"))
    train, _ = extract(store, stage, LocalExecutor(1), world.journal)
    params = HeadParams(epochs=40, weight_decay=0.0, batch_rows=16, seeds=(0, 7))
    spec = head_spec(train, layers=(20,))
    train_head(store, train, "h", spec, params, device="cpu", journal=world.journal)
    return world


@pytest.fixture
def world(made, monkeypatch):
    """The same, counting; what tests extract stays for the next one, so each starts by reading."""
    plain, N_PASSED[0] = Sensing.vectors, 0

    def counted(self, pixels):
        N_PASSED[0] += len(pixels)
        return plain(self, pixels)

    monkeypatch.setattr(Sensing, "vectors", counted)
    monkeypatch.setenv("INTRO_PIPE_STORE", made.store.location)
    monkeypatch.setenv("INTRO_PIPE_DATA", str(made.root))
    return made


ODIN_FREE = tuple(name for name, each in DETECTORS.items() if not each.is_perturbed)


def test_one_extraction_serves_every_detector_head_and_table(world, tmp_path):
    """Counted in images: none goes through the network twice, but those that ODIN moves."""
    world = dataclasses.replace(world, store=_copied(world.store, tmp_path / "store"))
    found = world.detect(*ODIN_FREE)
    # The training images went through before; the broken one is none, but its row of zeros passes.
    assert N_PASSED[0] == N_TEST + N_OUT
    assert {each.card["detector"] for each in found} == set(ODIN_FREE)
    assert all(set(each.card["seeds"]) == {"f", "H"} for each in found)

    N_PASSED[0] = 0
    world.detect(*ODIN_FREE, rows=10)
    feature_set = world.store.open("few-test@cnn2")
    evaluate(world.store, feature_set, [world.head], n_resamples=0, journal=world.journal)
    assert N_PASSED[0] == 0

    world.detect(*DETECTORS)
    assert N_PASSED[0] == 2 * (N_TEST + N_OUT)  # there and back, and once more from there


def _copied(store, place):
    """The store without what tests have extracted: model, head, and features of training images."""
    shutil.copytree(store.location, place)
    for folder in place.glob("features/*"):
        if "-train@" not in folder.name:
            shutil.rmtree(folder)
    return FeatureStore(str(place))


def test_results_are_those_of_the_stored_vectors(world):
    (found,) = world.detect("msp")
    inside, outside = world.store.open("few-test@cnn2"), world.store.open("outside-test@cnn2")
    z = outside.read("logits")
    usable = np.isfinite(z).all(axis=1)
    n = usable.sum()
    rows = np.sort(np.random.default_rng([0, 0]).permutation(N_TEST)[:n])
    scores = [
        each.max(axis=1) for each in (_softmax(inside.read("logits")[rows]), _softmax(z[usable]))
    ]
    expected = roc_auc_score(np.repeat([1, 0], n), np.concatenate(scores))
    of_f = found.by_group[found.by_group["predictor"] == "f"].iloc[0]

    assert n == N_OUT - 1
    assert found.by_group["n_rows"].tolist() == [n] * 3
    assert of_f["auroc"] == pytest.approx(expected, abs=1e-9)
    assert found.card["left_out_rows"] == {"f": 1, "H": 1}


def _softmax(z):
    shifted = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def test_odin_reads_moved_images_and_only_f_is_tempered(world):
    (found,) = world.detect("odin", rows=N_OUT - 1)
    inside = world.store.open("few+odin-test@cnn2")
    outside = world.store.open("outside+odin-test@cnn2")
    usable = np.isfinite(outside.read("logits")).all(axis=1)
    rows = np.sort(np.random.default_rng([0, 0]).permutation(N_TEST)[: N_OUT - 1])
    pairs = [
        (each.read("features")[at], each.read("logits")[at])
        for each, at in ((inside, rows), (outside, usable))
    ]
    by_predictor = found.by_group.set_index(["predictor", "seed"])
    of_f = detection_summary(*(max_softmax(*pair, temperature=1000.0) for pair in pairs))
    of_h = factors(world.head.head)[7]
    expected = detection_summary(*(max_softmax(*of_h(*pair)) for pair in pairs))

    for name in DETECTION:
        assert by_predictor.loc[("f", 0), name] == pytest.approx(of_f[name]), name
        assert by_predictor.loc[("H", 7), name] == pytest.approx(expected[name]), name


def test_the_smaller_side_says_how_many_rows_and_rows_how_many_at_most(world):
    assert world.detect("msp")[0].card["rows"] == N_OUT - 1
    assert world.detect("msp", rows=7)[0].card["rows"] == 7
    assert world.detect("msp", rows=7)[0].artifact.name != world.detect("msp")[0].artifact.name


def test_a_result_that_is_there_is_read(world):
    first = world.detect("msp", n_resamples=100)[0]
    before, journal = world.files(), world.journal
    again = world.detect("msp", n_resamples=100, journal=journal)[0]

    assert world.files() == before
    assert not journal.is_begun()
    assert again.average.equals(first.average)


def test_gains_have_paired_intervals(world):
    average = world.detect("msp", n_resamples=100)[0].average.set_index(["predictor", "metric"])
    gain = average.loc[("H", "auroc")]

    assert gain["gain_low"] < gain["gain"] < gain["gain_high"]
    assert gain["gain"] == pytest.approx(gain["mean"] - average.loc[("f", "auroc"), "mean"])
    assert np.isnan(average.loc[("f", "auroc_sweep"), "low"])


def test_an_attack_moves_both_sides_apart_from_what_they_are(world):
    attack = Attack(Pgd("uniform"), Pgd("confident"))
    (found,) = world.detect("msp", attack=attack)
    sure = {
        name: world.store.open(name).samples()["confidence"].mean()
        for name in (
            "few-test@cnn2",
            "few+pgd-test@cnn2",
            "outside-test@cnn2",
            "outside+pgd-test@cnn2",
        )
    }

    assert sure["few+pgd-test@cnn2"] < sure["few-test@cnn2"]
    assert sure["outside+pgd-test@cnn2"] > sure["outside-test@cnn2"]
    assert [found.card["perturbations"][side][0]["toward"] for side in ("inside", "outside")] == [
        "uniform",
        "confident",
    ]


def test_a_fitted_detector_reads_the_plain_training_images_under_attack(world):
    attack = Attack(Pgd("uniform"), Pgd("confident"))
    world.detect("msp", attack=attack)
    N_PASSED[0] = 0
    (found,) = world.detect("knn", attack=attack)

    assert found.card["training"] == world.store.open("few-train@cnn2").name
    assert N_PASSED[0] == 0


def test_labels_are_kept_where_they_are_the_networks(world):
    names = tuple(str(label) for label in range(10))

    assert labels_that_fit(world.spec("few"), names).labels
    assert not labels_that_fit(world.spec("few"), ("cat", "dog")).labels


def test_status_does_not_take_a_set_without_its_labels_for_a_changed_one(world):
    (world.root / "other").mkdir(exist_ok=True)
    digits = np.load(world.root / "few" / "test.npz")
    np.savez(
        world.root / "other" / "test.npz",
        images=255 - digits["images"],
        labels=digits["labels"] % 3,
    )
    spec = world.spec("other")
    world.detect("msp", outsides=(labels_that_fit(spec, ("a",)),))
    (row,) = [each for each in states(world.store) if each["name"].startswith("other-test")]

    assert row["state"] == "complete", row


# What is refused


def refused(world, capsys, *words):
    """The one line that a command is refused with; it has written nothing."""
    before = world.files()
    sys.argv = ["intro-pipe", "ood", "--executor", "local", *words]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert world.files() == before
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_set_that_holds_in_distribution_images_is_refused(world, capsys):
    """By the pixels, whatever format and name they have now."""
    folder = world.root / "leaky"
    images = world.spec("few").open().read(0, 3).images
    (folder / "x").mkdir(parents=True, exist_ok=True)
    for row, image in enumerate(images):
        Image.fromarray(image if row else image // 2).save(folder / "x" / f"{row}.png")
    line = refused(world, capsys, "--in", "few", "--out", "leaky")

    assert "leaky test: 2 of its 3 images are images of few test too" in line
    assert "(first: x/1.png is test/00001 there)" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--in", "few", "--out", "few"), "40 of its 40 images are images of few test too"),
        (("--in", "few", "--out", "empty"), "no data that is read here"),
        (("--in", "few", "--out", ""), "at least one out-of-distribution set, found none"),
        (("--in", "few", "--out", "outside,outside"), "expected each set once"),
        (("--in", "few", "--out", "nowhere"), "nowhere: no such data set"),
        (("--in", "few", "--out", "outside", "--detector", "vim"), "expected some of msp, odin"),
        (("--in", "few", "--out", "outside", "--head", "g"), "head 'g' is not there"),
        (
            ("--in", "few", "--out", "outside", "--epsilon", "1/0"),
            "--epsilon 1/0: expected a number",
        ),
        (
            ("--in", "few", "--out", "outside", "--attack", "g"),
            "--attack g: expected none or f or h",
        ),
        (
            ("--in", "few", "--out", "outside", "--attack", "h", "--head", "none"),
            "expected a head to look through, found none",
        ),
        (("--in", "few", "--out", "outside", "--odin-epsilon", "2"), "odin: expected epsilon"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(world, capsys, words, message):
    (world.root / "empty").mkdir(exist_ok=True)

    assert message in refused(world, capsys, *words)


def test_sets_that_do_not_fit_the_detector_are_refused(world):
    world.detect("msp", "odin", rows=N_OUT - 1)
    plain, moved = (world.store.open(f"few{tag}-test@cnn2") for tag in ("", "+odin"))
    for name, sides, message in (
        ("odin", Sides(plain, plain), "odin reads features of images moved by ODIN"),
        ("msp", Sides(plain, moved), "msp reads features of images as they are"),
        ("knn", Sides(plain, plain), "knn is fitted, and needs training features"),
    ):
        with pytest.raises(InputError, match=message):
            detect(world.store, sides, [], Comparison(name), journal=world.journal)


# The command


def said(capsys, *words):
    sys.argv = [
        "intro-pipe",
        "ood",
        "--executor",
        "local",
        "--in",
        "few",
        "--out",
        "outside",
        *words,
    ]
    main_ended = pytest.raises(SystemExit)
    with main_ended as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr()


def test_the_command_prints_f_beside_h(world, capsys):
    lines = said(capsys, "--detector", "msp,odin", "--resamples", "0").out.splitlines()
    table = [line.split() for line in lines if line.startswith(("out ", "outside"))]

    assert table[0][:6] == ["out", "images", "detector", "predictor", "seeds", "fpr95"]
    assert [row[2:4] for row in table[1:]] == [
        ["msp", "f"],
        ["msp", "H"],
        ["odin", "f"],
        ["odin", "H"],
    ]
    assert any(line.startswith("  auroc: area under") for line in lines)


def test_the_command_says_in_json_what_it_says_in_words(world, capsys):
    found = json.loads(said(capsys, "--resamples", "0", "--detector", "msp", "--json").out)

    assert [each["detector"] for each in found] == ["msp"]
    assert {row["metric"] for row in found[0]["average"]} == set(DETECTION)


def test_a_dry_run_says_what_is_missing_and_writes_nothing(world, capsys):
    before = world.files()
    plan = json.loads(said(capsys, "--odin-epsilon", "0.02", "--dry-run", "--json").out)

    missing = {name.rpartition("-")[0] for name in plan["extract"]}

    assert missing >= {"few+odin-test@cnn2", "outside+odin-test@cnn2"}
    assert world.files() == before


def test_an_attack_through_the_head_is_another_set(world, capsys):
    words = ("--detector", "msp", "--attack", "h", "--steps", "1", "--resamples", "0")
    (found,) = json.loads(said(capsys, *words, "--json").out)
    through = found["perturbations"]["inside"][0]["target"]

    assert through["seed"] == 0
    assert "through the head, 1 steps in a box of 1/255" in said(capsys, *words).out


def test_without_a_head_f_stands_alone(world, capsys):
    assert "  H " not in said(capsys, "--detector", "msp", "--head", "none", "--resamples", "0").out


def test_a_result_can_be_shown_as_a_page(world, capsys):
    (found,) = world.detect("msp", n_resamples=100)
    sys.argv = ["intro-pipe", "report", found.artifact.name, "--json"]
    with pytest.raises(SystemExit) as ended:
        main()
    shown = json.loads(capsys.readouterr().out)

    assert ended.value.code == 0
    assert [line.split(" H ")[0] for line in shown["shows"]] == ["In AUROC", "In FPR at 95 % TPR"]
    assert shown["figures"] == []
