"""Bytes under keys: whole or not at all."""

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
from store.storage import STAGING, LocalStorage, checksum

WRITER = """
import sys
from store.storage import STAGING, LocalStorage
storage = LocalStorage(sys.argv[1])
while True:
    for letter in (b"a", b"b"):
        storage.write("value", letter * 300_000)
        print("wrote", flush=True)
"""


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path))


@pytest.mark.parametrize("key", ["a", "a/b/c", "with space/ü日本", "features/c/0/0"])
def test_what_was_written_is_read_back(storage: LocalStorage, key: str) -> None:
    storage.write(key, b"one")
    storage.write(key, b"other")
    assert storage.read(key) == b"other"
    assert storage.size(key) == 5
    assert list(storage.keys()) == [key]


def test_an_absent_key_has_no_size_and_cannot_be_read(storage: LocalStorage) -> None:
    assert storage.size("nothing") is None
    with pytest.raises(NotFoundError, match="there is no nothing"):
        storage.read("nothing")


def test_an_absent_key_may_be_removed(storage: LocalStorage) -> None:
    storage.remove("nothing")
    assert list(storage.keys("nothing")) == []


def test_creation_leaves_what_is_there(storage: LocalStorage) -> None:
    assert storage.create("key", b"first")
    assert not storage.create("key", b"second")
    assert storage.read("key") == b"first"
    assert list(storage.keys()) == ["key"]


def test_of_many_creators_one_succeeds(storage: LocalStorage) -> None:
    contents = [str(index).encode() for index in range(16)]
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda data: storage.create("new/key", data), contents))
    assert created.count(True) == 1
    assert storage.read("new/key") == contents[created.index(True)]


def test_a_child_keeps_its_keys_below(storage: LocalStorage) -> None:
    storage.child("a").child("b").write("key", b"")
    assert list(storage.keys()) == ["a/b/key"]
    assert list(storage.keys("a")) == ["a/b/key"]


def test_a_killed_writer_leaves_the_old_value_or_the_new_one(storage: LocalStorage) -> None:
    command = [sys.executable, "-c", WRITER, storage.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.1)
        writer.send_signal(signal.SIGKILL)
    assert storage.read("value") in (b"a" * 300_000, b"b" * 300_000)


@pytest.mark.parametrize("key", ["file/key", "file/below/key"])
def test_a_key_below_a_file_is_refused_with_the_way_out(storage: LocalStorage, key: str) -> None:
    storage.write("file", b"")
    with pytest.raises(WriteError, match="a part of that path is a file: choose another place"):
        storage.write(key, b"")


def test_a_key_that_is_a_folder_is_refused_and_nothing_is_left(storage: LocalStorage) -> None:
    storage.write("folder/key", b"")
    with pytest.raises(WriteError, match="cannot write"):
        storage.write("folder", b"")
    with pytest.raises(WriteError, match="cannot write"):
        storage.remove("folder")
    assert list(storage.keys()) == ["folder/key"]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    storage: LocalStorage,
) -> None:
    place = Path(storage.root, "receipts")
    place.symlink_to(place)
    with pytest.raises(OSError, match="symbolic links"):
        storage.keys("receipts")


def test_a_full_disk_keeps_the_old_value_and_leaves_nothing_beside(tiny_disk: Path) -> None:
    storage = LocalStorage(str(tiny_disk))
    storage.write("key", b"old")
    with pytest.raises(WriteError, match="the disk is full: free some space"):
        storage.write("key", os.urandom(512 * 1024))
    assert storage.read("key") == b"old"
    assert list(storage.keys()) == ["key"]


def test_a_read_only_disk_is_refused_with_the_way_out(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(WriteError, match="read-only: choose another place with --store"):
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


def test_keys_are_withdrawn_and_leave_nothing(storage: LocalStorage) -> None:
    storage.write("a/b", b"x")
    storage.withdraw(["a/b", "a/absent"], lambda: None)
    assert list(storage.keys()) == []
    assert storage.folders(STAGING) == []


def test_what_a_sweep_has_stopped_withdraws_nothing(storage: LocalStorage) -> None:
    storage.write("a/b", b"x")
    with pytest.raises(SweptError, match="another driver has taken over"):
        storage.withdraw(["a/b"], storage.sweep)
    assert storage.read("a/b") == b"x"


def test_a_staged_value_has_no_key_and_can_be_swept(storage: LocalStorage) -> None:
    staged = storage.stage("folder/key", b"1")
    assert (list(storage.keys()), storage.staged()) == ([], [staged])
    assert staged.startswith("key.")
    storage.sweep()
    assert storage.staged() == []
    with pytest.raises(SweptError, match="another driver has taken over"):
        storage.publish(staged, "folder/key")


def test_a_storage_travels_to_another_process(storage: LocalStorage) -> None:
    assert pickle.loads(pickle.dumps(storage)) == storage
