"""The order of classes on the command line."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from PIL import Image
from test_stages_data_classes import NUMBERS, write_folders

from cli.classes import note_names
from cli.states import states
from pipeline.workspace import Workspace
from stages.errors import InputError
from stages.evaluation.evaluate import Evaluate
from stages.judging.judged_result import open_evaluation
from stages.sensing.build import build_network
from stages.sensing.models import models_of
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore

Run = Callable[..., tuple[str, str]]

NETWORK = """
from torch.nn import AdaptiveAvgPool2d, Flatten, Linear, Sequential

def net(n_classes):
    return Sequential(AdaptiveAvgPool2d(1), Flatten(), Linear(3, n_classes))
"""
NEW = "--network mine.py:net --weights mine.safetensors --mean 0,0,0 --std 1,1,1"
EXTRACT = "extract --dataset numbered --executor local"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders 1 to 12, and a network that knows them by their brightness, in natural order."""
    home = tmp_path_factory.mktemp("home")
    write_folders(home / "numbered", NUMBERS)
    (home / "mine.py").write_text(NETWORK)
    network = build_network(f"{home / 'mine.py'}:net", len(NUMBERS))
    centres = 20 / 255 * torch.arange(12.0)
    with torch.no_grad():  # z = 2 c x - c ** 2 is largest for the nearest centre
        network[2].weight.copy_((2 / 3 * centres)[:, None].expand(-1, 3))
        network[2].bias.copy_(-(centres**2))
    (home / "mine.safetensors").write_bytes(save_weights(network))
    (home / "classes.txt").write_text("\n".join(NUMBERS))
    return home


@pytest.fixture
def run(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    intro_pipe: Command,
) -> Run:
    monkeypatch.setenv("INTRO_PIPE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("INTRO_PIPE_DATA", str(home))
    monkeypatch.chdir(home)
    return intro_pipe


def accuracy(store: Path, out: str) -> float:
    samples = FeatureStore(str(store)).open(json.loads(out)["feature_set"]).samples()
    return float((samples["label"] == samples["prediction"]).mean())


def test_a_network_in_natural_order_is_right_with_its_classes_and_a_note_says_so(
    run: Run, tmp_path: Path
) -> None:
    wrong, said = run(f"{EXTRACT} {NEW} --json")
    right, quiet = run(f"{EXTRACT} {NEW} --model ordered --classes classes.txt --json")

    assert accuracy(tmp_path / "store", wrong) == pytest.approx(1 / 12)
    assert (
        "numbered: classes are in string order, as in torchvision's ImageFolder (1, 10, 11, 12, "
        "...; label 1 is '10'), not in natural order (1, 2, 3, 4, ...)"
    ) in said
    assert accuracy(tmp_path / "store", right) == 1
    assert "order" not in quiet
    assert json.loads(right)["feature_set"] != json.loads(wrong)["feature_set"]
    assert [row["state"] for row in states(FeatureStore(str(tmp_path / "store")))] == [
        *("complete", "complete", "complete", "complete")
    ]


def test_a_model_of_the_store_keeps_its_order(run: Run, tmp_path: Path) -> None:
    run(f"{EXTRACT} {NEW} --model ordered --classes classes.txt")
    before = sorted(tmp_path.rglob("*"))

    _, refused = run(f"{EXTRACT} --model ordered", 2)
    assert refused.startswith("intro-pipe: model 'ordered' has the classes of numbered in another")
    assert refused.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    out, said = run(f"{EXTRACT} --model ordered --classes classes.txt --json")
    assert json.loads(out)["n_computed"] == 0
    assert said == ""


def test_digits_are_refused_for_a_network_of_photographs(run: Run, home: Path) -> None:
    named = ("airplane", "automobile", "bird", "cat", "deer")
    named += ("dog", "frog", "horse", "ship", "truck")
    if not (home / "photos").exists():
        write_folders(home / "photos", named)
    network = build_network(f"{home / 'mine.py'}:net", 10)
    (home / "ten.safetensors").write_bytes(save_weights(network))
    run(f"extract --dataset photos --executor local {NEW} --weights ten.safetensors --model ten")

    _, refused = run("extract --dataset digits --executor local --model ten", 2)

    assert "(airplane, automobile, bird, cat, ...), digits has 10 (0, 1, 2, 3, ...)" in refused
    assert "choose another --model" in refused


def test_a_dry_run_lists_the_classes(run: Run) -> None:
    text, said = run(f"{EXTRACT} {NEW} --dry-run")
    found, _ = run(f"{EXTRACT} {NEW} --classes classes.txt --dry-run --json")

    assert "classes in the order of the network's outputs (and their images):" in text
    assert "     1  10  (1)" in text
    assert "string order" in said
    assert json.loads(found)["classes"][1] == {"label": 1, "name": "2", "images": 1}


def test_a_long_list_of_classes_is_cut(run: Run, home: Path) -> None:
    (home / "many.txt").write_text("\n".join([*NUMBERS, *(f"other {n}" for n in range(30))]))
    network = build_network(f"{home / 'mine.py'}:net", 42)
    (home / "many.safetensors").write_bytes(save_weights(network))
    words = f"{EXTRACT} {NEW} --weights many.safetensors --classes many.txt --dry-run"

    text, _ = run(words)
    found, _ = run(f"{words} --json")

    assert len(text.splitlines()) == 23
    assert text.splitlines()[-1] == "  and 22 more: --json lists all"
    assert json.loads(found)["classes"][41] == {"label": 41, "name": "other 29", "images": 0}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--classes nowhere.txt", "no such file of class names"),
        ("--classes mine.safetensors", "expected"),
        ("--classes short.txt", "class '12' is not among the 2 given names (1, 12.0)"),
    ],
)
def test_a_file_of_classes_that_does_not_match_is_refused_in_one_line(
    run: Run, home: Path, tmp_path: Path, words: str, why: str
) -> None:
    (home / "short.txt").write_text("1\n12.0\n")

    for command in (
        f"{EXTRACT} {NEW}",
        "train-sensing --dataset numbered",
        "corrupt --dataset numbered",
    ):
        _, refused = run(f"{command} {words}", 2)

        assert refused.startswith("intro-pipe: ")
        assert refused.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_training_and_corrupting_use_the_order(run: Run, home: Path) -> None:
    write_folders(home / "both", NUMBERS)
    (home / "both" / "test").rename(home / "both" / "train")
    write_folders(home / "both", NUMBERS)
    train = "train-sensing --dataset both --preset quick --dry-run --json"
    corrupt = "corrupt --dataset both --executor local --corruptions fog --dry-run --json"
    learn = "active-learn --dataset both --network cnn2 --rounds 1 --start 4 --dry-run"

    for words in (train, corrupt):
        out, said = run(words)
        assert json.loads(out)["plan"]["inputs"]["source"]["class_names"] == sorted(NUMBERS)
        assert said.count("string order") == 1
        out, said = run(f"{words} --classes classes.txt")
        assert json.loads(out)["plan"]["inputs"]["source"]["class_names"] == list(NUMBERS)
        assert "order" not in said
    plain, said = run(learn)
    ordered, quiet = run(f"{learn} --classes classes.txt")
    assert plain != ordered
    assert "string order" in said
    assert quiet == ""


@pytest.mark.parametrize(
    "words", ["train-sensing --preset quick", "active-learn --network cnn2 --rounds 1 --start 4"]
)
@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("bac", "label 0 is 'b' in the first and 'a' in the second: give both the same order"),
        ("abd", "(a, b, d and a, b, c): expected the same classes"),
    ],
)
def test_a_test_set_of_other_classes_is_refused(
    run: Run, home: Path, words: str, names: str, why: str
) -> None:
    (home / "arrays").mkdir(exist_ok=True)
    for split, found in (("train", "abc"), ("test", names)):
        images = np.zeros((6, 8, 8), np.uint8)
        labels = np.array([0, 1, 2, 0, 1, 2])
        np.savez(home / f"arrays/{split}.npz", images=images, labels=labels, class_names=[*found])

    _, refused = run(f"{words} --dataset arrays --dry-run", 2)

    assert refused.startswith("intro-pipe: arrays test has other classes than arrays train")
    assert why in refused


def test_labels_from_people_are_compared_with_the_classes(run: Run, home: Path) -> None:
    (home / "pool").mkdir()
    for row in range(6):
        Image.new("L", (8, 8), 40 * row).save(home / "pool" / f"{row}.png")
    (home / "labels.csv").write_text(
        'sample_id,label\n0.png,Cat\n1.png,cat\n2.png,"dog"\n3.png,"dog\r"\n'
    )
    (home / "pets.txt").write_text("cat\ndog\n")
    ask = "active-learn --dataset pool --network cnn2 --image-size 8 --ask 1 --dry-run"

    _, said = run(f"{ask} --labels labels.csv")
    _, refused = run(f"{ask} --labels labels.csv --classes pets.txt", 2)

    assert "labels: these names are nearly equal but count as different classes: " in said
    assert "'Cat' and 'cat'; 'dog' and 'dog\\r'" in said
    assert "the label 'Cat' is not one of the 2 given classes (nearly equal: 'cat')" in refused


def test_predictions_of_a_network_from_elsewhere_come_with_a_note(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"{EXTRACT} {NEW}")
    run("fit-temperature --features numbered-test@net --name tempered")

    _, said = run("predict --head tempered numbered/test/10/0.png")

    assert "model net: classes are in string order" in said
    assert "extract with --classes FILE and another --model NAME" in said
    (card,) = models_of(FeatureStore(str(tmp_path / "store")))
    note_names(dataclasses.replace(card, class_names=NUMBERS))
    note_names(dataclasses.replace(card, M=2.5))
    assert capsys.readouterr().err == ""


def test_a_head_is_refused_for_features_with_other_labels(run: Run) -> None:
    run(f"{EXTRACT} {NEW}")
    run(f"{EXTRACT} {NEW} --model ordered --classes classes.txt")
    run("fit-temperature --features numbered-test@net --name tempered")

    _, refused = run("evaluate --features numbered-test@ordered --head tempered", 2)
    _, also = run("predict --head tempered --model ordered numbered/test/10/0.png", 2)

    assert "whose images were labelled differently from those of numbered-test@ordered" in refused
    assert "(classes: label 1 is '2', found '10')" in refused
    assert "classes: label 1 is '2', found '10'" in also
    assert refused.count("\n") == 1


def test_a_set_with_some_of_the_classes_is_labelled_and_evaluated_among_all_and_among_its_own(
    run: Run, home: Path, tmp_path: Path
) -> None:
    run(f"{EXTRACT} {NEW} --model ordered --classes classes.txt")
    for name, place in (("3", "3"), ("10", "10"), ("12", "9")):  # nines that are called 12
        shutil.copytree(home / "numbered/test" / place, tmp_path / "some/test" / name)

    out, said = run(
        f"extract --dataset {tmp_path / 'some'} --model ordered --executor local --json"
    )
    found = FeatureStore(str(tmp_path / "store")).open(json.loads(out)["feature_set"])
    run(f"evaluate --features {found.name} --head none --resamples 0 --present-classes")
    store, name = FeatureStore(str(tmp_path / "store")), found.name
    taken = Evaluate(
        features=name,
        heads=(),
        beside=name,
        beside_label="f (3 classes)",
        present_classes=True,
    )
    with pytest.raises(InputError, match=r"found 'f \(3 classes\)'"):
        taken.job(Workspace(store)).refuse()

    assert "some test: has 3 of the 12 classes of model ordered; labels are the network's" in said
    labels = found.samples()["label"].to_numpy()
    assert sorted(set(labels.tolist())) == [2, 9, 11]
    (result,) = store.artifacts("result")
    by_group = open_evaluation(result).by_group.set_index("predictor")["accuracy"]
    own = np.array([2, 9, 11])[found.read("logits")[:, [2, 9, 11]].argmax(axis=1)]
    assert by_group["f"] == (found.read("logits").argmax(axis=1) == labels).mean()
    assert by_group["f (3 classes)"] == (own == labels).mean()
    assert {row["state"] for row in states(store)} == {"complete"}


RECIPE = """
recipe: ordered
steps:
  f: {stage: train-sensing, dataset: twice, preset: quick, epochs: 1, classes: NAMES}
  features: {stage: extract, dataset: twice, model: f, classes: NAMES}
"""


def test_a_recipe_names_classes_and_its_sets_are_not_stale(
    run: Run, home: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        write_folders(home / "written", NUMBERS)
        (home / "twice").mkdir(exist_ok=True)
        (home / "written/test").rename(home / f"twice/{split}")
    names = ", ".join(f'"{name}"' for name in NUMBERS)
    (home / "ordered.yaml").write_text(RECIPE.replace("NAMES", f"[{names}]"))

    run("run ordered.yaml --executor local")

    store = FeatureStore(str(tmp_path / "store"))
    (features,) = store.feature_sets()
    assert features.plan["inputs"]["source"]["class_names"] == list(NUMBERS)
    assert features.samples()["label"].tolist() == [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8]
    assert {row["state"] for row in states(store)} == {"complete"}
    (home / "twice/test/1/0.png").rename(home / "twice/test/2/1.png")
    assert "stale" in {row["state"] for row in states(store)}
