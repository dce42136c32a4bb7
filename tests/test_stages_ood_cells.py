"""Out-of-distribution detection from images to results: what is computed, once, and what is not."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from made import CPU, make_in
from PIL import Image
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score
from small_data import train_small, write_npz_set

from cli.app import main
from cli.states import states
from pipeline.executors import LocalExecutor
from pipeline.fields import Labelled
from pipeline.journal import Journal
from pipeline.make import make
from pipeline.workspace import Workspace
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.evaluation.evaluate import Evaluate
from stages.introspection.contenders import Contender
from stages.introspection.predictors import factors
from stages.introspection.train_head import TrainHead
from stages.metrics.definitions import DETECTION
from stages.metrics.detection import detection_summary
from stages.ood.detect import Detect
from stages.ood.detection_result import open_detection
from stages.ood.ood import Ood
from stages.reflection.extract import Extract
from stages.report.report import Report
from stages.report.writing import MARKDOWN
from stages.scores.confidences import max_softmax
from stages.scores.known_scores import DETECTORS
from stages.sensing.model import Sensing
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
    def head(self):
        return Contender("H", self.store.artifact("head", "h"))

    @property
    def journal(self):
        return Journal.of(self.store.location, ["ood"])

    def detect(self, *detectors, journal=None, **changes):
        stage = Ood(
            **{
                "inside": "few",
                "outside": ("outside",),
                "detectors": detectors,
                "heads": {"H": "h"},
                "odin_epsilon": 0.01,
                "resamples": 0,
                **changes,
            }
        )
        workspace = Workspace(self.store, str(self.root), CPU)
        workspace.once(("workers", 0), lambda: (LocalExecutor(1), "cpu"))  # one network
        made = make(stage, workspace, journal or self.journal)
        return [open_detection(each) for each in made.output]

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
    train = make_in(store, Extract(dataset="few", split="train"), world.root).output
    head = TrainHead(
        features=train.name,
        name="h",
        layers=(20,),
        epochs=40,
        weight_decay=0.0,
        batch_size=16,
        seeds=(0, 7),
    )
    make_in(store, head)
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
    n_probed = 2 * (5 + 4)  # of each set: in the driver, then in its worker
    assert N_PASSED[0] == N_TEST + N_OUT + n_probed
    assert {each.card.detector for each in found} == set(ODIN_FREE)
    assert all(set(each.card.seeds) == {"f", "H"} for each in found)

    N_PASSED[0] = 0
    world.detect("msp", "vim", rows=10)
    make_in(world.store, Evaluate(features="few-test@cnn2", heads={"H": "h"}, resamples=0))
    assert N_PASSED[0] == 0

    world.detect("odin", "msp")
    assert N_PASSED[0] == 2 * (N_TEST + N_OUT) + n_probed  # there and back, once more


def test_no_more_rows_are_extracted_than_compared(world, tmp_path):
    """Rows of the first set are all extracted, since other commands read them."""
    world = dataclasses.replace(world, store=_copied(world.store, tmp_path / "store"))
    (found,) = world.detect("msp", rows=12)
    n_probed = 2 * (5 + 4)

    assert N_PASSED[0] == N_TEST + 12 + n_probed
    assert found.card.rows in (11, 12)  # the broken image may be one of them
    against = world.store.open(found.card.against)
    assert against.n_rows == 12
    assert len(set(against.samples()["sample_id"])) == 12

    world.detect("msp", rows=12)
    assert N_PASSED[0] == N_TEST + 12 + n_probed


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
    assert found.card.left_out_rows == {"f": 1, "H": 1}


def _softmax(z):
    shifted = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def test_odin_reads_moved_images_and_only_f_is_tempered(world):
    (found,) = world.detect("odin")
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


def test_the_smaller_side_and_rows_limit_the_number_of_rows(world):
    assert world.detect("msp")[0].card.rows == N_OUT - 1
    assert world.detect("msp", rows=7)[0].card.rows == 7
    assert world.detect("msp", rows=7)[0].artifact.name != world.detect("msp")[0].artifact.name


def test_an_existing_result_is_read(world):
    first = world.detect("msp", resamples=100)[0]
    before, journal = world.files(), world.journal
    again = world.detect("msp", resamples=100, journal=journal)[0]

    assert world.files() == before
    assert not journal.is_begun()
    assert again.average.equals(first.average)


def test_gains_have_paired_intervals(world):
    average = world.detect("msp", resamples=100)[0].average.set_index(["predictor", "metric"])
    gain = average.loc[("H", "auroc")]

    assert gain["gain_low"] < gain["gain"] < gain["gain_high"]
    assert gain["gain"] == pytest.approx(gain["mean"] - average.loc[("f", "auroc"), "mean"])
    assert np.isnan(average.loc[("f", "auroc_sweep"), "low"])


def test_an_attack_moves_each_side_towards_the_other(world):
    (found,) = world.detect("msp", attack="f")
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
    assert [found.card.perturbations[side][0]["toward"] for side in ("inside", "outside")] == [
        "uniform",
        "confident",
    ]


def test_a_fitted_detector_reads_the_plain_training_images_under_attack(world):
    world.detect("msp", attack="f")
    N_PASSED[0] = 0
    (found,) = world.detect("knn", attack="f")

    assert found.card.training == world.store.open("few-train@cnn2").name
    assert N_PASSED[0] == 0


def write_digits(world, name, change):
    """Inverted digits with other labels; returns the labels that are stored of them."""
    (world.root / name).mkdir(exist_ok=True)
    digits = np.load(world.root / "few" / "test.npz")
    images, labels = 255 - digits["images"], change(digits["labels"])
    np.savez(world.root / name / "test.npz", images=images, labels=labels)
    world.detect("msp", outside=(name,))
    return world.store.open(f"{name}-test@cnn2").samples()["label"].to_numpy(), labels


def test_labels_are_kept_where_they_are_the_networks(world):
    stored, labels = write_digits(world, "inverted", lambda labels: labels)

    assert stored.tolist() == labels.tolist()


def test_status_does_not_take_a_set_without_its_labels_for_a_changed_one(world):
    stored, _ = write_digits(world, "other", lambda labels: labels % 3)
    (row,) = [each for each in states(world.store) if each["name"].startswith("other-test")]

    assert set(stored) == {-1}
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
    """Images are compared by their pixels, whatever their format and name."""
    folder = world.root / "leaky"
    images = world.spec("few").open().read(0, 3).images
    (folder / "x").mkdir(parents=True, exist_ok=True)
    for row, image in enumerate(images):
        Image.fromarray(image if row else image // 2).save(folder / "x" / f"{row}.png")
    line = refused(world, capsys, "--in", "few", "--out", "leaky")

    assert "leaky test: 2 of its 3 images are also images of few test" in line
    assert "(first: x/1.png is test/00001)" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--in", "few", "--out", "few"), "40 of its 40 images are also images of few test"),
        (("--in", "few", "--out", "empty"), "no supported data"),
        (("--in", "few", "--out", ""), "at least one out-of-distribution set, found none"),
        (("--in", "few", "--out", "outside,outside"), "expected each set once"),
        (("--in", "few", "--out", "nowhere"), "nowhere: no such data set"),
        (
            ("--in", "few", "--out", "outside", "--detector", "vom"),
            "expected one of msp, odin",
        ),
        (("--in", "few", "--out", "outside", "--head", "g"), "head 'g' does not exist"),
        (
            ("--in", "few", "--out", "outside", "--epsilon", "1/0"),
            "--epsilon: expected a valid number, found '1/0'",
        ),
        (
            ("--in", "few", "--out", "outside", "--attack", "g"),
            "--attack: expected 'none', 'f' or 'h', found 'g'",
        ),
        (
            ("--in", "few", "--out", "outside", "--attack", "h", "--head", "none"),
            "expected a head to attack, found none",
        ),
        (
            ("--in", "few", "--out", "outside", "--odin-epsilon", "2"),
            "--odin-epsilon: expected less than",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(world, capsys, words, message):
    (world.root / "empty").mkdir(exist_ok=True)

    assert message in refused(world, capsys, *words)


def test_sets_that_do_not_fit_the_detector_are_refused(world):
    world.detect("msp", "odin", rows=N_OUT - 1)
    plain, moved = (world.store.open(f"few{tag}-test@cnn2") for tag in ("", "+odin"))
    moved, plain = moved.name, plain.name
    for fields, message in (
        ({"detector": "odin", "odin_features": plain, "odin_against": plain}, "perturbed by ODIN"),
        ({"detector": "msp", "against": moved}, "msp needs features of images without ODIN"),
    ):
        stage = Detect(**{"features": plain, "against": plain, "heads": (), **fields})
        with pytest.raises(InputError, match=message):
            make_in(world.store, stage)
    with pytest.raises(ValidationError, match="knn: expected 'training', features that it is"):
        Detect(features=plain, against=plain, detector="knn")


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


def test_groups_are_averaged_and_results_named(world, capsys, tmp_path):
    write_outside(tmp_path / "more")
    sets = ("--near", "outside", "--far", str(tmp_path / "more"))
    words = ("--head", "H=h", "--detector", "entropy,vim", "--resamples", "0", *sets)
    sys.argv = ["intro-pipe", "ood", "--executor", "local", "--in", "few", *words]
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    results = [each for each in world.store.artifacts("result") if "-entropy-" in each.name]

    assert sum(line.startswith("near (mean of 1)") for line in lines) == 4
    assert sum(line.startswith("far (mean of 1)") for line in lines) == 4
    assert all(f"  {each.name}" in lines for each in results)
    assert {open_detection(each).card.group for each in results} == {"near", "far"}


def test_a_report_of_several_detectors_ranks_them(world):
    found = world.detect("msp", "vim")
    entries = tuple(Labelled(label="", name=each.artifact.name) for each in found)
    page = make_in(world.store, Report(results=entries)).output.read(MARKDOWN).decode()

    assert "## Detectors by mean AUROC" in page
    assert page.index("auroc-by-detector.svg") < page.index("## Table")
    assert re.search(r"\| 1\\?\. \w+, [fH] \| \*\*[01]\.\d{4}\*\* \|", page)


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
    assert lines[-1] == "page with figures and definitions: intro-pipe report RESULT ..."


def test_the_table_fits_into_a_terminal(world, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = said(capsys, "--detector", "msp", "--resamples", "50").out.splitlines()
    parts = [line for line in lines if line.startswith("out ")]

    assert len(parts) > 1
    assert all(len(line) <= 80 for line in lines if line.startswith(("out ", "outside")))


def test_the_command_prints_the_same_as_json_and_text(world, capsys):
    found = json.loads(said(capsys, "--resamples", "0", "--detector", "msp", "--json").out)

    assert [each["detector"] for each in found] == ["msp"]
    assert {row["metric"] for row in found[0]["average"]} == set(DETECTION)


def test_a_dry_run_lists_what_is_missing_and_writes_nothing(world, capsys):
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


def test_without_a_head_only_f_is_shown(world, capsys):
    assert "  H " not in said(capsys, "--detector", "msp", "--head", "none", "--resamples", "0").out


def test_a_result_can_be_shown_as_a_page(world, capsys):
    (found,) = world.detect("msp", resamples=100)
    sys.argv = ["intro-pipe", "report", found.artifact.name, "--json"]
    with pytest.raises(SystemExit) as ended:
        main()
    shown = json.loads(capsys.readouterr().out)

    assert ended.value.code == 0
    assert [line.split(" H ")[0] for line in shown["shows"]] == ["In AUROC", "In FPR at 95 % TPR"]
    assert shown["figures"] == []


def temperature_of(world, value):
    fitting = world.head.head.card()
    head = world.store.artifact("head", f"t{value}")
    head.claim({"stage": "t"})
    facts = {name: fitting[name] for name in ("model", "model_weights_sha256", "features")}
    head.write({}, facts | {"predictor": "temperature", "temperature": value}, plan={"stage": "t"})
    return head


def test_a_temperature_has_the_scores_of_f_where_only_features_count(world):
    head = temperature_of(world, 3.0)
    options = {"heads": {"T": head.name}, "resamples": 0}
    found = {name: world.detect(name, **options)[0].by_group for name in ("ddu", "energy")}
    shutil.rmtree(head.storage.location)

    auroc = {name: table.set_index("predictor")["auroc"] for name, table in found.items()}
    assert auroc["ddu"]["T"] == auroc["ddu"]["f"]
    assert auroc["energy"]["T"] != auroc["energy"]["f"]


def test_a_head_whose_output_is_not_finite_is_named(world):
    cold = temperature_of(world, 1e-40)
    with (
        np.errstate(over="ignore"),
        pytest.raises(
            InputError, match=r"head 'T' is not finite for \d+ of \d+ rows .*leave it out of --head"
        ),
    ):
        world.detect("msp", heads={"H": "h", "T": cold.name})
    shutil.rmtree(cold.storage.location)
