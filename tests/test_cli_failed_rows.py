"""Sets with too many failed rows on the command line: refused until retried or accepted."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from made import make_in
from PIL import Image
from small_data import train_small, write_image_folder

from stages.evaluation.evaluate import Evaluate
from stages.ood.detect import Detect
from store.catalog import FeatureStore
from store.errors import FailedRowsError

N_IMAGES = 24
Run = Callable[..., str]


@pytest.fixture
def run(intro_pipe: Command) -> Run:
    """The output of a command: its results, or its stderr if it fails."""

    def command(words: str, code: int = 0) -> str:
        out, err = intro_pipe(words, code)
        return out + err if code == 0 else err

    return command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, and the images of its test split, none of which can be read."""
    write_image_folder(tmp_path / "images", N_IMAGES)
    store = FeatureStore(str(tmp_path / "store")).prepare()
    train_small(store, tmp_path / "images")
    for path in (tmp_path / "images" / "test").rglob("*.png"):
        path.write_bytes(b"no picture")
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXTRACT = "extract --dataset images --model cnn2 --executor local"
REASON = "24 of 24 rows failed, all of them: 24 x cannot identify image file ... (first: test/"


def test_a_set_of_bad_images_fails_again_with_reasons(home: Path, run: Run) -> None:
    first = run(EXTRACT, code=1)
    assert REASON in first
    assert first.splitlines()[-1].endswith(
        "fix the images and compute these rows again, or accept them: run the same "
        "command with --retry-failed, or with "
        "--accept-failed to continue without these rows"
    )
    assert run(EXTRACT, code=1).splitlines()[-1] == first.splitlines()[-1]
    assert run(f"{EXTRACT} --retry-failed", code=1).splitlines()[-1] == first.splitlines()[-1]
    for words in ("status", "ls"):
        said = run(words)
        (row,) = [line for line in said.splitlines() if line.startswith("features")]
        assert row.split()[2] == "failed"
        assert f"(features): {REASON}" in said
        assert json.loads(run(f"{words} --json"))  # it stays readable for machines
    assert REASON in run(f"{EXTRACT} --dry-run")
    for option in ("--retry-failed", "--accept-failed"):
        assert REASON not in run(f"{EXTRACT} {option} --dry-run")


def test_nothing_is_computed_from_a_failed_set_before_it_is_accepted(home: Path, run: Run) -> None:
    run(EXTRACT, code=1)
    before = sorted((home / "store").rglob("*.json"))
    for words in (
        "train-head --features images-test@cnn2 --epochs 1",
        "fit-temperature --features images-test@cnn2",
        "fit-neighbours --features images-test@cnn2 --k 1",
        "analyse --features images-test@cnn2",
    ):
        said = run(words, code=2)
        assert REASON in said
        assert said.count("\n") == 1
    store = FeatureStore(str(home / "store"))
    found = store.open("images-test@cnn2")
    with pytest.raises(FailedRowsError, match="24 x cannot identify"):
        make_in(store, Evaluate(features=found.name, heads=()))
    with pytest.raises(FailedRowsError, match="24 x cannot identify"):
        make_in(store, Detect(features=found.name, against=found.name, heads=()))
    assert sorted((home / "store").rglob("*.json")) == before
    said = run("query images-test@cnn2")
    assert f"\n{found.name}: {REASON}" in f"\n{said}"
    assert "24 of 24 rows failed, which was accepted" in run(f"{EXTRACT} --accept-failed")
    assert "24 of 24 rows failed, which was accepted" in run(EXTRACT)
    assert "0 problems" in run("verify images-test@cnn2")
    assert "rows failed" not in run("query images-test@cnn2")
    assert "expected labelled rows without NaN" in run(
        "train-head --features images-test@cnn2 --epochs 1", code=2
    )


def test_a_few_bad_images_are_named_and_the_set_is_complete(home: Path, run: Run) -> None:
    for path in sorted((home / "images" / "test").rglob("*.png"))[3:]:
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    said = run(EXTRACT)
    assert "; 3 of 24 rows failed: 3 x cannot identify image file ... (first: test/" in said
    for command in ("ls", "status"):
        said = run(command).splitlines()
        (row,) = [line for line in said if line.startswith("features")]
        assert row.split()[2] == "complete"
        assert len(row) <= 100
        (why,) = [line for line in said if " (features): " in line]
        assert "(features): 3 of 24 rows failed: 3 x cannot identify" in why


def test_a_corrupted_set_of_bad_images_fails_again(home: Path, run: Run) -> None:
    words = "corrupt --dataset images --corruptions brightness --executor local --out corrupted"
    first = run(words, code=1)
    assert (
        "120 of 120 rows failed, all of them: 120 x ... cannot identify image"
        in first.splitlines()[-1]
    )
    assert run(words, code=1).splitlines()[-1] == first.splitlines()[-1]
