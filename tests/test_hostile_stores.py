"""Foreign stores, journals and archives: nothing leaves its folder, and nothing is run."""

import hashlib
import io
import json
import os
import re
import shutil
import stat
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cells
import pytest
from conftest import Command, Refusal
from hostile import MARKER
from small_data import write_npz as write_images

from cli.app import main
from cli.replay import Named, replayed
from pipeline.journal import Journal, Run, runs
from pipeline.terminal import printable
from stages.data.download import Recipe, Remote, download
from stages.data.known import data_root_path
from stages.errors import StageError
from stages.sensing.build import build_network
from stages.sensing.trust import trusted_file
from stages.sensing.weights import save_weights
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import DamagedError, FormatError, NotFoundError
from store.featureset import FeatureSet
from store.lease import Lease
from store.plan import fingerprint, readable_json
from store.seal import sealed, unsealed, vouch
from store.shardset import receipt_key
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
    receipt = unsealed(shard_set.storage.read(receipt_key(shard)))
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
    refused: Refusal,
    name: str,
) -> None:
    (tmp_path / "data").mkdir()
    write_images(tmp_path / "data" / "digits.npz", 10)
    words = ["train-sensing", "--dataset", "digits.npz", "--preset", "quick", "--name", name]
    assert "cannot be the name of a model" in refused(*words)


@pytest.mark.parametrize("kind", ["model", "head", "result", "report"])
@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", "..", "a\0b"])
def test_whatever_is_kept_has_a_name_and_no_path(store: FeatureStore, kind: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be the name of a {kind}"):
        store.artifact(kind, name)


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


def test_a_pipe_in_place_of_a_file_does_not_block(numbers: FeatureSet) -> None:
    place = Path(numbers.shard_set.storage.location, "receipts", "00001.json")
    place.unlink()
    os.mkfifo(place)
    assert [p.kind for p in verify_feature_set(numbers)] == ["unreadable"]


def test_a_device_in_place_of_a_file_counts_as_missing(numbers: FeatureSet) -> None:
    place = Path(numbers.shard_set.storage.location, "square", "c", "1", "0")
    place.unlink()
    try:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero has no end
    except PermissionError:
        pytest.skip("only root can make a device")
    problems = list(verify_feature_set(numbers))
    assert [(p.kind, p.key) for p in problems] == [("missing", "square/c/1/0")]


def test_a_set_may_be_on_another_disk(store: FeatureStore, numbers: FeatureSet) -> None:
    """Its folder may be a link, what is in it may not."""
    place = Path(numbers.shard_set.storage.location)
    elsewhere = place.rename(place.parents[2] / "elsewhere")
    place.symlink_to(elsewhere)
    assert list(verify_feature_set(store.open("numbers@square"))) == []


# Journals: what their commands become is in test_cli_replay.py


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
        {"environment": {"RAY_ADDRESS": "ray://evil:10001"}},
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
        {"stage": None},
        {"stage": "extract"},
        {"stage": {"dataset": "digits"}},
        {"stage": {"stage": 5}},
        {"stage": {"stage": "extract", "dataset": "a\0b"}},
        {"stage": {"stage": "extract", "classes": ["\ud800"]}},
        {"data_root": 5},
        {"resumes": ["x"]},
    ],
    ids=repr,
)
def test_other_files_among_the_journals_are_ignored(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    assert journal_of(tmp_path) is not None
    (journal,) = (tmp_path / "journal").iterdir()
    journal.unlink()
    assert journal_of(tmp_path, **changes) is None


def test_a_replayed_command_runs_no_code_that_the_user_has_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # nothing is trusted yet
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({str(MARKER)!r})")
    FeatureStore(str(tmp_path / "store")).prepare()
    there: dict[str, object] = {"folder": str(tmp_path), "data_root": str(data_root_path())}
    extract = {"dataset": "digits", "network": "evil.py:net", "weights": "w.pt"}
    train = {"dataset": "digits", "network": "evil:net"}
    for recorded in (
        {"command": ["extract", *(f"--{key}={value}" for key, value in extract.items())]},
        {"command": ["train-sensing", *(f"--{key}={value}" for key, value in train.items())]},
        {"command": ["active-learn", *(f"--{key}={value}" for key, value in train.items())]},
        {"command": ["reproduce", "table-5", "--set", "networks=[evil.py:net]"]},
        {"stage": {"stage": "extract", **extract}},
        {"stage": {"stage": "train-sensing", **train}},
    ):
        run = journal_of(tmp_path / "store", **there, **recorded)
        assert run is not None
        again = replayed(run, str(tmp_path / "store"), Named(executor="local"))
        with pytest.raises(StageError, match="the journal would run code"):
            again.make(as_json=False)
    assert not Path(MARKER).exists()
    assert not trusted_file().exists()


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
    with pytest.raises(StageError, match=r"x\.tar\.gz|could not be downloaded"):
        download("cifar10", tmp_path / "data", recipes=recipes)
    assert list((tmp_path / "data").iterdir()) == []


# The screen


def test_control_characters_in_names_are_escaped(tmp_path: Path, intro_pipe: Command) -> None:
    store = FeatureStore(str(tmp_path / "store")).prepare()
    journal_of(tmp_path / "store", command=["extract", "\x1b]0;title\x07\x9b2J", "a\nb"])
    store.storage.write("models/\x1b[2J\u202enet/plan.json", b"{}")
    model = r"'\x1b[2J\u202enet' cannot be the name of a model: "
    expected = {
        "status": model,
        "ls": model,
        "verify \x1b[2J": rf"no feature set '\x1b[2J' in {store.location} (existing: none yet): ",
        "resume --dry-run": "the journal contains `intro-pipe extract "
        rf"--store={store.location} '\x1b]0;title\x07\x9b2J' ",
    }
    for words, message in expected.items():
        out, error = intro_pipe(f"{words} --store {store.location}", code=2)
        assert out == ""
        assert error.startswith(f"intro-pipe: {message}")
        assert printable(error) == error


def test_a_journal_cannot_make_status_stumble(tmp_path: Path) -> None:
    """Lines that intro-pipe would not write are ignored."""
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


NO_TUPLE = "Input should be a valid tuple"
NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"
NO_STRING = "Input should be a valid string"
NO_NUMBER = "Input should be a valid number, unable to parse string as a number"
OF_DATA = "the data set of the plan: "
NO_RECORD = "its plan does not record how it was extracted"

PLANS = {
    "a size that is none": ("source", "image_size", 32, f"{OF_DATA}image_size: {NO_TUPLE}"),
    "no size": ("source", "image_size", [], f"{OF_DATA}image_size.0: Field required"),
    "a size in words": (
        "source",
        "image_size",
        ["a", "b"],
        f"{OF_DATA}image_size.0: {NO_INTEGER}",
    ),
    "a name with a zero byte": (
        "source",
        "name",
        "a\0b",
        f"{OF_DATA}expected a name, found a zero byte in it",
    ),
    "classes that are none": ("source", "class_names", 5, f"{OF_DATA}class_names: {NO_TUPLE}"),
    "classes without names": (
        "source",
        "class_names",
        [[1], [2]],
        f"{OF_DATA}class_names.0: {NO_STRING}",
    ),
    "rows in words": ("source", "n_rows", "x", f"{OF_DATA}n_rows: {NO_INTEGER}"),
    "a model elsewhere": (
        "model",
        "name",
        "../../x",
        "'../../x' cannot be the name of a model: use letters, digits, - and _, 200 bytes at most",
    ),
    "a network that is none": ("model", "network", 5, f"model card: network: {NO_STRING}"),
    "a layer that is not there": (
        "model",
        "last_layer",
        "nowhere",
        "model m: the network has no layer 'nowhere'; the card belongs to another network",
    ),
    "a layer that is none": ("model", "last_layer", 5, f"model card: last_layer: {NO_STRING}"),
    "no deviation": ("model", "std", ["a"], f"model card: std.0: {NO_NUMBER}"),
    "no precision": ("stage", "params", [], NO_RECORD),
    "parameters that are none": ("stage", "params", 5, NO_RECORD),
}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """A set of digits with its model and its journal; leave it as it is."""
    place = tmp_path_factory.mktemp("extracted")
    network = build_network("cnn2", 10)
    (place / "w.safetensors").write_bytes(save_weights(network))
    words = f"--network cnn2 --weights {place}/w.safetensors --limit 4 --executor local"
    words = f"extract --dataset digits --model m {words} --store {place}/store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["intro-pipe", *words.split()])
        with pytest.raises(SystemExit):
            main()
    (found,) = FeatureStore(str(place / "store")).feature_sets()
    return found


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_that_fits_its_name_cannot_make_status_or_verify_stumble(
    tmp_path: Path,
    extracted: FeatureSet,
    intro_pipe: Command,
    case: str,
) -> None:
    """The author of a store chose both its plans and the matching folder names."""
    root = Path(extracted.shard_set.storage.location)
    store = Path(shutil.copytree(root.parents[1], tmp_path / "store"))
    plan = json.loads((root / "plan.json").read_text())
    part, key, value, detail = PLANS[case]
    (plan if part == "stage" else plan["inputs"])[part][key] = value
    name = f"{extracted.name.rpartition('-')[0]}-{fingerprint(plan)[:12]}"
    place = (store / "features" / extracted.name).rename(store / "features" / name)
    (place / "plan.json").write_bytes(readable_json(plan))
    for receipt in (place / "receipts").glob("*.json"):
        facts = unsealed(receipt.read_bytes()) | {"plan": fingerprint(plan)}
        receipt.write_bytes(sealed(facts))
    for journal in (store / "journal").iterdir():
        journal.write_text(journal.read_text().replace(extracted.name, name))
    for words in ("status", "ls"):
        out, _ = intro_pipe(f"{words} --store {store}")
        assert name in out
    out, _ = intro_pipe(f"verify --probe --store {store}", code=1)
    _, problem, total = out.splitlines()
    assert re.split("  +", problem) == [name, "not probed", detail]
    assert total.endswith(": 1 problem, 0 notes")


# Permissions


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o027, 0o077])
def test_files_of_a_store_follow_the_umask(tmp_path: Path, mask: int) -> None:
    """A shared store has a umask of 002; no file gets more permissions than the umask allows."""
    before = os.umask(mask)
    try:
        store = FeatureStore(str(tmp_path / "store")).prepare()
        found = cells.cells(store)
        head = store.artifact("head", "h")
        head.claim({})
        head.write({"weights.safetensors": b"x"}, {}, plan={})
        with Lease(found.shard_set.storage, purpose="test"):
            journal_of(tmp_path / "store")
        found.shard_set.storage.stage("left", b"by a kill")
    finally:
        os.umask(before)
    paths = list((tmp_path / "store").rglob("*"))
    assert {path.parent.name for path in paths} >= {"journal", "lease", "receipts", ".staging", "h"}
    for path in paths:
        expected = (0o777 if path.is_dir() else 0o666) & ~mask
        assert path.stat().st_mode & 0o777 == expected, path
