"""The train-head, fit-temperature and fit-neighbours commands."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from clouds import clouds
from conftest import Command

from cli.app import main
from pipeline.work import Tick
from stages.introspection.head_card import HeadCard, Votes, head_card
from stages.introspection.head_training import HeadState, HeadTraining
from store.catalog import FeatureStore

SHORT = "--epochs 30 --weight-decay 0 --batch-size 16 --layers 8"


@pytest.fixture
def run(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command):
    clouds(store)
    clouds(store, "clouds-test")
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)

    def command(words: str, code: int = 0) -> str:
        out, err = intro_pipe(words, code)
        return out if code == 0 else err

    return command


def as_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def test_three_seeds_are_one_head(run) -> None:
    said = as_json(run(f"train-head --features clouds-train@net --seeds 0,1,2 {SHORT} --json"))
    assert (said["head"], said["seeds"]) == ("net-h", [0, 1, 2])
    assert len(said["train_accuracy"]) == 3


def test_text_names_the_accuracy_of_each_seed_and_m(run) -> None:
    words = f"train-head --features clouds-train@net --seeds 0,1 --precision bf16 {SHORT}"
    said = run(words)
    assert said.startswith("head net-h: accuracy 0.")
    assert said.count("0.") >= 2
    assert ", M = " in said
    assert said.endswith("30 epochs in this run\n")
    assert run(words).endswith("0 epochs in this run\n")


@pytest.mark.parametrize("none", ["--layers none", "--layers="])
def test_a_head_may_have_no_hidden_layer(run, none: str) -> None:
    words = "train-head --features clouds-train@net --reads features --scaling none --epochs 5"
    said = as_json(run(f"{words} {none} --json"))
    assert said["spec"]["layers"] == []
    assert said["spec"]["M"] is None


def test_a_compact_head_is_trained_judged_and_another_plan(run, store: FeatureStore) -> None:
    words = f"train-head --features clouds-train@net --rank 6 --seeds 0,1 {SHORT}"
    said = as_json(run(f"{words} --json"))
    assert said["spec"]["rank"] == 6
    judged = as_json(run("evaluate --features clouds-test@net --resamples 0 --json"))
    assert {row["predictor"] for row in judged["average"]} == {"f", "H"}
    assert "rank" in run(words.replace("--rank 6", ""), code=2)
    assert run(words).endswith("0 epochs in this run\n")


COLLAPSES = "--epochs 2 --weight-decay 1 --batch-size 16 --layers 8"


def test_a_collapsed_head_does_not_block_its_name(run, store: FeatureStore) -> None:
    words = "train-head --features clouds-train@net"
    assert "collapsed after 2 epochs" in run(f"{words} {COLLAPSES}", code=1)
    assert "collapsed after 2 epochs" in run(f"{words} {COLLAPSES}", code=1)
    for command in ("ls", "status"):
        said = run(command)
        (row,) = [line for line in said.splitlines() if line.startswith("head ")]
        assert row.endswith("not finished")
        assert said.count("net-h (head): head of seed 0: collapsed after 2 epochs") == 1
    assert run(f"{words} {SHORT} --dry-run").startswith("would train head net-h")
    assert run(f"{words} {SHORT}").endswith("30 epochs in this run\n")
    assert "was made with another plan" in run(f"{words} {COLLAPSES}", code=2)


def test_a_collapsed_head_leaves_its_name_to_a_temperature(run, store: FeatureStore) -> None:
    run(f"train-head --features clouds-train@net --name x {COLLAPSES}", code=1)
    assert run("fit-temperature --features clouds-test@net --name x").startswith("head x: T = ")
    assert run("verify").endswith("0 problems, 0 notes\n")


def test_a_diverged_head_does_not_block_its_name(run) -> None:
    words = "train-head --features clouds-train@net"
    said = run(f"{words} {SHORT} --lr 1e38 --reads features --scaling none", code=1)
    assert "lower the learning rate" in said
    assert run(f"{words} {SHORT}").endswith("30 epochs in this run\n")


def test_an_interrupted_head_keeps_its_name(
    run, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = HeadTraining.step

    def step(stage: HeadTraining, state: HeadState, unit: int, tick: Tick) -> dict[str, float]:
        if unit == 7:
            raise KeyboardInterrupt
        return whole(stage, state, unit, tick)

    words = f"train-head --features clouds-train@net {SHORT}"
    with monkeypatch.context() as patch:
        patch.setattr(HeadTraining, "step", step)
        run(words, code=130)
    said = run(f"{words} --dropout 0.5", code=2)
    assert "head 'net-h' was started with another plan" in said
    assert f"or remove {store.location}/heads/net-h\n" in said
    assert run(words).endswith("23 epochs in this run\n")


def test_a_head_that_does_not_fit_into_memory_is_refused(
    run, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.introspection.train_head.free_bytes", lambda: 10_000)
    said = run(
        f"train-head --features clouds-train@net {SHORT.replace('--layers 8', '--layers 300')}",
        code=2,
    )
    assert "4,803 parameters take" in said
    assert "--rank" in said
    assert said.count("\n") == 1
    assert not store.artifacts("head")


def test_a_temperature_reports_its_gain(run) -> None:
    said = run("fit-temperature --features clouds-test@net")
    assert said.startswith("head net-temperature: T = ")
    assert "on 299 rows" in said
    again = as_json(run("fit-temperature --features clouds-test@net --json"))
    assert again["nll_after"] < again["nll_before"]


def test_temperatures_of_a_head_report_their_gain(run, store: FeatureStore) -> None:
    run(f"train-head --features clouds-train@net {SHORT}")
    said = run("fit-temperature --features clouds-test@net --head net-h")
    assert said.startswith("head net-h-tempered: negative log-likelihood on clouds-test@net-")
    assert said.count("(T = ") == 1
    seen = run("evaluate --features clouds-test@net --head H=net-h --head HT=net-h-tempered")
    accuracies = {line.split()[0]: line.split()[1] for line in seen.splitlines() if "H" in line}
    assert accuracies["H"] == accuracies["HT"]
    (result,) = store.artifacts("result")
    run(f"report {result.name} --name page")
    page = store.artifact("report", "page").read("report.md").decode()
    assert "are divided by a temperature for each seed, fitted on clouds-test@net" in page


@pytest.mark.parametrize(("split", "is_noted"), [("train", True), ("test", False)])
def test_a_temperature_of_training_images_is_noted(
    store: FeatureStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    split: str,
    is_noted: bool,
) -> None:
    clouds(store, f"clouds-{split}")
    words = ["fit-temperature", "--features", f"clouds-{split}@net", "--store", store.location]
    monkeypatch.setattr(sys, "argv", ["intro-pipe", *words])  # what main() reads
    with pytest.raises(SystemExit):
        main()
    assert ("f is more confident than on new ones" in capsys.readouterr().err) == is_noted
    assert store.artifact("head", "net-temperature").card()["split"] == split


@pytest.mark.parametrize("reads", ["features", "reflection", "features+logits"])
def test_neighbours_are_named_after_what_they_compare(run, reads: str) -> None:
    said = as_json(run(f"fit-neighbours --features clouds-train@net --reads {reads} --json"))
    assert said["head"] == f"net-10nn-{reads}"
    assert said["spec"]["k"] == 10


def test_weighted_neighbours_are_read_from_the_store(run, store: FeatureStore) -> None:
    options = "--features clouds-train@net --k 7"
    equal = as_json(run(f"fit-neighbours {options} --dry-run --json"))
    said = as_json(run(f"fit-neighbours {options} --temperature 0.5 --json"))
    assert "temperature" not in equal["plan"]["stage"]["params"]
    assert said["head"] == "net-7nn-features-weighted"
    card = head_card(store.artifact("head", said["head"]))
    assert isinstance(card.predictor, Votes)
    assert (card.predictor.k, card.predictor.temperature) == (7, 0.5)
    assert HeadCard.from_dict(card.summary()).predictor == card.predictor


@pytest.mark.parametrize(
    "words",
    [
        f"train-head --features clouds-train@net {SHORT}",
        "fit-temperature --features clouds-test@net",
        "fit-neighbours --features clouds-train@net --k 5",
    ],
)
def test_a_dry_run_gives_the_plan_and_writes_nothing(run, store: FeatureStore, words: str) -> None:
    before = set(Path(store.location).rglob("*"))
    planned = as_json(run(f"{words} --dry-run --json"))
    assert set(Path(store.location).rglob("*")) == before
    run(words)
    assert store.artifact("head", planned["name"]).plan() == planned["plan"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "train-head --features clouds-train@net --layers 3,x",
            "--layers: expected a valid int",
        ),
        ("train-head --features clouds-train@net --seeds none", "--seeds: "),
        ("train-head --features clouds-train@net --precision fp16", "expected 'fp32' or 'bf16'"),
        ("train-head --features clouds-train@net --rows odd", "expected 'all' or 'held-out'"),
        ("train-head --features clouds-train@net --rows held-out", "model 'net' does not exist"),
        ("train-head --features clouds-train@net --reads x", "--reads: expected some of"),
        ("train-head --features clouds-train@net --reads features --loss ce", "has no loss"),
        ("train-head --features clouds-train@net --reads features --rank 3", "expected reads"),
        ("fit-neighbours --features clouds-train@net --k 300", "found k 300 and 299 rows"),
        ("fit-neighbours --features clouds-train@net --temperature 0", "--temperature: expected"),
    ],
)
def test_invalid_values_are_refused_in_one_line(
    run, store: FeatureStore, words: str, message: str
) -> None:
    said = run(words, code=2)
    assert message in said
    assert said.count("\n") == 1
    assert not store.artifacts("head")
