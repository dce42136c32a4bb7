"""The active-learn command."""

import json
from pathlib import Path

import pytest
from conftest import Command
from PIL import Image
from small_data import digits, write_npz_set

from cli.replay import Named, replayed
from pipeline.journal import Run, runs
from stages.active_learning.active_learn import ActiveLearn

SMALL = "--network cnn2 --image-size 8 --epochs 2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A benchmark, photographs without labels, and a folder of none."""
    write_npz_set(tmp_path / "few", 60, 20)
    for name in ("photos", "empty"):
        (tmp_path / name).mkdir()
    for row, image in enumerate(digits(12)[0]):
        Image.fromarray(image).save(tmp_path / "photos" / f"{row}.png")
    (tmp_path / "strange.csv").write_text("sample_id,label\nnobody.png,one\n")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command):
    monkeypatch.setenv("INTRO_PIPE_STORE", str(folder / "store"))
    monkeypatch.chdir(folder)

    def command(words: str, code: int = 0) -> str:
        out, err = intro_pipe(words, code)
        return out if code == 0 else err

    return command


def test_a_benchmark_gives_means_and_curves_and_a_page(run, folder: Path) -> None:
    words = f"active-learn --dataset few {SMALL} --strategy margin --model-kind f,h --rounds 2"
    said = json.loads(run(f"{words} --layers 6 --query 10 --start 10 --json"))

    assert [(each["kind"], each["predictor"]) for each in said["means"]] == [
        ("f", "f"),
        ("h", "f beside H"),
        ("h", "H"),
    ]
    assert {each["labelled"] for each in said["curves"]} == {10, 20}
    assert [found.outcome for found in runs(str(folder / "store"))] == ["done"]
    run(f"report {said['result']} --out page")
    assert (folder / "page/figures/learning-curves.svg").is_file()
    (one, *_) = (
        each["name"] for each in json.loads(run("ls --json")) if "margin-f" in each["name"]
    )
    assert "which has no page" in run(f"report {one}", 2)


def test_people_are_given_a_list_and_a_sheet(run, folder: Path) -> None:
    said = run(f"active-learn --dataset photos {SMALL} --ask 4 --out first")

    assert "4 images to label, chosen by random after 0 labels" in said
    assert len((folder / "first/to-label.csv").read_text().splitlines()) == 5
    assert (folder / "first/to-label.png").is_file()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("few --rounds 3 --query 30 --start 10", "60 labelled images, 3 rounds need 70"),
        ("few --strategy bagde", "expected one of random, entropy"),
        ("few --strategy badge,badge", "expected one or more different ones"),
        ("few --model-kind g", "--model-kind: expected 'f' or 'h', found 'g'"),
        ("few --rounds 2 --query 9 --start 9 --device cuda:77", "this machine has cpu"),
        ("few --corruption fog", "--corruption has no effect without --corrupted"),
        ("few --layers 9", "--layers has no effect without --model-kind h"),
        ("few --head-lr 0.1 --model-kind f", "--head-lr has no effect without --model-kind h"),
        ("photos", "its images have no labels; choose images to label with --ask N"),
        ("few --labels strange.csv", "--labels has no effect without --ask"),
        ("photos --ask 13", "12 images without a label, 13 were requested"),
        ("photos --ask 3 --rounds 2", "--rounds has no effect with --ask"),
        ("photos --ask 3 --rounds 20", "--rounds has no effect with --ask"),
        ("photos --ask 3 --corrupted few", "--corrupted has no effect with --ask"),
        ("photos --ask 3 --executor local", "--executor has no effect with --ask"),
        ("photos --ask 3 --seeds 0,1", "one strategy, one model kind and one seed"),
        ("photos --ask 3 --labels strange.csv", "no sample 'nobody.png' in the pool"),
        ("photos --ask 3 --labels nowhere.csv", "nowhere.csv: cannot be read (No such"),
        ("empty --ask 3", "has no images"),
        ("empty --rounds 2", "no supported data"),
    ],
)
def test_mismatches_are_refused_in_one_line_and_nothing_is_written(
    run, folder: Path, words: str, why: str
) -> None:
    before = sorted(folder.rglob("*"))
    said = run(f"active-learn --dataset {words} --network cnn2", 2)

    assert said.startswith("intro-pipe: ")
    assert said.count("\n") == 1
    assert why in said
    assert sorted(folder.rglob("*")) == before


def test_a_request_for_labels_is_read_from_its_json() -> None:
    asked = ActiveLearn(dataset="photos", ask=3)
    fields = asked.to_json()
    assert fields.pop("stage") == "active-learn"
    assert ActiveLearn.model_validate_json(json.dumps(fields)) == asked


def test_a_dry_run_names_the_runs(run, folder: Path) -> None:
    said = run(
        f"active-learn --dataset few {SMALL} --seeds 0,1 --rounds 2 --query 9 --start 20 --dry-run"
    )

    assert "2 runs of 2 rounds, 29 labels each" in said
    assert "few-active-badge-f-1-" in said
    assert not (folder / "store").exists()


def test_a_run_that_was_stopped_can_be_resumed(folder: Path) -> None:
    stopped = Run(("active-learn", "--dataset", "few"), str(folder), {}, "stopped", 0.0, "first")
    replay = replayed(stopped, str(folder / "store"), Named())

    dataset = folder / "few"
    assert replay.asked == ActiveLearn(dataset=str(dataset))
