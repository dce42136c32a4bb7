"""Networks that fail the checks are refused on the command line, and nothing is written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import odd_networks
import pytest
import torch
from conftest import Command
from PIL import Image

from stages.sensing.build import build_network, located
from stages.sensing.card import ModelCard
from stages.sensing.model import describe
from stages.sensing.models import WEIGHTS_KEY
from stages.sensing.trust import trust
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore

Run = Callable[..., str]

SMALL = "--executor local --shard-rows 9"
CLASSES = tuple(map(str, range(4)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images as arrays and as files, networks, and their weights."""
    folder = tmp_path_factory.mktemp("home")
    images = np.random.default_rng(0).integers(0, 256, (18, 32, 32, 3), np.uint8)
    (folder / "data").mkdir()
    for split in ("train", "test"):
        np.savez(folder / f"data/{split}.npz", images=images, labels=np.arange(18) % 4)
    (folder / "photos").mkdir()
    for row, image in enumerate(images):
        Image.fromarray(image).save(folder / f"photos/{row:02d}.png")
    labels = "".join(f"{row:02d}.png,{row % 2}\n" for row in range(6))
    (folder / "labels.csv").write_text(f"sample_id,label\n{labels}")
    shutil.copy(odd_networks.__file__, folder / "nets.py")
    for name in (
        *odd_networks.NOT_THE_HEAD,
        *odd_networks.CHANCE,
        "less_mean",
        "typed",
        "ordinary",
        "call_counting",
        "training_norm",
    ):
        torch.manual_seed(0)
        network = build_network(f"{folder}/nets.py:{name}", 4)
        (folder / f"{name}.safetensors").write_bytes(save_weights(network))
    return folder


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command) -> Run:
    monkeypatch.setenv("INTRO_PIPE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(home)

    def command(words: str, code: int = 0, *, is_read: bool = False) -> str:
        out, err = intro_pipe(words, code)
        return out if code == 0 or is_read else err

    return command


def extract(name: str, more: str = "") -> str:
    network = f"--network nets.py:{name} --weights {name}.safetensors"
    return f"extract --dataset data {network} {SMALL} {more}"


def refused(run: Run, words: str, store: Path) -> str:
    """The one-line error of a command that is refused before anything is written."""
    said = run(words, 2)
    line = said.strip().splitlines()[-1]
    assert "Traceback" not in said
    assert not store.exists()
    return line


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *(("cosine", ""), ("hooked", "--dry-run"), ("lora", "--precision bf16"), ("typed", "")),
        *(("scaled", ""), ("centred", "")),
    ],
)
def test_extract_refuses_a_different_last_layer(
    run: Run, tmp_path: Path, name: str, more: str
) -> None:
    said = refused(run, extract(name, more), tmp_path / "store")
    assert re.match(f"intro-pipe: model {name}: .*last layer 'fc'", said)


@pytest.mark.parametrize("name", ["dropping", "noisy", "less_mean"])
def test_extract_refuses_unstable_networks(run: Run, tmp_path: Path, name: str) -> None:
    said = refused(run, extract(name), tmp_path / "store")
    assert re.match(f"intro-pipe: model {name}: .*--accept-unstable", said)


def test_extract_accepts_it_on_request_and_every_plan_records_it(run: Run, tmp_path: Path) -> None:
    found = json.loads(run(extract("less_mean", "--accept-unstable --json")))
    store = FeatureStore(str(tmp_path / "store"))
    plan = store.open(found["feature_set"]).plan
    assert plan["inputs"]["model"]["extra"]["accepts"] == "unstable"
    again = json.loads(run(f"extract --dataset data --model less_mean {SMALL} --json"))
    assert again["feature_set"] == found["feature_set"]
    run(f"extract --dataset data --split train --model less_mean {SMALL}")


def test_plans_of_other_networks_do_not_know_the_option(run: Run, tmp_path: Path) -> None:
    run(extract("ordinary"))
    (found,) = FeatureStore(str(tmp_path / "store")).feature_sets()
    assert "accepts" not in json.dumps(found.plan)


TRAINING = "train-sensing --dataset data --preset quick --epochs 1"
LEARNING = "active-learn --dataset data --epochs 1 --rounds 1 --start 4"
ASKING = "active-learn --dataset photos --epochs 1 --ask 2 --labels labels.csv --out asked"


@pytest.mark.parametrize(
    ("command", "name", "reason"),
    [
        (TRAINING, "cosine", "not W f"),
        (TRAINING, "dropping", "depend on chance"),
        (LEARNING, "cosine", "not W f"),
        (f"{LEARNING} --seeds 0,1", "less_mean", "other images"),
        (ASKING, "hooked", "not W f"),
        (ASKING, "noisy", "depend on chance"),
    ],
)
def test_networks_are_refused_before_they_are_trained(
    run: Run, tmp_path: Path, home: Path, command: str, name: str, reason: str
) -> None:
    assert reason in refused(run, f"{command} --network nets.py:{name}", tmp_path / "store")
    assert not (home / "asked").exists()


def test_training_accepts_it_on_request_and_the_model_records_it(run: Run, tmp_path: Path) -> None:
    run(f"{TRAINING} --network nets.py:dropping --accept-unstable")
    run(f"extract --dataset data --model dropping {SMALL}")
    model = FeatureStore(str(tmp_path / "store")).artifact("model", "dropping")
    assert model.card()["card"]["extra"]["accepts"] == "unstable"
    assert model.plan()["stage"]["params"]["accepts"] == "unstable"


def test_a_network_that_depends_on_the_memory_layout_is_trained_and_extracted(run: Run) -> None:
    run(f"{TRAINING} --network nets.py:viewing")
    run(f"extract --dataset data --model viewing {SMALL}")


def test_a_network_that_counts_its_calls_is_trained_and_extracted(run: Run) -> None:
    run(f"{TRAINING} --network nets.py:call_counting")
    run(f"extract --dataset data --model call_counting {SMALL}")
    run(extract("call_counting", "--model taken-in"))


def test_a_network_that_learns_in_eval_mode_is_extracted_if_accepted(run: Run) -> None:
    run(extract("training_norm", "--accept-unstable"))
    run(f"extract --dataset data --split train --model training_norm {SMALL}")


def put(store: FeatureStore, home: Path, name: str) -> ModelCard:
    """A model imported as before networks were checked."""
    source = located(f"{home}/nets.py:{name}")
    torch.manual_seed(0)
    network = build_network(source, 4).eval()
    card = describe(
        network,
        name=name,
        network_name=source,
        class_names=CLASSES,
        image_size=32,
        family="data",
    )
    artifact = store.prepare().artifact("model", name)
    plan = {"stage": {"name": "import-model", "version": 1}, "card": card.to_dict()}
    artifact.claim(plan)
    facts = {"card": card.to_dict()}
    artifact.write({WEIGHTS_KEY: save_weights(network)}, facts, plan=plan)
    return card


def test_active_learning_refuses_such_a_network(run: Run, tmp_path: Path) -> None:
    words = f"{LEARNING} --network nets.py:viewing"
    assert "use reshape or flatten" in refused(run, words, tmp_path / "store")


@pytest.mark.parametrize("name", ["hooked", "typed", "less_mean"])
def test_a_model_that_is_in_the_store_is_checked_as_well(
    run: Run, tmp_path: Path, home: Path, name: str
) -> None:
    put(FeatureStore(str(tmp_path / "store")), home, name)
    trust(f"{home}/nets.py:{name}")
    said = run(f"extract --dataset data --model {name} {SMALL}", 2)
    assert f"model {name}: " in said
    said = run(f"extract --dataset data --model {name} {SMALL} --split train --retry-failed", 2)
    assert "--retry-failed: data-train@" in said
    assert " has no rows in " in said
    assert list(FeatureStore(str(tmp_path / "store")).feature_sets()) == []


def extract_unchecked(run: Run, monkeypatch: pytest.MonkeyPatch, name: str, more: str = "") -> str:
    """Create a set as before networks were checked; returns its name."""
    with monkeypatch.context() as patch:
        patch.setattr("stages.sensing.model.check_head", lambda *_: None)
        patch.setattr("stages.sensing.model.check_stable", lambda *_: None)
        patch.setattr("stages.sensing.model.disagreement", lambda *_: "")
        said = json.loads(run(f"extract --dataset data --model {name} {SMALL} {more} --json"))
    return str(said["feature_set"])


def test_predict_refuses_a_model_that_is_in_the_store(
    run: Run, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "cosine"
    store = FeatureStore(str(tmp_path / "store"))
    put(store, home, name)
    trust(f"{home}/nets.py:{name}")
    found = extract_unchecked(run, monkeypatch, name)
    run(f"fit-temperature --features {found} --name warm")
    assert f"model {name}: " in run("predict photos --head warm", 2)
    assert f"model {name}: " in run("predict --head warm --export program.pt2", 2)
    assert not (home / "program.pt2").exists()


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("ordinary", []),
        (
            "cosine",
            ["would refuse it: model cosine: its logits are not W f", "different logits (by up to"],
        ),
        (
            "less_mean",
            ["would refuse it: model less_mean: an image", "different features (by up to"],
        ),
    ],
)
def test_verify_probes_a_set_of_an_older_version(
    run: Run,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    reasons: list[str],
) -> None:
    put(FeatureStore(str(tmp_path / "store")), home, name)
    trust(f"{home}/nets.py:{name}")
    found = extract_unchecked(run, monkeypatch, name)
    run(f"verify {found}")
    code = 1 if reasons else 0
    said = json.loads(run(f"verify {found} --probe --json", code, is_read=True))["problems"]
    assert len(said) == len(reasons)
    for problem, reason in zip(said, reasons, strict=True):
        assert problem["kind"] == "other rows"
        assert reason in problem["detail"]
    assert all(problem["detail"].endswith("in a sample of 16 rows") for problem in said[1:])


def test_a_set_that_cannot_be_probed_does_not_hide_the_others(
    run: Run, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(str(tmp_path / "store"))
    found = {}
    for name in ("ordinary", "cosine"):
        put(store, home, name)
        trust(f"{home}/nets.py:{name}")
        found[name] = extract_unchecked(run, monkeypatch, name)
    for journal in (tmp_path / "store" / "journal").iterdir():
        if "ordinary" in journal.read_text():
            journal.unlink()
    said = json.loads(run("verify --probe --json", 1, is_read=True))["problems"]
    kinds = {(problem["set_name"], problem["kind"]) for problem in said}
    assert kinds == {(found["ordinary"], "not probed"), (found["cosine"], "other rows")}
    assert "the journal does not record where its images are" in str(said)


def test_the_finished_shards_of_a_partial_set_are_probed(
    run: Run, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(FeatureStore(str(tmp_path / "store")), home, "ordinary")
    trust(f"{home}/nets.py:ordinary")
    found = extract_unchecked(run, monkeypatch, "ordinary", "--shard-rows 10")
    receipts = tmp_path / "store" / "features" / found / "receipts"
    (receipts / "00001.json").unlink()
    problems = json.loads(run(f"verify {found} --probe --json"))["problems"]
    assert {problem["kind"] for problem in problems} <= {"missing shard", "data without receipt"}


def test_a_set_of_an_unstable_network_that_was_accepted_probes_clean(run: Run) -> None:
    found = json.loads(run(extract("less_mean", "--accept-unstable --json")))["feature_set"]
    assert json.loads(run(f"verify {found} --probe --json"))["problems"] == []


def test_a_probe_reports_a_file_that_became_unreadable(
    run: Run, tmp_path: Path, home: Path
) -> None:
    photos = tmp_path / "photos"
    for row, file in enumerate(sorted((home / "photos").iterdir())):
        place = photos / "test" / CLASSES[row % 4]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    large = photos / "test" / "0" / "00.png"
    noise = np.random.default_rng(1).integers(0, 256, (800, 800, 3), np.uint8)
    Image.fromarray(noise).save(large)
    network = f"--network nets.py:ordinary --weights {home}/ordinary.safetensors"
    said = json.loads(run(f"extract --dataset {photos} {network} {SMALL} --json"))
    with large.open("r+b") as content:
        content.seek(70_000)  # the fingerprint does not cover these bytes
        content.write(bytes(30_000))
    found = json.loads(run(f"verify {said['feature_set']} --probe --json", 1, is_read=True))
    (problem,) = found["problems"]
    assert problem["detail"].startswith("row 0: test/0/00.png: ")
