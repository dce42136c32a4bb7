"""`verify` reports all damage in and beside a store, and `repair` removes unfinished writes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import fill
from hypothesis import given, settings
from hypothesis import strategies as st
from made import write_corrupted
from small_data import write_npz_set
from squares import plan_of
from typer.testing import CliRunner

from cli.app import app
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from stages.contents import ARTIFACT_KINDS
from stages.data.corruption_work import CorruptionWork
from stages.data.registry import SourceSpec
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.lease import Lease
from store.storage import LocalStorage

NOT_VOUCHED_FOR = ("journal", "lease", "recipes", "quarantine")
"""What nothing depends on."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one of everything, and a corrupted set beside it."""
    folder = tmp_path_factory.mktemp("home")
    store = FeatureStore(str(folder / "store")).prepare()
    fill(store.create(plan_of(10, 4)))
    for kind in ARTIFACT_KINDS:
        artifact = store.artifact(kind, "first")
        artifact.claim({"seed": 0})
        files = {"weights": b"weights", "figures/a.svg": b"<svg/>"}
        artifact.write(files, {"M": 2.5}, plan={"seed": 0})
    clean = write_npz_set(folder / "tiny", 4, 4)
    stage = CorruptionWork(SourceSpec(str(clean), "test", ""), ("brightness", "contrast"))
    given = f"corrupt --dataset {clean} --corruptions brightness,contrast --executor local"
    journal = Journal.of(store.location, [*given.split(), "--out", str(folder / "tiny-c")])
    write_corrupted(store, stage, str(folder / "tiny-c"), LocalExecutor(1), journal)
    return folder


def vouched_for(home: Path) -> list[Path]:
    return sorted(
        path
        for below in ("store", "tiny-c")
        for path in (home / below).rglob("*")
        if path.is_file() and not set(path.relative_to(home).parts) & set(NOT_VOUCHED_FOR)
    )


def told(home: Path, command: str = "verify") -> tuple[int, str]:
    """Exit codes and words of a command, for the store and for the corrupted set."""
    code, text = 0, ""
    for names in ([], [str(home / "tiny-c")]):
        words = [command, *names, "--store", str(home / "store"), "--json"]
        ended = CliRunner().invoke(app, words)
        code, text = max(code, ended.exit_code), text + ended.output + str(ended.exception)
    return code, text


def flipped(data: bytes, at: float, mask: int) -> bytes:
    damaged = bytearray(data)
    damaged[int(at * len(data))] ^= mask
    return bytes(damaged)


Places = st.tuples(st.integers(0, 999), st.floats(0, 1, exclude_max=True))


@settings(max_examples=40, deadline=None)
@given(Places, st.sampled_from(["flip", "cut", "remove"]), st.integers(1, 255))
def test_every_damaged_file_is_named(
    home: Path, place: tuple[int, float], fault: str, mask: int
) -> None:
    files = vouched_for(home)
    path = files[place[0] % len(files)]
    whole = path.read_bytes()
    path.unlink()
    if fault != "remove":
        at = int(place[1] * len(whole))
        path.write_bytes(flipped(whole, place[1], mask) if fault == "flip" else whole[:at])
    try:
        _, text = told(home)
    finally:
        path.write_bytes(whole)
    assert _is_named(path, text), (path, fault, text)


def _is_named(path: Path, text: str) -> bool:
    """The problem names the file; a lost receipt or card shows as data without one."""
    is_last = path.parent.name == "receipts" or path.stem in ARTIFACT_KINDS
    return path.name in text or (is_last and ("without" in text or "missing shard" in text))


def test_a_whole_store_has_nothing_to_name(home: Path) -> None:
    code, text = told(home)
    assert code == 0
    assert '"kind"' not in text


@pytest.fixture
def litter(home: Path) -> Iterator[list[LocalStorage]]:
    """Places in which a kill has left a staged file."""
    places = ["store/features", "store/models", "store/reports"]
    folders = [next((home / place).iterdir()) for place in places] + [home / "tiny-c"]
    storages = [LocalStorage(str(folder)) for folder in folders]
    for storage in storages:
        storage.stage("weights", b"torn")
    yield storages
    for storage in storages:
        storage.sweep()


def test_staged_files_left_by_kills_are_reported_and_swept(
    home: Path, litter: list[LocalStorage]
) -> None:
    code, text = told(home)
    assert (code, text.count('"litter"')) == (0, len(litter))
    told(home, "repair")
    assert [storage.staged() for storage in litter] == [[]] * len(litter)
    assert told(home)[1].count('"litter"') == 0


def test_staged_files_of_a_running_driver_are_left_alone(
    home: Path, litter: list[LocalStorage]
) -> None:
    model = litter[1]
    with Lease(model, purpose="train first"):
        model.stage("weights", b"torn")
        told(home, "repair")
        assert len(model.staged()) == 1


def test_damaged_labels_of_a_corrupted_set_are_written_again_by_its_command(home: Path) -> None:
    labels = home / "tiny-c" / "labels.npy"
    whole = labels.read_bytes()
    labels.write_bytes(flipped(whole, 0.99, 1))
    words = ["repair", str(home / "tiny-c"), "--store", str(home / "store")]
    ended = subprocess.run([sys.executable, "-m", "cli.app", *words], check=False)
    assert ended.returncode == 0
    assert labels.read_bytes() == whole
    assert (home / "tiny-c" / "quarantine" / "labels.npy").exists()


def test_a_corrupted_set_below_a_folder_with_an_at_sign_is_not_a_feature_set(
    home: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(home / "tiny-c", tmp_path / "me@host" / "tiny-c")
    ended = CliRunner().invoke(
        app, ["verify", str(place), "--probe", "--store", str(home / "store")]
    )
    assert ended.exit_code == 0, ended.output


@pytest.fixture
def verify(store: FeatureStore) -> Callable[..., tuple[int, str]]:
    """Runs `verify` on a store; returns its exit code and what it printed."""

    def run(*words: str) -> tuple[int, str]:
        ended = CliRunner().invoke(app, ["verify", *words, "--store", store.location])
        return ended.exit_code, ended.output

    return run


def test_missing_shards_and_unfinished_artifacts_are_counted_in_one_line(
    store: FeatureStore, numbers: FeatureSet, verify: Callable[..., tuple[int, str]]
) -> None:
    numbers.shard_set.storage.remove("receipts/00001.json")
    assert verify(numbers.name)[0] == 0
    said = "incomplete: 1 shard missing; an error with --complete"
    assert verify(numbers.name)[1].splitlines()[-1] == said
    store.artifact("head", "first").claim({"seed": 0})
    code, text = verify()
    said = "incomplete: 1 shard missing, 1 unfinished (head first); an error with --complete"
    assert (code, text.splitlines()[-1]) == (0, said)
    store.artifact("head", "first").mark_failed({"seed": 0}, "collapsed")
    failed = f"failed for good and can be removed: {store.location}/heads/first"
    assert verify("--complete")[1].splitlines()[-1].endswith(f"(head first); {failed}")


def test_complete_demands_every_shard_and_every_card(
    store: FeatureStore, numbers: FeatureSet, verify: Callable[..., tuple[int, str]]
) -> None:
    assert verify("--complete")[0] == 0
    head = store.artifact("head", "first")
    head.claim({"seed": 0})
    code, text = verify("--complete", "--json")
    assert (code, json.loads(text)["unfinished"]) == (1, ["head first"])
    assert json.loads(text)["missing_shards"] == {}
    head.write({}, {}, plan={"seed": 0})
    numbers.shard_set.storage.remove("receipts/00001.json")
    code, text = verify("--complete", "--json", numbers.name)
    assert (code, json.loads(text)["wrong"]) == (1, 0)
    assert json.loads(text)["missing_shards"] == {numbers.name: 1}
    assert verify("--complete")[1].splitlines()[-1] == "incomplete: 1 shard missing"


def test_complete_demands_every_shard_of_a_corrupted_set(
    home: Path, tmp_path: Path, verify: Callable[..., tuple[int, str]]
) -> None:
    place = shutil.copytree(home / "tiny-c", tmp_path / "tiny-c")
    assert verify("--complete", str(place))[0] == 0
    (place / "receipts" / "00000.json").unlink()
    assert verify(str(place))[0] == 0
    assert verify("--complete", str(place))[0] == 1
