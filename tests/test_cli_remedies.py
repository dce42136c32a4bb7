"""What the command line adds to the errors of the store, which names no command."""

import errno
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Command
from small_data import train_small, write_npz_set

from cli.remedies import with_remedy
from pipeline.errors import RunFailedError
from store import errors, shardset, tables
from store.catalog import FeatureStore
from store.encoding import samples_key
from store.failures import ACCEPTED_KEY
from store.featureset import FeatureSet
from store.shardset import receipt_key

EXTRACT = "extract --dataset tiny --model cnn2 --executor local"
"""Extracts the four images of a test split."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, ``tiny``, and a store with a model."""
    folder = tmp_path_factory.mktemp("home")
    write_npz_set(folder / "tiny", 20, 4)
    train_small(FeatureStore(str(folder / "store")).prepare(), folder / "tiny")
    return folder


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``trained`` as the current folder, with its store as the default store of each
    command."""
    home = shutil.copytree(trained, tmp_path / "home")
    monkeypatch.chdir(home)
    monkeypatch.setenv("INTRO_PIPE_STORE", str(home / "store"))
    return home


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (errors.StoreNotFoundError("it"), "--store or INTRO_PIPE_STORE"),
        (errors.FeatureSetNotFoundError("it"), "create one with `intro-pipe extract`"),
        (errors.ArtifactNotFoundError("it"), "`intro-pipe ls` lists what exists"),
        (errors.IncompleteError("it"), "`intro-pipe resume`"),
        (errors.RetryableRowsError("it"), "--retry-failed, or with --accept-failed"),
        (errors.DamagedSetError("it"), "see `intro-pipe repair`"),
        (errors.DamagedSetError("it", "tiny@net-0123"), "see `intro-pipe repair tiny@net-0123`"),
        (errors.ShardSizeError("it"), "set --shard-rows"),
    ],
)
def test_an_error_of_the_store_ends_with_the_command_that_helps(
    error: errors.StoreError, remedy: str
) -> None:
    said = with_remedy(error)

    assert said.startswith("it: ")
    assert remedy in said


def test_a_run_that_failed_because_of_its_rows_names_the_options_too() -> None:
    error = RunFailedError("too many rows failed")
    error.__cause__ = errors.RetryableRowsError("too many rows failed")

    assert "--accept-failed" in with_remedy(error)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR])
def test_a_location_that_cannot_be_written_is_set_with_an_option(number: int) -> None:
    error = errors.WriteError(number, "cannot write it")

    assert with_remedy(error) == "cannot write it: set --store, or --out for images"


def test_a_full_disk_needs_no_other_location() -> None:
    assert with_remedy(errors.WriteError(errno.ENOSPC, "it is full")) == "it is full"


@pytest.mark.usefixtures("home")
def test_a_read_only_store_is_refused_with_the_option(tiny_disk: Path, intro_pipe: Command) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    _, said = intro_pipe(f"train-sensing --dataset tiny --store {tiny_disk}/store", 1)

    assert said.splitlines()[-1].endswith(
        ": the file system is read-only: choose another location: set --store, or --out for images"
    )


def test_too_many_shards_are_refused_with_the_option(
    home: Path, intro_pipe: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shardset, "MAX_SHARDS", 3)
    _, said = intro_pipe(f"{EXTRACT} --shard-rows 1", 2)

    assert said.splitlines()[-1] == (
        "intro-pipe: 4 rows in shards of 1 are 4 shards, at most 3 are allowed: use more rows per "
        "shard: set --shard-rows"
    )


def test_shards_that_are_too_large_fail_with_the_option(
    home: Path, intro_pipe: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 10)
    _, said = intro_pipe(f"{EXTRACT} --shard-rows 4", 1)

    assert "the sample columns of a shard: expected a table of at most" in said
    assert said.splitlines()[-1].endswith(": set --shard-rows")


def test_an_altered_acceptance_is_reported_with_the_option(
    store: FeatureStore, numbers: FeatureSet, intro_pipe: Command
) -> None:
    numbers.shard_set.storage.write(ACCEPTED_KEY, b"{}")
    said, _ = intro_pipe(f"verify {numbers.name} --store {store.location}", 1)

    (line,) = [line for line in said.splitlines() if ACCEPTED_KEY in line]
    assert line.endswith("accept the failed rows again: `intro-pipe extract ... --accept-failed`")


def test_a_damaged_set_is_named_in_the_command_that_repairs_it(
    home: Path, intro_pipe: Command
) -> None:
    intro_pipe(EXTRACT)
    found = FeatureStore(str(home / "store")).open("tiny@cnn2")
    found.shard_set.storage.write(samples_key(found.shard_set.shards[0]), b"torn")
    _, said = intro_pipe("query tiny@cnn2", 1)

    assert said.splitlines()[-1].endswith(f"): see `intro-pipe repair {found.name}`")


def test_a_run_that_meets_a_damaged_receipt_names_the_command(
    home: Path, intro_pipe: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = shardset.ShardSet.publish

    def beside_damage(found: shardset.ShardSet, staged: shardset.StagedShard, **_: object) -> None:
        found.storage.write(receipt_key(staged.shard), b"torn")
        publish(found, staged)

    monkeypatch.setattr(shardset.ShardSet, "publish", beside_damage)
    _, said = intro_pipe(f"{EXTRACT} --shard-rows 3", 1)

    assert "receipts/00000.json cannot be trusted" in said
    assert said.splitlines()[-1].endswith(": see `intro-pipe repair`")


def test_a_step_that_failed_has_the_remedy_of_its_run() -> None:
    run, step = RunFailedError("it"), RunFailedError("step one: it")
    run.__cause__, step.__cause__ = errors.DamagedSetError("it", "tiny@net-0123"), run

    assert with_remedy(step) == "step one: it: see `intro-pipe repair tiny@net-0123`"


@pytest.mark.parametrize(
    "error",
    [
        errors.DamagedError("it"),
        errors.NotFoundError("it"),
        errors.FailedRowsError("it"),
        OSError("it"),
    ],
)
def test_other_errors_are_printed_unchanged(error: Exception) -> None:
    assert with_remedy(error) == "it"
