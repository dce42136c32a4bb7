"""The analyse and predict commands: output, files and exit codes."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import Command
from made import extract, make_in
from small_data import train_small, write_image_folder

from cli.app import main
from stages.data.registry import SourceSpec
from stages.introspection.train_head import TrainHead
from stages.reflection.extraction import Extraction
from stages.sensing.models import choose_model, weights_path
from store.catalog import FeatureStore

Run = Callable[..., str]
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as image files; a store with two models, features of one, and a head on them."""
    folder = tmp_path_factory.mktemp("home")
    write_image_folder(folder / "images", 24)
    store = FeatureStore(str(folder / "store")).prepare()
    train_small(store, folder / "images")
    train_small(store, folder / "images", name="other", seed=1)
    card = choose_model(store, "images", "cnn2")
    for split in ("test", "train"):
        source = SourceSpec(str(folder / "images"), split, "")
        stage = Extraction(source, card, weights_path(store, "cnn2"))
        found = extract(store, stage)
    head = TrainHead(
        features=found.name, name="h", layers=(8,), epochs=20, weight_decay=0.0, batch_size=8
    )
    make_in(store, head)
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What a command prints that ends with the code."""

    def ended(*words: str | Path, code: int = 0, stream: str = "out") -> str:
        monkeypatch.setenv("INTRO_PIPE_STORE", str(home / "store"))
        monkeypatch.setattr(sys, "argv", ["intro-pipe", *map(str, words)])  # what main() reads
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert (end.value.code or 0) == code, printed.err
        return str(getattr(printed, stream))

    return ended


@pytest.fixture
def refusal(run: Run) -> Refusal:
    """The one-line error with which a command refuses its options or inputs."""

    def refused(*words: str | Path) -> str:
        line = run(*words, code=2, stream="err")
        assert line.startswith("intro-pipe: ")
        assert line.count("\n") == 1, line
        return line

    return refused


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file that is named like an image."""
    place = tmp_path / "notes.png"
    place.write_text("not an image")
    return place


ANALYSE = ["analyse", "--features", "images-test@cnn2", "--against", "images-train@cnn2"]


def test_analyse_prints_each_quantity_with_its_definition(run: Run) -> None:
    lines = run(*ANALYSE).splitlines()
    assert "images-test@cnn2 (24 rows) beside images-train@cnn2 (24 rows)" in lines
    for quantity in ("fisher_trace", "energy_outside", "to_stack_mse_m"):
        assert any(line.startswith(f"{quantity} ") for line in lines)
        assert any(line.startswith(f"  {quantity}: ") for line in lines)


def test_analyse_gives_json_and_copies_pictures_and_tables(run: Run, tmp_path: Path) -> None:
    found = json.loads(run(*ANALYSE, "--json", "--out", tmp_path / "out"))
    assert [row["to_sum_ce"] for row in found["average"]] == [0.0, 0.0]
    assert found["definitions"].keys() <= found["by_group"][0].keys()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"gradients.svg", "gradients.png", "by-group.csv", "average.csv"}
    assert len(pd.read_csv(tmp_path / "out" / "average.csv")) == 2


def test_a_dry_run_of_analyse_names_the_result_and_makes_none(run: Run, home: Path) -> None:
    words = [*ANALYSE, "--rows", "5", "--dry-run", "--json"]
    name = json.loads(run(*words))["result"]
    assert not (home / "store" / "results" / name).exists()


def test_analyse_refuses_missing_features(refusal: Refusal) -> None:
    assert "no feature set 'nothing'" in refusal("analyse", "--features", "nothing")
    assert "loss: expected one of" in refusal(*ANALYSE, "--loss", "mae")
    assert "unknown column 'colour'" in refusal(*ANALYSE, "--by", "colour")


def test_predict_gives_a_row_for_each_image(run: Run, home: Path) -> None:
    csv = run("predict", "--head", "h", home / "images" / "test", "--format", "csv")
    frame = pd.read_csv(io.StringIO(csv))
    assert len(frame) == 24
    assert set(frame["H_label"]) <= {"zero", "one", "two"}
    assert frame["f_confidence"].between(1 / 3, 1).all()
    shown = run("predict", "--head", "h", home / "images" / "test")
    assert shown.splitlines()[0].split() == [str(name) for name in frame.columns]


def test_predict_without_a_head_needs_a_model(run: Run, refusal: Refusal, home: Path) -> None:
    image = next((home / "images" / "test" / "one").iterdir())
    assert "--head none: expected --model NAME" in refusal("predict", "--head", "none", image)
    (row,) = json.loads(run("predict", "--head", "none", "--model", "cnn2", image, "--json"))
    assert sorted(row) == ["f_confidence", "f_label", "image", "status"]


def test_a_text_file_among_images_is_reported_in_its_row(run: Run, home: Path, text: Path) -> None:
    image = next((home / "images" / "test" / "one").iterdir())
    rows = json.loads(run("predict", "--head", "h", image, text, "--json"))
    assert [row["status"] == "ok" for row in rows] == [True, False]
    assert rows[1]["H_label"] is None


def test_predict_ends_with_one_where_no_image_could_be_read(run: Run, text: Path) -> None:
    assert "cannot identify" in run("predict", "--head", "h", text, code=1)


def test_predict_writes_a_file(run: Run, home: Path, tmp_path: Path) -> None:
    words = ["predict", "--head", "h", home / "images" / "test", "--out", tmp_path / "rows.csv"]
    assert run(*words) == ""
    assert len(pd.read_csv(tmp_path / "rows.csv")) == 24


def test_predict_exports_without_images(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "both.pt2"
    assert "read back" in run("predict", "--head", "h", "--export", place, stream="err")
    program = torch.export.load(place).module()
    logits, of_h = program(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert logits.shape == of_h.shape == (2, 3)


def test_predict_refuses_inputs_that_do_not_match(
    refusal: Refusal, home: Path, tmp_path: Path
) -> None:
    images = home / "images" / "test"
    of_h = ["predict", "--head", "h"]
    assert "nothing to predict" in refusal(*of_h)
    assert "no such image" in refusal(*of_h, tmp_path / "none.png")
    assert "belongs to model 'cnn2'" in refusal(*of_h, images, "--model", "other")
    assert "head 'nothing' does not exist" in refusal("predict", "--head", "nothing", images)
    assert "ends in .pt2" in refusal(*of_h, "--export", tmp_path / "both.onnx")


def test_escaping_formulas_needs_tables_to_write(intro_pipe: Command) -> None:
    _, err = intro_pipe("analyse --features x --escape-formulas", 2)
    assert "--escape-formulas is for the tables of --out: add --out FOLDER" in err
