"""``extract --corrupt``: features of corrupted images, without a corrupted set."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from small_data import write_image_folder
from test_cli_sources import NETWORK

from stages.sensing.build import build_network
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore

Run = Callable[..., tuple[str, str]]
EXTRACT = "extract --dataset shapes --executor local --model net"
IMPORT = "--network mine.py:net --weights mine.safetensors --mean 0,0,0 --std 1,1,1 --image-size 40"
NAME = "shapes+fog-3+pixelate@net"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of three classes, a network, and its features of the corrupted images."""
    home = tmp_path_factory.mktemp("home")
    write_image_folder(home / "shapes", 10)
    (home / "mine.py").write_text(NETWORK.replace("n_classes=2", "n_classes=3"))
    network = build_network(f"{home / 'mine.py'}:net", 3)
    (home / "mine.safetensors").write_bytes(save_weights(network))
    return home


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command) -> Run:
    monkeypatch.setenv("INTRO_PIPE_STORE", str(home / "store"))
    monkeypatch.setenv("INTRO_PIPE_DATA", str(home))
    monkeypatch.chdir(home)
    return intro_pipe


@pytest.fixture
def corrupted(run: Run) -> Run:
    """A store with features of fog of severity 3 and of pixelate, in shards of 8 rows."""
    run(f"{EXTRACT} {IMPORT} --corrupt pixelate,fog:3 --shard-rows 8")
    return run


def test_rows_have_the_columns_of_a_corrupted_set(corrupted: Run, home: Path) -> None:
    found = FeatureStore(str(home / "store")).resolve(NAME)
    samples = found.samples()
    assert samples["corruption"].tolist() == ["fog"] * 10 + ["pixelate"] * 50
    assert samples["severity"].tolist() == [3] * 10 + [s for s in range(1, 6) for _ in range(10)]
    assert samples["sample_id"].iloc[[0, 59]].tolist() == ["fog/3/00000", "pixelate/5/00009"]
    assert samples["clean_id"].nunique() == 10
    assert np.isfinite(found.read("logits")).all()


def test_another_shard_size_gives_the_same_rows(corrupted: Run, home: Path, tmp_path: Path) -> None:
    corrupted(f"{EXTRACT} {IMPORT} --corrupt fog:3,pixelate --shard-rows 60 --store {tmp_path}/s")
    here, there = (FeatureStore(str(at)).resolve(NAME) for at in (home / "store", tmp_path / "s"))
    for name in ("features", "logits"):
        np.testing.assert_allclose(here.read(name), there.read(name), atol=1e-6)


def test_a_lost_shard_alone_is_computed_again(corrupted: Run, home: Path) -> None:
    place = FeatureStore(str(home / "store")).resolve(NAME).shard_set.storage.location
    (Path(place) / "receipts" / "00003.json").unlink()
    out, _ = corrupted(f"{EXTRACT} --corrupt fog:3,pixelate --shard-rows 8")
    assert "1 of 8 shards computed in this run" in out


def test_cells_are_evaluated_with_intervals_over_images(corrupted: Run) -> None:
    out, _ = corrupted(f"evaluate --features {NAME} --head none")
    assert "60 rows, mean over 6 groups of corruption and severity" in out


def test_the_set_is_found_unchanged(corrupted: Run) -> None:
    rows = json.loads(corrupted("status --json")[0])["contents"]
    assert {row["name"].rpartition("-")[0]: row["state"] for row in rows}[
        "shapes+fog-3+pixelate-test@net"
    ] == "complete"


def test_some_corruptions_of_a_set_are_found_unchanged(run: Run) -> None:
    run("corrupt --dataset shapes --corruptions contrast,pixelate --executor local")
    run(f"{EXTRACT} {IMPORT}".replace("shapes", "shapes-c") + " --corruptions contrast")
    rows = json.loads(run("status --json")[0])["contents"]
    states = {row["name"].rpartition("-")[0]: row["state"] for row in rows}
    assert states["shapes-c-contrast-test@net"] == "complete"


def test_a_note_says_which_constants_are_used(run: Run) -> None:
    _, said = run(f"{EXTRACT} {IMPORT} --corrupt all --corruption-seed 2 --dry-run")
    assert (
        "shapes+95-cells test: images of 40x40 are corrupted with the constants of ImageNet-C "
        "(224x224), seed 2" in said
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--corrupt fogg:3", "no corruption 'fogg' (did you mean fog:3?): expected all, or one of"),
        ("--corrupt fog:9", "severity '9' of fog: expected 1 to 5, such as fog:3, or fog for all"),
        ("--corruption-seed 3", "--corruption-seed has no effect without --corrupt"),
    ],
)
def test_a_mistake_is_one_line(run: Run, options: str, message: str) -> None:
    assert message in run(f"{EXTRACT} {IMPORT} {options}", code=2)[1]
