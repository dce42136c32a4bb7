"""Imported networks on the command line: units, names, other data sets, failed runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from small_data import digits, write_npz_set

from stages.sensing.build import build_network
from store.catalog import FeatureStore

NET = """
from torch.nn import AdaptiveAvgPool2d, Flatten, Linear, Sequential

def net(n_classes):
    return Sequential(AdaptiveAvgPool2d(4), Flatten(), Linear(48, n_classes))
"""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled sets of ten classes, one of eight, one of no class, and a network's weights."""
    folder = tmp_path_factory.mktemp("inputs")
    write_npz_set(folder / "first", 40, 40)
    images, labels = digits(400)
    for name, rows in (("second", slice(100, 160)), ("eight", labels < 8)):
        np.savez(folder / f"{name}.npz", images=images[rows][:60], labels=labels[rows][:60])
    for name, names in (("named", "abcdefghij"), ("letters", "klmnopqrst")):
        path = folder / f"{name}.npz"
        np.savez(path, images=images[:60], labels=labels[:60], class_names=list(names))
    np.savez(folder / "unlabelled.npz", images=images[200:230])
    (folder / "mine.py").write_text(NET)
    for number in (0, 1):
        torch.manual_seed(number)
        weights = build_network(f"{folder / 'mine.py'}:net", 10).state_dict()
        torch.save(weights, folder / f"w{number}.pt")
    return folder


@pytest.fixture
def run(
    store: FeatureStore,
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    intro_pipe: Command,
) -> Run:
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    monkeypatch.setenv("INTRO_PIPE_DATA", str(inputs))
    monkeypatch.chdir(inputs)

    def command(words: str, code: int = 0) -> str:
        out, err = intro_pipe(words, code)
        return out if code == 0 else err

    return command


def extract(dataset: str, more: str = "", weights: str = "w0.pt") -> str:
    words = f"extract --executor local --dataset {dataset} --network mine.py:net"
    return f"{words} --weights {weights} --image-size 16 {more}"


def card_of(store: FeatureStore, name: str = "net") -> dict[str, Any]:
    return dict(store.artifact("model", name).card()["card"])


# Units


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--mean 123.675,116.28,103.53", "divided by 255 they are --mean 0.485,0.456,0.406"),
        ("--std 58.395,57.12,57.375", "divided by 255 they are --std 0.229,0.224,0.225"),
        ("--mean 0.5,0.5,0.5 --std 127.5,127.5,127.5", "--std 0.5,0.5,0.5"),
        ("--std 0,0.2,0.2", "--std 0,0.2,0.2: expected more than 0 and at most 1"),
        ("--mean -0.5,0,0", "--mean -0.5,0,0: expected 0 or more and at most 1"),
        ("--mean nan,0,0", "--mean: expected a finite number"),
        ("--mean 0.5,0.5", "--mean: expected three numbers, one per channel"),
        ("--mean 0.5,0.5,0.5,0.5", "--mean: expected three numbers, one per channel"),
    ],
)
def test_a_normalisation_in_other_units_is_refused_and_nothing_is_written(
    run: Run, store: FeatureStore, more: str, said: str
) -> None:
    before = set(Path(store.location).rglob("*"))
    assert said in run(extract("first", more), code=2)
    assert set(Path(store.location).rglob("*")) == before


def test_status_doubts_a_model_of_an_older_version_and_opens_it(
    run: Run, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # as version 0.3 imported it
        patch.setattr("stages.sensing.model.check_normalisation", lambda *_: None)
        run(extract("first", "--mean 123.675,116.28,103.53 --std 58.395,57.12,57.375"))
    rows = json.loads(run("status --json"))["contents"]
    (model,) = (row for row in rows if row["kind"] == "model")
    assert model["state"] == "complete"
    assert model["detail"].startswith("its features are doubtful: --mean 123.675,116.28,103.53")
    assert "60 rows" in run("extract --executor local --dataset second.npz --model net")


# The same network on a second data set


@pytest.mark.parametrize(
    "dataset", ["second.npz", "unlabelled.npz", "eight.npz", "first --split train"]
)
def test_a_network_takes_a_second_data_set_and_keeps_its_card(
    run: Run, store: FeatureStore, dataset: str
) -> None:
    run(extract("first"))
    card = card_of(store)
    run(extract(dataset))
    assert card_of(store) == card
    assert len(store.artifacts("model")) == 1
    models = [each.plan["inputs"]["model"] for each in store.feature_sets()]
    assert (len(models), models[0]) == (2, models[1])


def test_heads_serve_both_data_sets_of_a_network(run: Run, store: FeatureStore) -> None:
    run(extract("first", "--split train"))
    run(extract("second.npz"))
    run("train-head --features first-train@net --epochs 30 --weight-decay 0 --layers 8")
    judged = json.loads(run("evaluate --features second@net --resamples 0 --json"))
    assert {row["predictor"] for row in judged["average"]} == {"f", "H"}
    run("train-head --features second@net --name other --epochs 30 --weight-decay 0 --layers 8")


@pytest.mark.parametrize(
    ("more", "weights", "said"),
    [
        ("", "w1.pt", "weights_sha256"),
        ("--mean 0.5,0.5,0.5", "w0.pt", "mean: [0.5, 0.5, 0.5], found [0.4914, 0.4822, 0.4465]"),
        ("--std 0.5,0.5,0.5", "w0.pt", "std: [0.5, 0.5, 0.5], found"),
        ("--image-size 32", "w0.pt", "image_size: 32, found 16"),
    ],
)
def test_another_model_is_refused_under_the_same_name(
    run: Run, store: FeatureStore, more: str, weights: str, said: str
) -> None:
    run(extract("first"))
    before = set(Path(store.location).rglob("*"))
    refused = run(extract("second.npz", more, weights), code=2)
    assert "the store holds another model 'net' (" in refused
    assert said in refused
    assert "give this one another name with --model NAME" in refused
    assert set(Path(store.location).rglob("*")) == before
    run(extract("second.npz", f"{more} --model another", weights))


def test_a_second_data_set_of_other_classes_is_refused(run: Run, store: FeatureStore) -> None:
    run(extract("named.npz"))
    refused = run(extract("letters.npz"), code=2)
    assert "10 classes (a, b, c, d, ...), letters has 10 (k, l" in refused
    assert [each.plan["inputs"]["source"]["name"] for each in store.feature_sets()] == ["named"]


def test_a_trained_model_and_its_own_weights_are_one(run: Run, store: FeatureStore) -> None:
    run("train-sensing --dataset first --preset quick --epochs 1")
    weights = f"{store.location}/models/cnn2/weights.safetensors"
    mean, std = (",".join(map(str, card_of(store, "cnn2")[key])) for key in ("mean", "std"))
    words = f"--network cnn2 --weights {weights} --mean {mean} --std {std}"
    card = card_of(store, "cnn2")
    run(f"extract --executor local --dataset second.npz {words}")
    assert card_of(store, "cnn2") == card


def test_a_model_whose_import_was_killed_does_not_block_its_name(
    run: Run, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("store.artifacts.Artifact.stage", killed)
        run(extract("first", weights="w1.pt"), code=130)
    assert not store.artifact("model", "net").is_complete()
    run(extract("first"))
    assert card_of(store)["image_size"] == 16


def test_a_diverged_network_does_not_block_its_name(run: Run, store: FeatureStore) -> None:
    words = "train-sensing --dataset first --preset quick --epochs 2"
    assert "diverged" in run(f"{words} --lr 1e30", code=1)
    assert "diverged" in run(f"{words} --lr 1e30", code=1)
    run(words)
    assert store.artifact("model", "cnn2").card()["recipe"]["lr"] == 0.02
