"""Notes of commands on their input images."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command, Refusal
from test_stages_data_listing import COMPANIONS, write_classes, write_image

from stages.sensing.build import build_network
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore

Run = Callable[..., tuple[str, str]]

NETWORK = """
from torch.nn import AdaptiveAvgPool2d, Flatten, Linear, Sequential

def net(n_classes=2):
    return Sequential(AdaptiveAvgPool2d(1), Flatten(), Linear(3, n_classes))
"""
NEW = "--network mine.py:net --weights mine.safetensors --mean 0,0,0 --std 1,1,1"
LEFT_OUT = (
    "insects test: 3 files or folders left out: 1 companions of other programs (test/@eaDir/), "
    "1 not images by name (test/ant/notes.txt), 1 in subfolders (test/bee/more/0.png)"
)
FACTS = {
    "companions of other programs": {"count": 1, "examples": ["test/@eaDir/"]},
    "not images by name": {"count": 1, "examples": ["test/ant/notes.txt"]},
    "in subfolders": {"count": 1, "examples": ["test/bee/more/0.png"]},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Insects among other files, the same ones alone, and a network."""
    home = tmp_path_factory.mktemp("home")
    write_classes(home / "plain" / "insects", "train", "test")
    root = write_classes(home / "insects", "train", "test")
    write_image(root / "test" / "@eaDir" / "0.png")
    write_image(root / "test" / "bee" / "more" / "0.png")
    (root / "test" / "ant" / "notes.txt").write_text("x")
    (home / "mine.py").write_text(NETWORK)
    network = build_network(f"{home / 'mine.py'}:net", 2)
    (home / "mine.safetensors").write_bytes(save_weights(network))
    np.save(home / "x_test.npy", np.zeros((4, 8, 8, 3), np.uint8))
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


EXTRACT = f"extract --dataset insects --executor local {NEW} --image-size 8"
TRAIN = "train-sensing --network mine.py:net --preset quick --epochs 1 --image-size 8"


@pytest.mark.parametrize(
    "command",
    [
        EXTRACT,
        f"{EXTRACT} --dry-run",
        f"{TRAIN} --dataset insects",
        f"{TRAIN} --dataset insects --dry-run",
        "active-learn --dataset insects --network mine.py:net --start 2 --rounds 1 --dry-run",
        "corrupt --dataset insects --dry-run",
    ],
)
def test_every_command_that_reads_images_reports_excluded_files(run: Run, command: str) -> None:
    assert run(command)[1].splitlines().count(LEFT_OUT) == 1


def test_a_network_may_be_tested_on_a_split_of_any_name(run: Run, tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects", "train", "val")
    (root / "val" / "ant" / "notes.txt").write_text("x")
    command = f"{TRAIN} --dataset {root} --dry-run --store {tmp_path / 'store'}"
    assert "insects val" not in run(command)[1]
    assert "insects val: 1 file or folder left out" in run(f"{command} --test-split val")[1]
    said = run(f"{command} --test-split dev", code=2)[1]
    assert "has no folder 'dev'" in said
    assert "it has train, val" in said


@pytest.mark.parametrize("tail", ["", "--dry-run"])
def test_json_lists_excluded_files(run: Run, tail: str) -> None:
    assert json.loads(run(f"{EXTRACT} {tail} --json")[0])["left_out"] == FACTS
    whole = EXTRACT.replace("insects", "plain/insects")
    assert json.loads(run(f"{whole} {tail} --json --model whole")[0])["left_out"] == {}


def test_a_receipt_mentions_what_is_left_out_and_nothing_else_changes(
    run: Run, tmp_path: Path
) -> None:
    name = json.loads(run(f"{EXTRACT} --json")[0])["feature_set"]
    run(f"{EXTRACT.replace('insects', 'plain/insects')} --store {tmp_path / 'other'}")
    mine, plain = (
        json.loads((tmp_path / store / "features" / name / "receipts" / "00000.json").read_text())
        for store in ("store", "other")
    )
    assert mine.pop("left_out") == FACTS
    assert mine.keys() == plain.keys()
    assert mine["files"] == plain["files"]


def test_the_images_of_a_pool_and_what_is_left_out_are_counted(run: Run) -> None:
    out, said = run("active-learn --dataset insects --ask 2 --dry-run --json")
    assert "2 files or folders left out: 1 companions of other programs (test/@eaDir/)" in said
    assert json.loads(out)["left_out"].keys() == FACTS.keys() - {"in subfolders"}


def test_predict_reports_excluded_files(run: Run) -> None:
    said = run("predict --head none insects/test", code=2)[1]
    assert "images: 2 files or folders left out: 1 companions of other programs (insects/te" in said


@pytest.mark.parametrize("name", COMPANIONS[:2])
def test_a_companion_folder_moves_no_label(run: Run, home: Path, name: str) -> None:
    before = json.loads(run(f"{EXTRACT} --dry-run --json")[0])["classes"]
    write_image(home / "insects" / "train" / name / "0.png")
    assert json.loads(run(f"{EXTRACT} --dry-run --json")[0])["classes"] == before


def test_a_class_folder_without_images_is_refused_and_nothing_is_written(
    run: Run, tmp_path: Path
) -> None:
    root = write_classes(tmp_path / "insects")
    write_image(root / "test" / "wasp" / "deeper" / "0.png")
    command = EXTRACT.replace("--dataset insects", f"--dataset {root}")
    assert run(command, code=2)[1] == (
        f"intro-pipe: {root}/test/wasp: the class folder has no images, expected <file> with a "
        "suffix such as .jpg or .png, found 1 in subfolders (test/wasp/deeper/0.png); put its "
        "images directly into it, or move it away if it is not a class\n"
    )
    assert not (tmp_path / "store").exists()


def test_a_class_folder_with_a_latin_name_is_one_line(run: Run, tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects")
    write_image(root / "test" / os.fsdecode(b"caf\xe9") / "0.png")
    said = run(EXTRACT.replace("--dataset insects", f"--dataset {root}"), code=2)[1]
    assert said == (
        f"intro-pipe: {root}: expected names of files and folders in UTF-8, found 'caf\\xe9': "
        "rename it\n"
    )


def test_a_note_says_that_a_split_given_as_a_data_set_has_no_labels(
    run: Run, home: Path, tmp_path: Path
) -> None:
    photos = home / "insects" / "train"
    said = run(EXTRACT.replace("--dataset insects", f"--dataset {photos} --dry-run"))[1]
    assert (
        "train test: no labels found, so every label is -1; to add labels: this folder is a split "
        f"of a data set: use --dataset {photos.parent} --split train"
    ) in said.splitlines()
    refused = run(f"{TRAIN} --dataset {photos} --store {tmp_path / 's'}", code=2)[1].splitlines()
    assert refused[-1] == (
        f"intro-pipe: {photos}: a folder of images has no split 'train', only test, and all if its "
        "folders are classes; expected train/<class>/<file> in it"
    )
    assert not (tmp_path / "s").exists()


def test_columns_of_a_manifest_are_stored(run: Run, home: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "mine.csv"
    paths = (
        home / "insects/test/bee/0.png",
        home / "insects/test/ant/1.png",
        tmp_path / "gone.png",
    )
    rows = (
        f"{path},{path.parent.name},{dose}" for path, dose in zip(paths, (3, 7, 9), strict=True)
    )
    manifest.write_text(
        "\n".join(["path,label,dose", *rows]).replace(f",{tmp_path.name},", ",bee,")
    )
    classes = tmp_path / "classes.txt"
    classes.write_text("ant\nbee\n")
    run(EXTRACT.replace("--dataset insects", f"--dataset {manifest} --classes {classes}"))
    (found,) = FeatureStore(str(tmp_path / "store")).feature_sets()
    samples = found.samples()
    assert samples["sample_id"].tolist() == [str(path) for path in paths]
    assert samples["dose"].tolist() == [3, 7, 9]
    assert samples["status"].tolist()[:2] == ["ok", "ok"]
    assert "gone.png: [Errno 2] No such file" in samples["status"][2]


def test_a_data_set_may_lie_at_a_url(run: Run, home: Path, tmp_path: Path) -> None:
    images = [(home / f"insects/test/{name}/0.png").read_bytes() for name in ("bee", "ant")]
    table = pa.table({"image": images, "label": ["bee", "ant"]})
    with fsspec.open("memory://bucket/pets/test.parquet", "wb") as file:
        pq.write_table(table, file)
    said, _ = run(f"{EXTRACT} --json".replace("insects", "memory://bucket/pets"))
    found = FeatureStore(str(tmp_path / "store")).open(json.loads(said)["feature_set"])
    assert found.samples()["sample_id"].tolist() == ["test/00000", "test/00001"]
    assert found.samples()["label"].tolist() == [1, 0]
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_note_says_that_an_array_has_no_labels(run: Run, home: Path, tmp_path: Path) -> None:
    dry = EXTRACT.replace("--dataset insects", "--dataset x_test.npy --dry-run")
    how = "save class numbers, one for each image, as x_test-labels.npy beside x_test.npy"
    note = f"x_test test: no labels found, so every label is -1; to add labels: {how}"
    assert note in run(dry)[1].splitlines()
    refused = run(f"{TRAIN} --dataset x_test.npy --store {tmp_path / 's'}", code=2)[1]
    assert (
        refused.splitlines()[-1]
        == f"intro-pipe: x_test train: has no labels, expected one for each image; {how}"
    )
    assert not (tmp_path / "s").exists()
    np.save(home / "y_test.npy", np.array([0, 1, 1, 0]))
    assert "no labels found" not in run(dry)[1]
    (home / "y_test.npy").unlink()


def test_a_note_says_which_of_two_files_has_the_labels(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x_test.npy", np.zeros((4, 8, 8, 3), np.uint8))
    for name in ("labels", "y_test"):
        np.save(tmp_path / f"{name}.npy", np.array([0, 1, 1, 0]))
    dataset = f"--dataset {tmp_path / 'x_test.npy'} --dry-run"
    note = "1 file or folder left out: 1 skipped because labels are in labels.npy (y_test.npy)"
    said = run(EXTRACT.replace("--dataset insects", dataset))[1]
    assert f"x_test test: {note}" in said.splitlines()


def test_there_is_no_note_for_sets_that_never_have_labels(run: Run) -> None:
    dry = EXTRACT.replace("--dataset insects", "--dataset uniform-noise --dry-run")
    assert "no labels" not in run(dry)[1]


def test_the_list_of_data_sets_includes_unreadable_ones(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "data" / "insects")
    (tmp_path / "data" / "empty" / "test" / "ant").mkdir(parents=True)
    (tmp_path / "data" / "loop").symlink_to("loop")
    (tmp_path / "data" / "x.npy").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "data" / "y.npy")
    found = json.loads(run(f"datasets --data-root {tmp_path / 'data'} --json")[0])
    problems = {each["name"]: each["problem"] for each in found if each["where"]}
    assert problems["insects"] == ""
    assert "the class folder has no images" in problems["empty"]


@pytest.mark.parametrize("weird", ["loop", "pipe"])
def test_a_data_set_that_is_no_file_and_no_folder_is_one_line(
    run: Run, tmp_path: Path, weird: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    said = run(EXTRACT.replace("--dataset insects", f"--dataset {tmp_path / weird}"), code=2)[1]
    assert len(said.splitlines()) == 1


def test_a_note_says_that_class_folders_without_a_split_have_no_labels(
    run: Run, home: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(home / "insects" / "test", photos)
    said = run(EXTRACT.replace("--dataset insects", f"--dataset {photos} --dry-run"))[1]
    assert (
        "photos test: no labels found, so every label is -1; to add labels: use --split all if its "
        f"folders are the classes; else expected {photos}/test/<class>/<file>, and "
        "train/<class>/<file> for training"
    ) in said.splitlines()


@pytest.mark.parametrize(
    ("values", "expected"), [("1", "number"), ("2,1", "LOW below HIGH"), ("0,nan", "number")]
)
def test_a_value_range_has_two_finite_numbers(run: Run, values: str, expected: str) -> None:
    said = run(f"{EXTRACT} --value-range {values}", code=2)[1]
    assert said.splitlines()[-1].startswith("intro-pipe: ")
    assert "range" in said
    assert expected in said


@pytest.mark.parametrize(
    ("option", "needed"),
    [
        ("--epsilon 0.01", "attack"),
        ("--step 0.01", "attack"),
        ("--steps 3", "attack"),
        ("--attack-seed 1", "attack"),
        ("--through h", "attack"),
        ("--layer-loss mse-m", "layer"),
        ("--project 5", "layer"),
    ],
)
def test_an_option_of_extract_without_effect_is_refused(
    refused: Refusal, option: str, needed: str
) -> None:
    name = option.split()[0]
    message = refused("extract", "--dataset", "digits", *option.split())
    assert f"{name} has no effect without --{needed}" in message


def test_ood_takes_a_split_of_any_name_of_its_in_distribution_set(
    run: Run, home: Path, tmp_path: Path
) -> None:
    write_classes(home / "checked", "val")
    run(f"extract --dataset checked --split val --executor local {NEW} --image-size 8")
    ood = "ood --in checked --out uniform-noise --head none --detector msp --resamples 0"
    assert "use --split val" in run(ood, code=2)[1]
    assert "checked-val@net" in run(f"{ood} --split val")[0]
    names = [each.name for each in FeatureStore(str(tmp_path / "store")).feature_sets()]
    assert len(names) == 2  # the images of its val are those that were extracted
