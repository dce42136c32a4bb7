"""The run and reproduce commands: their output, and what is recomputed after a kill."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import takewhile
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_recipe import TINY, write_tiny_data

from cli.app import main
from pipeline.errors import RecipeError
from pipeline.journal import runs
from stages.recipes.shipped import recipe_of

REPOSITORY = Path(__file__).parents[1]
DEADLINE_S = 200.0


@pytest.fixture
def place(tmp_path):
    """A folder with a recipe, its data set, and room for a store."""
    write_tiny_data(tmp_path / "data")
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def said(place, monkeypatch, capsys):
    """Exit code, what goes to stdout and to stderr of a command, in this process."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that are killed, because sums are rounded
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("INTRO_PIPE_DATA", str(place / "data"))
    monkeypatch.setenv("INTRO_PIPE_STORE", str(place / "store"))

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["intro-pipe", *words])  # what main() reads
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    yield command
    torch.set_num_threads(n_threads)


def killed(place, is_time, *words):
    """Run until ``is_time``, then kill without a word; fails where the run was faster."""
    environment = {
        **os.environ,
        "INTRO_PIPE_DATA": str(place / "data"),
        "INTRO_PIPE_STORE": str(place / "store"),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",  # sums are rounded otherwise where there are more threads
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.app", *words],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + DEADLINE_S
    while not is_time() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def numbers_of(store):
    """Everything that a recipe has computed in a store: files by name and hash, tables as such."""
    features = {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for kind in ("features", "models", "heads")
        for path in sorted((store / kind).rglob("*"))
        if path.is_file() and path.suffix in ("", ".safetensors", ".parquet", ".csv")
    }
    results = {
        str(path.relative_to(store)): pd.read_parquet(path)
        for path in sorted((store / "results").rglob("*.parquet"))
    }
    tables = [path.read_text() for path in sorted((store / "reports").rglob("table.csv"))]
    return features, results, tables


RUN = ("run", "tiny.yaml", "--executor", "local", "--set", "losses=[ce]")


# Where a run is killed: after the first file, and before the second.
IN_A_MODEL = ("models/*/checkpoints/*.json", "models/*/model.json")
IN_A_HEAD = ("heads/*/checkpoints/*.json", "heads/*/head.json")
IN_A_RESULT = ("results/*/plan.json", "results/*/result.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        [IN_A_RESULT],
        pytest.param([IN_A_MODEL, IN_A_HEAD, IN_A_RESULT], marks=pytest.mark.soak),
    ],
)
def test_a_recipe_that_is_killed_gives_the_numbers_of_one_run(place, said, moments):
    store = place / "store"
    for first, second in moments:
        killed(place, lambda first=first: any(store.glob(first)), *RUN)
        assert not list(store.glob(second))

    code, _, error = said("resume", "--executor", "local")
    assert code == 0, error
    assert "tiny: 10 steps: 8 cached, 2 to compute" in error
    assert said(*RUN, "--store", str(place / "other"))[0] == 0
    resumed, *killed_runs = runs(str(store))
    assert len(killed_runs) == len(moments)
    assert resumed.stage == {
        "stage": "run",
        "recipe": str(place / "tiny.yaml"),
        "changes": ["losses=[ce]"],
        "folder": str(place),
    }
    assert {run.outcome for run in killed_runs} == {"unfinished"}

    (files, results, tables), (others, their_results, their_tables) = (
        numbers_of(store),
        numbers_of(place / "other"),
    )
    assert len(files) > 20
    assert files == others
    assert results.keys() == their_results.keys()
    for name, table in results.items():
        pd.testing.assert_frame_equal(table, their_results[name])
    assert tables == their_tables
    assert len(tables) == 1


def test_status_shows_the_progress_of_a_recipe(place, said):
    code, out, _ = said("run", "tiny.yaml", "--status")

    assert code == 0
    assert "f              train-sensing    missing  to be made as cnn2-" in out
    assert "tiny: 11 of 11 steps left" in out
    assert not (place / "store").exists()


def test_a_dry_run_prints_what_it_would_make_as_json(place, said):
    code, out, _ = said("run", "tiny.yaml", "--dry-run", "--json", "--set", "losses=[ce]")
    found = json.loads(out)

    assert code == 0
    assert found["parameters"]["losses"] == ["ce"]
    assert [step["step"] for step in found["steps"]][:3] == ["hard", "f", "train"]
    assert not (place / "store").exists()


def test_a_wrong_recipe_is_one_line_and_exit_code_2(place, said):
    (place / "wrong.yaml").write_text(TINY.replace("epochs: $epochs", "epoch: $epochs"))
    code, out, error = said("run", "wrong.yaml")

    assert (code, out) == (2, "")
    assert error.startswith(
        "intro-pipe: wrong.yaml:11: step f: unknown key 'epoch' (did you mean 'epochs'?)"
    )
    assert error.count("\n") == 1
    assert not (place / "store").exists()


def test_a_recipe_is_checked_without_the_heavy_libraries(place):
    (place / "wrong.yaml").write_text(TINY.replace("epochs: $epochs", "epoch: $epochs"))
    code = (
        "import sys; from cli.verbs import run_stage\n"
        "from stages.verbs import stage_of\n"
        "values = dict(recipe='wrong.yaml', store='s', dry_run=False, as_json=False)\n"
        "try: run_stage(stage_of('run'), values, ['recipe'])\nexcept ValueError: pass\n"
        "heavy = [name for name in ('torch', 'ray', 'pandas', 'zarr') if name in sys.modules]\n"
        "print(heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "none.yaml"), "none.yaml: cannot be read as a recipe"),
        (("run", "tiny.yaml", "--set", "epochs"), "--set epochs: expected NAME=VALUE"),
        (
            ("run", "tiny.yaml", "--set", "epochs=3", "--set", "epochs=7"),
            "--set epochs=7: epochs is already set to 3: remove one of them",
        ),
        (("run", "tiny.yaml", "--set", "epochs=x"), "expected a whole number such as 6, found x"),
        (("reproduce", "table-13"), "there is no recipe 'table-13', expected one of table-1"),
        (("reproduce",), "expected the name of a recipe"),
    ],
)
def test_invalid_values_are_refused(place, said, words, message):
    code, out, error = said(*words)

    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_the_recipes_that_ship_are_listed_with_what_they_cost(said):
    code, out, _ = said("reproduce", "--list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}

    assert code == 0
    assert rows["table-7"]["heads"] == 30
    assert rows["figure-9"]["extractions"] == 201


def test_a_recipe_that_ships_runs_on_digits(said):
    words = ("--set", "dataset=digits", "--set", "networks=[cnn2]", "--set", "preset=quick")
    code, out, error = said("reproduce", "table-3", *words, "--status")

    assert code == 0, error
    assert "f[network=cnn2]" in out


def example_of_the_docs():
    text = (REPOSITORY / "docs" / "recipes.md").read_text()
    lines = text[text.index("    recipe: losses") :].splitlines(keepends=True)
    return textwrap.dedent("".join(takewhile(lambda line: line.startswith("    "), lines)))


def test_the_example_of_the_docs_is_valid():
    recipe = recipe_of(example_of_the_docs(), "losses.yaml")

    assert len(recipe.instances) == 2 + 2 + 2 + 4 + 2 + 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epochs: $epochs", "epoch: $epochs"),
        ("model: f, dataset: cifar10, split", "model: g, split"),
        ("[mse-m, ce]", "[mse-x, ce]"),
    ],
)
def test_the_error_messages_in_the_docs_are_current(old, new):
    with pytest.raises(RecipeError) as caught:
        recipe_of(example_of_the_docs().replace(old, new), "losses.yaml")

    docs = (REPOSITORY / "docs" / "recipes.md").read_text()
    assert f"    {str(caught.value)[:40]}" in docs
