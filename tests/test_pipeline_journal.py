"""The journal records how every run ended, including runs that crashed."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import JournalError
from pipeline.journal import Journal, last_unfinished, runs
from store.errors import WriteError
from store.storage import FileLog


def begin_and_end(store: Path, command: str, error: BaseException | None = None) -> Journal:
    journal = Journal.of(str(store), [command]).begin()
    with suppress(RuntimeError, ValueError, KeyboardInterrupt), journal.outcome():
        if error is not None:
            raise error
    return journal


def test_a_run_that_ends_well_is_done(tmp_path: Path) -> None:
    begin_and_end(tmp_path, "extract")
    (run,) = runs(str(tmp_path))
    assert (run.command, run.folder, run.outcome) == (("extract",), str(Path.cwd()), "done")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RuntimeError("it broke"), "failed"),
        (ValueError("it does not fit"), "refused"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_a_run_that_raises_records_the_error(
    tmp_path: Path, error: BaseException, outcome: str
) -> None:
    journal = begin_and_end(tmp_path, "extract", error)
    assert [run.outcome for run in runs(str(tmp_path))] == [outcome]
    assert f'"error": "{type(error).__name__}: {error}"' in journal.log.path.read_text()


def test_what_was_refused_is_not_resumed(tmp_path: Path) -> None:
    begin_and_end(tmp_path, "extract", ValueError("it does not fit"))
    with pytest.raises(JournalError, match="nothing to resume"):
        last_unfinished(str(tmp_path))


KILLED = """
import os, sys
from pipeline.journal import Journal

journal = Journal.of(sys.argv[1], ["extract"]).begin()
with journal.outcome():
    with journal.log.path.open("a") as file:
        file.write(sys.argv[2])
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("torn", ["", '{"time": 17, "event": "do'], ids=["whole", "torn"])
def test_a_run_that_is_killed_is_unfinished(tmp_path: Path, torn: str) -> None:
    """Also where its last line is torn."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), torn]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [run.outcome for run in runs(str(tmp_path))] == ["unfinished"]
    assert last_unfinished(str(tmp_path)).command == ("extract",)


def test_a_running_run_is_not_resumed(tmp_path: Path) -> None:
    Journal.of(str(tmp_path), ["extract"]).begin()
    assert [run.outcome for run in runs(str(tmp_path))] == ["running"]
    with pytest.raises(JournalError):
        last_unfinished(str(tmp_path))


def test_a_journal_without_a_first_line_is_no_run(tmp_path: Path) -> None:
    Journal.of(str(tmp_path), ["extract"]).begin().log.path.write_text('{"time": 17, "eve')
    assert list(runs(str(tmp_path))) == []


def test_runs_of_one_second_and_one_process_are_distinguished(tmp_path: Path) -> None:
    for command in ("train", "extract", "evaluate"):
        begin_and_end(tmp_path, command)
    assert [run.command for run in runs(str(tmp_path))] == [("evaluate",), ("extract",), ("train",)]


def test_the_run_to_resume_is_the_newest_that_did_not_end_well(tmp_path: Path) -> None:
    begin_and_end(tmp_path, "train", RuntimeError())
    begin_and_end(tmp_path, "extract", RuntimeError())
    begin_and_end(tmp_path, "evaluate")
    assert last_unfinished(str(tmp_path)).command == ("extract",)


def test_a_run_that_was_repeated_with_success_is_not_resumed(tmp_path: Path) -> None:
    begin_and_end(tmp_path, "train", RuntimeError())
    begin_and_end(tmp_path, "extract", RuntimeError())
    begin_and_end(tmp_path, "extract")
    assert last_unfinished(str(tmp_path)).command == ("train",)


def test_the_same_words_in_another_folder_are_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    for folder, error in (("here", RuntimeError()), ("there", None)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        begin_and_end(store, "run", error)
    assert last_unfinished(str(store)).folder == str(tmp_path / "here")


@pytest.mark.parametrize("commands", [[], ["extract"]])
def test_there_is_nothing_to_resume_where_every_run_is_done(
    tmp_path: Path, commands: list[str]
) -> None:
    for command in commands:
        begin_and_end(tmp_path, command)
    with pytest.raises(JournalError, match="there is nothing to resume"):
        last_unfinished(str(tmp_path))


full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@full
def test_a_full_disk_is_one_of_our_errors() -> None:
    with pytest.raises(WriteError, match="cannot write /dev/full: the disk is full"):
        Journal(FileLog(Path("/dev/full"))).note("shard")


@full
def test_a_full_disk_does_not_hide_the_error_of_the_run() -> None:
    with (
        pytest.raises(RuntimeError, match="it broke"),
        Journal(FileLog(Path("/dev/full"))).outcome(),
    ):
        raise RuntimeError("it broke")


def test_a_run_names_the_process_that_wrote_it(tmp_path: Path) -> None:
    journal = Journal.of(str(tmp_path), ["extract"]).begin()
    assert f'"pid": {os.getpid()}' in journal.log.path.read_text()


def test_a_run_that_has_nothing_to_do_leaves_nothing(tmp_path: Path) -> None:
    with Journal.of(str(tmp_path), ["extract"]).outcome():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_several_stages_begins_and_ends_once(tmp_path: Path) -> None:
    with Journal.of(str(tmp_path), ["reproduce"]).outcome() as journal:
        journal.begin()
        journal.begin()
    events = [json.loads(line)["event"] for line in journal.log.path.read_text().splitlines()]
    assert events == ["started", "done"]
