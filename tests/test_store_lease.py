"""One driver a set: the first is named, a dead one is replaced, a lost lease is noticed."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import store.lease
from store.errors import LeaseError
from store.lease import EXPIRY_S, LEASE_KEY, Lease, holder_of
from store.plan import readable_json
from store.storage import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path))


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
    return process.pid


def write_lease(storage: LocalStorage, **facts: Any) -> None:
    found = {
        "host": "elsewhere",
        "pid": 1,
        "token": "theirs",
        "purpose": "extract numbers",
        "heartbeat": time.time(),
    }
    storage.write(LEASE_KEY, readable_json(found | facts))


def test_a_second_driver_is_refused_and_the_first_is_named(storage: LocalStorage) -> None:
    names_both = f"written by extract numbers \\(pid {os.getpid()} on .*\\): wait for it"
    with Lease(storage, purpose="extract numbers"), pytest.raises(LeaseError, match=names_both):
        Lease(storage, purpose="other").__enter__()


def test_the_lease_is_gone_after_the_work(storage: LocalStorage) -> None:
    with Lease(storage, purpose="extract"):
        assert holder_of(storage) is not None
    assert holder_of(storage) is None
    assert list(storage.keys()) == []


def test_the_lease_is_gone_after_an_error(storage: LocalStorage) -> None:
    with pytest.raises(ZeroDivisionError), Lease(storage, purpose="extract"):
        _ = 1 / 0
    assert list(storage.keys()) == []


def test_a_driver_on_another_host_is_believed_while_its_heart_beats(storage: LocalStorage) -> None:
    write_lease(storage)
    with pytest.raises(LeaseError, match="pid 1 on elsewhere"):
        Lease(storage, purpose="other").__enter__()


def test_the_lease_of_a_dead_process_is_taken_over(storage: LocalStorage, dead_pid: int) -> None:
    write_lease(storage, host=store.lease.socket.gethostname(), pid=dead_pid)
    assert holder_of(storage) is None
    with Lease(storage, purpose="other") as lease:
        assert lease.is_held()


def test_a_lease_whose_heart_stopped_is_taken_over(storage: LocalStorage) -> None:
    write_lease(storage, heartbeat=time.time() - EXPIRY_S - 1)
    with Lease(storage, purpose="other") as lease:
        assert lease.is_held()


def test_of_many_that_take_over_at_once_one_succeeds(storage: LocalStorage) -> None:
    write_lease(storage, heartbeat=0.0)

    def attempt(index: int) -> Lease | None:
        try:
            return Lease(storage, purpose=f"driver {index}").__enter__()
        except LeaseError:
            return None

    with ThreadPoolExecutor(8) as pool:
        (winner,) = [lease for lease in pool.map(attempt, range(8)) if lease is not None]
    assert winner.is_held()
    winner.__exit__(None, None, None)


def test_a_lost_lease_is_noticed_and_left_to_its_holder(storage: LocalStorage) -> None:
    with Lease(storage, purpose="extract") as lease:
        write_lease(storage)
        assert not lease.is_held()
    assert json.loads(storage.read(LEASE_KEY))["token"] == "theirs"


def test_a_removed_lease_is_noticed(storage: LocalStorage) -> None:
    with Lease(storage, purpose="extract") as lease:
        storage.remove(LEASE_KEY)
        assert not lease.is_held()


def test_the_heart_beats_while_the_lease_is_held(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.lease, "HEARTBEAT_S", 0.02)
    with Lease(storage, purpose="extract"):
        before = json.loads(storage.read(LEASE_KEY))["heartbeat"]
        time.sleep(0.2)
        assert json.loads(storage.read(LEASE_KEY))["heartbeat"] > before


def test_a_clock_that_went_back_leaves_a_live_lease_alone_and_names_the_way_out(
    storage: LocalStorage,
) -> None:
    write_lease(storage, heartbeat=time.time() + 86_400)
    with pytest.raises(LeaseError, match=r"if it is gone for good, remove lease\.json there"):
        Lease(storage, purpose="other").__enter__()


GARBAGE = [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'"text"', b'{"host": "a", "pid": 1}']


@pytest.mark.parametrize("data", GARBAGE)
def test_a_lease_file_with_garbage_holds_nothing(storage: LocalStorage, data: bytes) -> None:
    storage.write(LEASE_KEY, data)
    assert holder_of(storage) is None


def test_a_lease_file_with_garbage_is_taken_over(storage: LocalStorage) -> None:
    storage.write(LEASE_KEY, b"[]")
    with Lease(storage, purpose="other") as lease:
        assert lease.is_held()


@pytest.mark.parametrize(
    "facts", [{"pid": "x"}, {"pid": None}, {"pid": -1}, {"pid": 0}, {"heartbeat": "noon"}]
)
def test_a_lease_with_facts_of_another_kind_holds_nothing(
    storage: LocalStorage, facts: dict[str, Any]
) -> None:
    write_lease(storage, **facts)
    assert holder_of(storage) is None


def test_a_pid_that_no_process_can_have_is_dead(storage: LocalStorage) -> None:
    write_lease(storage, host=store.lease.socket.gethostname(), pid=10**30)
    assert holder_of(storage) is None
