"""A store, a journal or an archive of someone else's: nothing leaves its folder, nothing is run."""

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import MARKER, Command, refused  # noqa: F401 - a fixture
from small_data import write_npz as write_images

from cli.app import main
from cli.runs import command_of
from pipeline.errors import JournalError
from pipeline.journal import Journal, Run, runs
from pipeline.terminal import printable
from stages.data.download import Recipe, Remote, download
from stages.errors import StageError
from stages.sensing.trust import REPLAYED, require_trust, trust, trusted_file
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import DamagedError, FormatError, NotFoundError
from store.featureset import FeatureSet
from store.seal import sealed, vouch
from store.storage import LocalStorage
from store.verify import repair, verify_artifact, verify_feature_set, verify_files

SECRET = b"not for the store"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the store; at the end it must be as it was."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret").write_bytes(SECRET)
    yield place
    assert [path.name for path in place.iterdir()] == ["secret"]
    assert (place / "secret").read_bytes() == SECRET


# Keys

ASTRAY = ["../outside/secret", "a/../../outside/secret", "/etc/passwd", "a\0b"]


@pytest.mark.parametrize("key", ASTRAY)
@pytest.mark.parametrize("use", ["read", "remove", "size", "write", "create", "stage", "keys"])
def test_a_key_does_not_lead_out_of_the_store(
    tmp_path: Path, outside: Path, key: str, use: str
) -> None:
    storage = LocalStorage(str(tmp_path / "root"))
    data = (b"data",) if use in ("write", "create", "stage") else ()
    with pytest.raises(FormatError, match="leads out of"):
        getattr(storage, use)(key, *data)
    with pytest.raises(FormatError, match="leads out of"):
        storage.child(key)


@pytest.mark.parametrize("key", ["../../../outside/secret", "/etc/passwd"])
def test_a_receipt_that_vouches_for_files_elsewhere_is_damaged(
    tmp_path: Path, numbers: FeatureSet, outside: Path, key: str
) -> None:
    shard_set, shard = numbers.shard_set, numbers.shard_set.shards[0]
    receipt = shard_set.receipt(shard)
    receipt["files"][key] = vouch(b"something else")
    shard_set.storage.write("receipts/00000.json", sealed(receipt))
    for verify in (lambda: verify_files(shard_set), lambda: verify_feature_set(numbers)):
        problems = list(verify())
        assert [problem.kind for problem in problems] == ["damaged receipt"]
    repair(shard_set, problems)
    assert not any(SECRET in path.read_bytes() for path in files_in(numbers))


def files_in(numbers: FeatureSet) -> list[Path]:
    paths = Path(numbers.shard_set.storage.location).rglob("*")
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_a_card_that_vouches_for_files_elsewhere_is_damaged(
    store: FeatureStore, outside: Path
) -> None:
    artifact: Artifact = store.artifact("model", "net")
    artifact.storage.write("plan.json", b"{}")
    card = {"files": {"../../../outside/secret": vouch(SECRET)}}
    artifact.storage.write("model.json", sealed(card))
    assert [problem.kind for problem in verify_artifact(artifact)] == ["altered"]
    with pytest.raises(DamagedError, match="leads out of the folder"):
        artifact.card()


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", ".hidden", "a\x1b[2J", "x" * 300])
def test_a_model_has_a_name_and_no_path(
    tmp_path: Path,
    refused: Command,  # noqa: F811
    name: str,
) -> None:
    (tmp_path / "data").mkdir()
    write_images(tmp_path / "data" / "digits.npz", 10)
    words = ["train-sensing", "--dataset", "digits.npz", "--preset", "quick", "--name", name]
    assert "cannot be the name of a model" in refused(*words)


# Links


@pytest.mark.parametrize("key", [".staging", "receipts", "lease", "square"])
def test_a_folder_of_a_set_that_is_a_link_is_refused(
    numbers: FeatureSet, outside: Path, key: str
) -> None:
    """Taking the lease sweeps `.staging`: behind a link, that would be someone's home."""
    place = Path(numbers.shard_set.storage.location, key)
    if place.exists():
        place.rename(place.with_name("old"))
    place.symlink_to(outside)
    with pytest.raises(FormatError, match="is a link, expected a folder"):
        repair(numbers.shard_set, list(verify_feature_set(numbers)))


def test_a_file_of_a_set_that_is_a_link_is_missing(numbers: FeatureSet, outside: Path) -> None:
    """Else repair would keep a copy of what it leads to in the store."""
    storage = numbers.shard_set.storage
    place = Path(storage.location, "square", "c", "1", "0")
    place.unlink()
    place.symlink_to(outside / "secret")
    with pytest.raises(NotFoundError):
        storage.read("square/c/1/0")
    problems = list(verify_feature_set(numbers))
    assert [(p.kind, p.key) for p in problems] == [("missing", "square/c/1/0")]
    (shard,) = repair(numbers.shard_set, problems)
    assert shard.index == 1
    assert not any(SECRET in path.read_bytes() for path in files_in(numbers))


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(numbers: FeatureSet) -> None:
    place = Path(numbers.shard_set.storage.location, "receipts", "00001.json")
    place.unlink()
    os.mkfifo(place)
    assert [p.kind for p in verify_feature_set(numbers)] == ["unreadable"]


def test_a_set_may_lie_on_another_disk(store: FeatureStore, numbers: FeatureSet) -> None:
    """Its folder may be a link, what is in it may not."""
    place = Path(numbers.shard_set.storage.location)
    elsewhere = place.rename(place.parents[2] / "elsewhere")
    place.symlink_to(elsewhere)
    assert list(verify_feature_set(store.open("numbers@square"))) == []


# Journals


def journal_of(store: Path, **changes: object) -> Run | None:
    journal = Journal.of(str(store), ["extract"])
    started = {
        "command": ["extract", "--dataset", "digits"],
        "folder": str(store),
        "environment": {},
        "host": "elsewhere",
        "pid": 1,
        "process_started": "",
    }
    journal.note("started", **{**started, **changes})
    return next(runs(str(store)), None)


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": {"LD_PRELOAD": "/tmp/evil.so"}},
        {"environment": {"PYTHONPATH": "/tmp/evil"}},
        {"environment": {"INTRO_PIPE_STORE": 5}},
        {"environment": None},
        {"command": "extract; rm -rf /"},
        {"command": ["extract", 5]},
        {"command": ["extract", "\0"]},
        {"command": ["extract", "\ud800"]},
        {"folder": 5},
        {"pid": "1"},
        {"pid": 10**40},
        {"time": "now"},
    ],
    ids=repr,
)
def test_a_journal_that_no_run_has_written_is_no_run(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    assert journal_of(tmp_path) is not None
    (journal,) = (tmp_path / "journal").iterdir()
    journal.unlink()
    assert journal_of(tmp_path, **changes) is None


@pytest.mark.parametrize(
    "words",
    [[], ["query", "x", "--out", "/home/you/.bashrc"], ["resume"], ["demo"], ["-c", "import os"]],
    ids=" ".join,
)
def test_a_journal_gives_only_commands_that_keep_one(tmp_path: Path, words: list[str]) -> None:
    run = journal_of(tmp_path, command=words)
    assert run is not None
    with pytest.raises(JournalError, match="expected one of corrupt, "):
        command_of(run, str(tmp_path))


def test_a_journal_gives_words_to_our_own_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "here:")
    run = journal_of(
        tmp_path / "theirs",
        command=["extract", "--store", "/x", "--store=/y", "--store"],
        environment={"INTRO_PIPE_STORE": "/z", REPLAYED: ""},
    )
    assert run is not None
    command, environment = command_of(run, "/mine")
    ours = [sys.executable, "-P", "-m", "cli.app", "extract"]
    assert command == [*ours, "--store", "/mine", "--store=/mine", "--store", "/mine"]
    assert (environment["INTRO_PIPE_STORE"], environment[REPLAYED]) == ("/mine", "1")
    assert environment["PYTHONPATH"] == str(tmp_path / "here")


@pytest.mark.parametrize("name", ["numpy.py", "store/__init__.py", "json.cpython-311.so"])
def test_a_folder_with_modules_of_known_names_is_not_entered(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    run = journal_of(tmp_path)
    assert run is not None
    with pytest.raises(JournalError, match="give the command there"):
        command_of(run, str(tmp_path))


def test_a_replayed_command_runs_no_code_that_the_user_has_not_named(
    tmp_path: Path,
    refused: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(REPLAYED, "1")
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({str(MARKER)!r})")
    for words in (
        ["extract", "--dataset", "digits", "--network", "evil.py:net", "--weights", "w.pt"],
        ["train-sensing", "--dataset", "digits", "--network", "evil:net"],
        ["reproduce", "table-5", "--set", "networks=[evil.py:net]"],
    ):
        assert "the journal would run code" in refused(*words)


def test_what_the_user_has_named_once_may_be_named_by_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trust("mine.py:net")
    require_trust(f"{tmp_path}/mine.py:net", "a card")
    assert f"{tmp_path}/mine.py:net" in trusted_file().read_text().splitlines()
    with pytest.raises(ValueError, match="a card would run code"):
        require_trust(f"{tmp_path}/mine.py:other", "a card")


def test_a_module_is_known_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nets:net` of this folder is not that of another one."""
    for folder in ("mine", "theirs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text("")
    monkeypatch.chdir(tmp_path / "mine")
    trust("nets:net")
    require_trust("nets:net", "a card")
    monkeypatch.chdir(tmp_path / "theirs")
    with pytest.raises(ValueError, match="a card would run code"):
        require_trust("nets:net", "a card")


# Archives


def tar_with(member: tarfile.TarInfo, data: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        whole = tarfile.TarInfo("set/file")
        tar.addfile(whole)
        tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0
) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, link, size
    return found


ARCHIVES = {
    "a name with ..": tar_with(member("../outside/secret", size=3), b"new"),
    "an absolute name": tar_with(member("/tmp/a-file-has-run-code", size=3), b"new"),
    "a link out": tar_with(member("set/link", tarfile.SYMTYPE, "../../outside")),
    "a link within": tar_with(member("set/link", tarfile.SYMTYPE, "file")),
    "a hard link out": tar_with(member("set/link", tarfile.LNKTYPE, "../outside/secret")),
    "a device": tar_with(member("set/null", tarfile.CHRTYPE)),
    "a pipe": tar_with(member("set/pipe", tarfile.FIFOTYPE)),
    "a bomb": tar_with(member("set/zeros", size=2**21), bytes(2**21)),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_of_anything_but_plain_files_of_the_set_is_refused(
    tmp_path: Path, outside: Path, what: str
) -> None:
    source = tmp_path / "x.tar.gz"
    source.write_bytes(ARCHIVES[what])
    md5 = hashlib.md5(ARCHIVES[what], usedforsecurity=False).hexdigest()
    recipes = {"cifar10": Recipe("set", (Remote(source.as_uri(), md5),), True, 2**20)}
    with pytest.raises(StageError, match=r"x\.tar\.gz|could not be fetched"):
        download("cifar10", tmp_path / "data", recipes=recipes)
    assert list((tmp_path / "data").iterdir()) == []


# The screen


def test_names_give_no_orders_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(str(tmp_path / "store")).prepare()
    journal_of(tmp_path / "store", command=["extract", "\x1b]0;title\x07\x9b2J", "a\nb"])
    store.storage.write("models/\x1b[2J\u202enet/plan.json", b"{}")
    for words in (["status"], ["ls"], ["verify", "\x1b[2J"], ["resume", "--dry-run"]):
        monkeypatch.setattr(sys, "argv", ["intro-pipe", *words, "--store", store.location])
        with pytest.raises(SystemExit):
            main()
        out, error = capsys.readouterr()
        assert out + error
        assert printable(out + error) == out + error


def test_a_journal_cannot_make_status_stumble(tmp_path: Path) -> None:
    """Lines that say what no run of ours would are passed over."""
    from pipeline.activity import activity_of, costs_of

    journal_of(tmp_path)
    journal = next((tmp_path / "journal").iterdir())
    lines = [
        {"event": "work", "time": 1, "title": 5, "place": "p", "unit": "shard", "units": 1},
        {"event": "shard", "time": 1, "lane": [], "shard": 0, "seconds": 1},
        {"event": "at work", "time": 1, "lanes": [{"lane": 0}]},
        {"event": "shard", "time": 1, "lane": 0, "shard": 0, "seconds": 1, "costs": "none"},
        {"event": "shard", "time": 1e400, "lane": 0, "shard": 0, "seconds": 1},
        {"event": ["shard"], "time": 1},
        [],
    ]
    with journal.open("ab") as file:
        file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        file.write(b"\xff\xfe\n" + b"[" * 100_000 + b"\n")
    (run,) = runs(str(tmp_path))
    assert [event["event"] for event in run.events] == ["started", "shard"]
    assert costs_of(run.events)[0]["seconds"] == 1
    assert activity_of(run.events, 2.0) is None
