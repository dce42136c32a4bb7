"""Values under keys are written atomically."""

import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from store.disk import LocalDisk
from store.errors import NotFoundError, SweptError, WriteError
from store.objects import ObjectStorage
from store.storage import LocalStorage, Storage, checksum

WRITER = """
import sys
from store.storage import LocalStorage
storage = LocalStorage(sys.argv[1])
while True:
    for letter in (b"a", b"b"):
        storage.write("value", letter * 300_000)
        print("wrote", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path))


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest) -> Storage:
    if request.param == "folder":
        folder: Storage = request.getfixturevalue("folder")
        return folder
    return ObjectStorage(request.getfixturevalue("place"))


def test_a_file_is_synced_and_then_the_folder_of_its_name(
    folder: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    # Only the calls can be observed: what a disk does with them shows when the power is cut.
    monkeypatch.setattr(os, "fsync", lambda opened: synced.append(os.fstat(opened).st_ino))
    folder.write("set/value", b"one")
    inodes = [path.stat().st_ino for path in (tmp_path / "set/value", tmp_path / "set", tmp_path)]
    assert synced.index(inodes[0]) < max(at for at, each in enumerate(synced) if each == inodes[1])
    assert inodes[2] in synced  # which holds the name of the folder


@pytest.mark.parametrize("key", ["a", "a/b/c", "with space/ü日本", "features/c/0/0"])
def test_what_was_written_is_read_back(storage: Storage, key: str) -> None:
    storage.write(key, b"one")
    storage.write(key, b"other")
    assert storage.read(key) == b"other"
    assert storage.size(key) == 5
    assert list(storage.keys()) == [key]


def test_an_absent_key_has_no_size_and_cannot_be_read(storage: Storage) -> None:
    assert storage.size("nothing") is None
    with pytest.raises(NotFoundError, match="there is no nothing"):
        storage.read("nothing")


def test_an_absent_key_may_be_removed(storage: Storage) -> None:
    storage.remove("nothing")
    assert list(storage.keys("nothing")) == []


def test_creation_keeps_existing_files(storage: Storage) -> None:
    assert storage.create("key", b"first")
    assert not storage.create("key", b"second")
    assert storage.read("key") == b"first"
    assert list(storage.keys()) == ["key"]


def test_one_of_many_concurrent_creators_succeeds(storage: Storage) -> None:
    contents = [str(index).encode() for index in range(16)]
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda data: storage.create("new/key", data), contents))
    assert created.count(True) == 1
    assert storage.read("new/key") == contents[created.index(True)]


def test_a_child_keeps_its_keys_below(storage: Storage) -> None:
    storage.child("a").child("b").write("key", b"1")
    assert list(storage.keys()) == ["a/b/key"]
    assert list(storage.keys("a")) == ["a/b/key"]


def test_a_killed_writer_leaves_the_old_value_or_the_new_one(folder: LocalStorage) -> None:
    command = [sys.executable, "-c", WRITER, folder.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.1)
        writer.send_signal(signal.SIGKILL)
    assert folder.read("value") in (b"a" * 300_000, b"b" * 300_000)


@pytest.mark.parametrize("key", ["file/key", "file/below/key"])
def test_a_key_below_a_file_is_refused_with_a_remedy(folder: LocalStorage, key: str) -> None:
    folder.write("file", b"")
    with pytest.raises(WriteError, match="a part of that path is a file: choose another location"):
        folder.write(key, b"")


def test_a_key_that_is_a_folder_is_refused_and_nothing_is_left(folder: LocalStorage) -> None:
    folder.write("folder/key", b"")
    with pytest.raises(WriteError, match="cannot write"):
        folder.write("folder", b"")
    with pytest.raises(WriteError, match="cannot write"):
        folder.remove("folder")
    assert list(folder.keys()) == ["folder/key"]


def test_a_folder_that_cannot_be_listed_is_not_treated_as_empty(
    folder: LocalStorage,
) -> None:
    with pytest.raises(OSError, match="too long"):
        folder.keys("x" * 300)


def test_a_full_disk_keeps_the_old_value_and_no_staged_file(tiny_disk: Path) -> None:
    storage = LocalStorage(str(tiny_disk))
    storage.write("key", b"old")
    with pytest.raises(WriteError, match="the disk is full: free some space"):
        storage.write("key", os.urandom(512 * 1024))
    assert storage.read("key") == b"old"
    assert list(storage.keys()) == ["key"]


def test_a_read_only_disk_is_refused_with_a_remedy(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(WriteError, match="read-only: choose another location"):
        LocalStorage(str(tiny_disk)).write("key", b"")


def test_the_checksum_is_sha256() -> None:
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checksum(b"abc") == expected  # the first example of FIPS 180-2, appendix B.1


def test_a_folder_that_someone_else_made_is_synced_too(tmp_path: Path) -> None:
    """Who made it may have died before it was synced."""
    synced: list[str] = []

    class Seen(LocalDisk):
        def sync_folder(self, path: str) -> None:
            synced.append(path)
            super().sync_folder(path)

    (tmp_path / "set" / "receipts").mkdir(parents=True)
    storage = LocalStorage(str(tmp_path / "set"), Seen())
    storage.write("receipts/00000.json", b"")
    assert {str(tmp_path / each) for each in ("", "set", "set/receipts")} <= set(synced)


def test_keys_are_withdrawn_and_leave_nothing(storage: Storage) -> None:
    storage.write("a/b", b"x")
    storage.withdraw(["a/b", "a/absent"], lambda: None)
    assert (list(storage.keys()), storage.sizes(), storage.staged()) == ([], {}, [])
    assert storage.size("a/b") is None
    with pytest.raises(NotFoundError):
        storage.read("a/b")


def test_what_was_withdrawn_can_be_published_again(storage: Storage) -> None:
    storage.write("a/b", b"x")
    storage.withdraw(["a/b"], lambda: None)
    assert storage.publish_new(storage.stage("a/b", b"y"), "a/b")
    assert not storage.publish_new(storage.stage("a/b", b"z"), "a/b")
    assert storage.read("a/b") == b"y"


def test_a_swept_withdrawal_removes_nothing(storage: Storage) -> None:
    storage.write("a/b", b"x")
    with pytest.raises(SweptError, match="another driver has taken over"):
        storage.withdraw(["a/b"], storage.sweep)
    assert storage.read("a/b") == b"x"


def test_a_staged_value_has_no_key_and_can_be_swept(storage: Storage) -> None:
    staged = storage.stage("folder/key", b"1")
    assert (list(storage.keys()), storage.staged()) == ([], [staged])
    assert staged.startswith("key.")
    storage.sweep()
    assert storage.staged() == []
    with pytest.raises(SweptError, match="another driver has taken over"):
        storage.publish(staged, "folder/key")


def test_a_storage_travels_to_another_process(storage: Storage) -> None:
    assert pickle.loads(pickle.dumps(storage)) == storage


def test_what_was_staged_is_published_together(storage: Storage) -> None:
    names = storage.stage_all({"a/one": b"1", "a/two": b"2"})
    storage.publish_all(names)
    assert [(key, storage.read(key)) for key in storage.keys("")] == [
        ("a/one", b"1"),
        ("a/two", b"2"),
    ]
    assert storage.staged() == []


def test_a_new_key_is_published_once(storage: Storage) -> None:
    first, second = storage.stage("key", b"first"), storage.stage("key", b"second")
    assert storage.publish_new(first, "key")
    assert not storage.publish_new(second, "key")
    assert (storage.read("key"), storage.staged()) == (b"first", sorted([first, second]))


def test_what_was_swept_cannot_become_a_new_key(storage: Storage) -> None:
    staged = storage.stage("key", b"")
    storage.sweep()
    with pytest.raises(SweptError):
        storage.publish_new(staged, "key")
    assert storage.size("key") is None


def test_keys_are_listed_by_folders_and_not_by_beginnings(storage: Storage) -> None:
    for key in ("a/x", "ab/y", "a/b/z", "c"):
        storage.write(key, b"12")
    assert list(storage.keys("a")) == ["a/b/z", "a/x"]
    assert (storage.folders(), storage.folders("a"), storage.folders("no")) == (
        ["a", "ab"],
        ["b"],
        [],
    )
    assert storage.size("a") is None
    assert storage.sizes() == dict.fromkeys(("a/b/z", "a/x", "ab/y", "c"), 2)


def test_a_log_grows_line_by_line(storage: Storage) -> None:
    log = storage.log("journal/run.jsonl")
    assert not log.exists()
    for line in ("one", "two", "three"):
        log.add(line)
    log.flush()
    assert storage.read("journal/run.jsonl") == b"one\ntwo\nthree\n"
