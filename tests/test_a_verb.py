"""A stage that a test defines is a command, a journal entry and an output like any other."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clouds import clouds
from conftest import Command
from made import make_in
from small_data import write_npz_set

from pipeline.journal import runs
from stages.recipes.steps import kinds
from stages.verbs import MODULES
from store.catalog import FeatureStore

TESTS = Path(__file__).parent
PROGRAM = """\
import sys
from stages.recipes.steps import kinds
from stages.verbs import MODULES
MODULES["count-rows"] = "a_verb"
from cli.app import main
sys.argv[0] = "intro-pipe"
main()
"""
"""The program with one more line in its registry."""

KILLED_PROGRAM = (
    """\
import os, signal
from store.artifacts import Artifact
Artifact.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
    + PROGRAM
)
"""The same, killed when it is about to publish an output."""


@pytest.fixture
def place(store: FeatureStore) -> FeatureStore:
    clouds(store)
    return store


def run(store: FeatureStore, *words: str, code: int = 0, program: str = PROGRAM) -> str:
    environment = {
        **os.environ,
        "INTRO_PIPE_STORE": store.location,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "COLUMNS": "100",
    }
    ended = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    return ended.stdout if code == 0 else ended.stderr


def test_it_is_listed_and_has_its_options_in_the_help(place: FeatureStore) -> None:
    assert "Count the rows of a feature set." in run(place, "--help")
    shown = run(place, "count-rows", "--help")
    for part in ("--features", "Feature set whose rows are counted.", "--times", "[default: 1]"):
        assert part in shown
    assert "Example: intro-pipe count-rows --features clouds@net" in shown
    assert "--device" not in shown


def test_it_runs_and_its_output_and_journal_are_in_the_store(place: FeatureStore) -> None:
    words = ("count-rows", "--features", "clouds-train@net", "--times", "2")
    assert json.loads(run(place, *words, "--dry-run", "--json"))["result"].endswith("-rows")
    assert list(place.artifacts("result")) == []
    name = json.loads(run(place, *words, "--json"))["result"]
    assert place.artifact("result", name).card()["rows"] == 600
    assert name in run(place, "status")
    (journal,) = runs(place.location)
    assert journal.outcome == "done"
    assert journal.events[0]["stage"] == {
        "stage": "count-rows",
        "features": "clouds-train@net",
        "times": 2,
    }


RECIPE = """\
recipe: counted
parameters: {factors: [2, 3]}
steps:
  f: {stage: train-sensing, dataset: tiny, preset: quick, epochs: 1}
  x: {stage: extract, dataset: tiny, model: f}
  n: {stage: count-rows, each: {factor: $factors}, features: x, times: $factor}
"""


@pytest.fixture
def _registered() -> Iterator[None]:
    """The verb is in the registry of this process."""
    MODULES["count-rows"] = "a_verb"
    kinds.cache_clear()
    yield
    del MODULES["count-rows"]
    kinds.cache_clear()


@pytest.mark.usefixtures("_registered")
def test_it_is_a_step_of_recipes(store: FeatureStore, tmp_path: Path, intro_pipe: Command) -> None:
    write_npz_set(tmp_path / "data" / "tiny", 60, 20)
    recipe = tmp_path / "counted.yaml"
    recipe.write_text(RECIPE)
    places = f"--store {store.location} --data-root {tmp_path / 'data'}"
    command = f"run {recipe} {places} --executor local"
    assert "complete" not in intro_pipe(f"{command} --status")[0]
    intro_pipe(command)
    counts = [artifact.card()["rows"] for artifact in store.artifacts("result")]
    assert sorted(counts) == [40, 60]
    assert "counted: 4 steps, 4 cached, 0 computed in " in intro_pipe(command)[0]
    recipe.write_text(RECIPE.replace("times: $factor", "times: 0"))
    assert "step n: times: expected greater than 0, found 0" in intro_pipe(command, code=2)[1]


def test_a_killed_run_is_resumed(place: FeatureStore) -> None:
    words = ("count-rows", "--features", "clouds-train@net", "--times", "3")
    run(place, *words, code=-9, program=KILLED_PROGRAM)
    assert [each.outcome for each in runs(place.location)] == ["unfinished"]
    name = json.loads(run(place, "resume", "--json"))["result"]
    assert place.artifact("result", name).card()["rows"] == 900
    resumed, killed = runs(place.location)
    assert (resumed.outcome, resumed.resumes) == ("done", killed.name)
    assert (resumed.stage, resumed.command) == (killed.stage, killed.command)
    assert "nothing to resume" in run(place, "resume", code=2)


def test_an_option_out_of_range_is_refused_in_one_line(place: FeatureStore) -> None:
    words = ("count-rows", "--features", "clouds-train@net", "--times", "0")
    assert run(place, *words, code=2) == ("intro-pipe: --times: expected greater than 0, found 0\n")
    assert list(runs(place.location)) == []


def test_a_python_program_makes_the_same(place: FeatureStore) -> None:
    from a_verb import CountRows

    first = make_in(place, CountRows(features="clouds-train@net", times=2))
    again = run(place, "count-rows", "--features", "clouds-train@net", "--times=2", "--json")
    assert json.loads(again)["result"] == first.name
    assert len(list(runs(place.location))) == 1


def test_the_recipe_in_python_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (TESTS.parent / "docs" / "recipes.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.S)
    short = program.replace("epochs=5", "epochs=1, limit=200").replace('split="train", ', "")
    monkeypatch.chdir(tmp_path)
    exec(short.replace("epochs=20", "epochs=60"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["f", "temperature", "mse-m", "ce"]
