"""``extract`` with denoised and augmented images, other input and other batch statistics."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from small_data import write_image_folder

from stages.data.registry import SourceSpec
from stages.sensing.build import build_network
from stages.sensing.weights import load_weights, save_weights
from store.catalog import FeatureStore
from store.featureset import FeatureSet

Run = Callable[..., tuple[str, str]]
EXTRACT = "extract --dataset shapes --executor local --model net"
IMPORT = "--network mine.py:net --weights mine.safetensors --image-size 32"
NETWORK = """
from torch import nn

def net(n_classes=3):
    layers = [nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(256, n_classes))
"""
OPTIONS = {
    "shapes-test": "",
    "shapes+median-test": "--denoise median",
    "shapes+tv-0.2+flip-3-test": "--denoise tv:0.2 --augmentation flip --augmentation-seed 3",
    "shapes+contrast-2+nlm-4-4-3-7-test": "--corrupt contrast:2 --denoise nlm:4,4,3,7",
    "shapes+unnormalised-test": "--normalisation none",
    "shapes+unnormalised+batch-4-test": "--normalisation none --batch-statistics 4 --shard-rows 6",
    "shapes+batch-5-test": "--batch-statistics 5 --shuffle --sample-seed 2",
    "shapes+gaussian+odin-test": "--denoise gaussian --odin 0.002",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of three classes, and a network with batch norm."""
    home = tmp_path_factory.mktemp("home")
    write_image_folder(home / "shapes", 10)
    (home / "mine.py").write_text(NETWORK)
    network = build_network(f"{home / 'mine.py'}:net", 3)
    (home / "mine.safetensors").write_bytes(save_weights(network))
    (home / "cnn2.safetensors").write_bytes(save_weights(build_network("cnn2", 3)))
    return home


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command) -> Run:
    monkeypatch.setenv("INTRO_PIPE_STORE", str(home / "store"))
    monkeypatch.setenv("INTRO_PIPE_DATA", str(home))
    monkeypatch.chdir(home)
    return intro_pipe


@pytest.fixture
def extracted(run: Run, home: Path) -> dict[str, FeatureSet]:
    """Start of the name -> features, of each of `OPTIONS`."""
    for options in OPTIONS.values():
        run(f"{EXTRACT} {IMPORT} {options}")
    sets = FeatureStore(str(home / "store")).feature_sets()
    return {each.name.partition("@")[0]: each for each in sets}


def test_each_reading_is_a_set_that_says_what_it_is(
    extracted: dict[str, FeatureSet], run: Run, home: Path
) -> None:
    assert extracted.keys() == OPTIONS.keys()
    logits = [each.read("logits")[:10] for each in extracted.values()]
    assert len({values.tobytes() for values in logits}) == len(OPTIONS)
    for name, options in OPTIONS.items():
        out = json.loads(run(f"{EXTRACT} {options} --json")[0])
        assert (out["feature_set"], out["n_computed"]) == (extracted[name].name, 0)
    assert extracted["shapes+unnormalised+batch-4-test"].shard_set.chunk_rows == 4


def test_every_set_is_found_unchanged_and_rechecked(
    extracted: dict[str, FeatureSet], run: Run
) -> None:
    rows = json.loads(run("status --json")[0])["contents"]
    states = {row["name"]: row["state"] for row in rows}
    assert {states[each.name] for each in extracted.values()} == {"complete"}
    run("verify --probe")


def test_the_plan_of_a_plain_extraction_does_not_know_the_options(
    extracted: dict[str, FeatureSet],
) -> None:
    text = json.dumps(extracted["shapes-test"].plan)
    assert not any(word in text for word in ("alteration", "batch_statistics", "unnormalised"))


def test_unnormalised_pixels_are_in_0_to_1(extracted: dict[str, FeatureSet], home: Path) -> None:
    network = build_network(f"{home / 'mine.py'}:net", 3).eval()
    load_weights(network, str(home / "mine.safetensors"))
    images = SourceSpec("shapes", "test", str(home)).open().read(0, 10).images
    with torch.no_grad():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    found = extracted["shapes+unnormalised-test"].read("logits")
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_lost_shard_alone_is_computed_again(extracted: dict[str, FeatureSet], run: Run) -> None:
    found = extracted["shapes+unnormalised+batch-4-test"]
    before = found.read("logits")
    (Path(found.shard_set.storage.location) / "receipts" / "00001.json").unlink()
    options = OPTIONS["shapes+unnormalised+batch-4-test"]
    assert "1 of 3 shards computed in this run" in run(f"{EXTRACT} {options}")[0]
    np.testing.assert_array_equal(found.read("logits"), before)


def test_notes_say_what_is_in_the_groups(run: Run) -> None:
    said = run(f"{EXTRACT} {IMPORT} --batch-statistics 3 --corrupt fog --dry-run")[1]
    assert "compare heads on these features with f of the same set" in said
    assert "groups of 3 rows do not divide the 10 images of a cell" in said
    assert "3 of 3 groups have images of one class, since the rows of shapes are sorted" in said
    said = run(f"{EXTRACT} {IMPORT} --batch-statistics 3 --shuffle --dry-run")[1]
    assert "of one class" not in said
    said = run(f"{EXTRACT} {IMPORT} --batch-statistics 5 --dry-run")[1]
    assert "of one class" not in said
    assert "of a cell" not in said


def test_features_with_batch_statistics_are_not_explained(
    extracted: dict[str, FeatureSet], run: Run
) -> None:
    name = extracted["shapes+unnormalised+batch-4-test"].name
    said = run(f"explain --features {name} --rows 0", 2)[1]
    assert "no image has an explanation of its own" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--denoise wiener", "no filter 'wiener': expected one of nlm, median, gaussian"),
        ("--denoise median:4", "median:4: expected an odd number of pixels up to 99 as window"),
        ("--sample-seed 1", "--sample-seed has no effect without --sample or --shuffle"),
        ("--augmentation-seed 1", "--augmentation-seed has no effect without --augmentation"),
        ("--batch-statistics 4 --odin 0.1", "and --odin needs each image alone: leave"),
        ("--batch-statistics 4 --layer 0", "and --layer needs each image alone: leave"),
        (
            "--network cnn2 --weights cnn2.safetensors --batch-statistics 4",
            "network cnn2: has no batch norm, expected some for --batch-statistics: leave out the",
        ),
    ],
)
def test_a_mistake_is_one_line(run: Run, options: str, message: str) -> None:
    given = f"{EXTRACT} {IMPORT} {options}"
    said = run(given.replace("--model net", "--model other"), code=2)[1]
    assert message in said
    assert said.count(", found ") <= 1
