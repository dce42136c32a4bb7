"""One driver per set: refusals name the holder, dead holders are replaced, loss is detected."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import store.lease
from store.errors import LeaseError
from store.lease import EXPIRY_S, HEARTBEAT_S, Lease, holder_of
from store.machine import HIDDEN, ThisMachine
from store.plan import readable_json
from store.storage import LocalStorage

FIRST = "lease/00000001.json"


@dataclass
class Stand:
    """A machine whose clock and processes the test sets; ``meanwhile`` happens as it sleeps."""

    host: str = "here"
    kernel: str = "ours"
    pid: int = 7
    now: float = 1e9
    processes: dict[int, str] = field(default_factory=lambda: {7: "at noon"})
    meanwhile: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()

    def started(self, pid: int) -> str:
        return self.processes.get(pid, "")

    def every(self, seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path))


def write_lease(storage: LocalStorage, key: str = FIRST, **facts: Any) -> None:
    """That of a driver on another machine whose heart beats at the time of a ``Stand``."""
    found = {
        "host": "elsewhere",
        "kernel": "theirs",
        "pid": 1,
        "process_started": "at dawn",
        "token": "theirs",
        "purpose": "extract numbers",
        "heartbeat": 1e9,
        "is_released": False,
    }
    storage.write(key, readable_json(found | facts))


def take(storage: LocalStorage, machine: Stand) -> Lease:
    return Lease(storage, purpose="other", machine=machine).__enter__()


def test_a_second_driver_is_refused_and_the_first_is_named(storage: LocalStorage) -> None:
    names_both = f"written by extract numbers \\(pid {os.getpid()} on .*\\): wait for it"
    with Lease(storage, purpose="extract numbers"), pytest.raises(LeaseError, match=names_both):
        Lease(storage, purpose="other").__enter__()


def test_the_lease_is_released_after_the_work(storage: LocalStorage) -> None:
    with Lease(storage, purpose="extract"):
        assert (holder_of(storage) or {})["pid"] == os.getpid()
    assert holder_of(storage) is None


def test_the_lease_is_released_after_an_error(storage: LocalStorage) -> None:
    with pytest.raises(ZeroDivisionError), Lease(storage, purpose="extract"):
        _ = 1 / 0
    assert holder_of(storage) is None


def test_numbers_only_grow(storage: LocalStorage) -> None:
    for _ in range(3):
        with Lease(storage, purpose="extract") as lease:
            lease.check()
    assert list(storage.keys()) == [f"lease/0000000{number}.json" for number in (1, 2, 3)]


def test_a_lease_that_someone_removed_is_lost(storage: LocalStorage) -> None:
    with Lease(storage, purpose="extract") as lease:
        storage.remove(FIRST)
        with pytest.raises(LeaseError, match="another driver took over"):
            lease.check()


def test_taking_the_lease_sweeps_staged_files(storage: LocalStorage) -> None:
    storage.stage("features/c/0/0", b"of a driver that is gone")
    with Lease(storage, purpose="extract"):
        assert storage.staged() == []


def test_a_driver_on_another_host_is_believed_while_its_heart_beats(storage: LocalStorage) -> None:
    write_lease(storage)
    with pytest.raises(LeaseError, match="pid 1 on elsewhere"):
        take(storage, Stand(now=1e9 + EXPIRY_S))


@pytest.mark.parametrize("now", [EXPIRY_S + 1, -EXPIRY_S - 1], ids=["behind", "ahead"])
def test_a_doubtful_heart_that_beats_while_we_watch_is_believed(
    storage: LocalStorage, now: float
) -> None:
    """Its clock, or ours, has jumped."""
    write_lease(storage)
    machine = Stand(now=1e9 + now)
    machine.meanwhile = lambda: write_lease(storage, heartbeat=1e9 + 2 * HEARTBEAT_S)
    with pytest.raises(LeaseError, match="pid 1 on elsewhere"):
        take(storage, machine)


@pytest.mark.parametrize("now", [EXPIRY_S + 1, -EXPIRY_S - 1], ids=["behind", "ahead"])
def test_a_holder_without_heartbeats_is_replaced(storage: LocalStorage, now: float) -> None:
    write_lease(storage)
    take(storage, Stand(now=1e9 + now)).check()


def test_a_process_of_this_kernel_is_known_to_be_gone_at_once(storage: LocalStorage) -> None:
    write_lease(storage, kernel="ours")
    machine = Stand()
    take(storage, machine).check()
    assert machine.now == 1e9


def test_another_process_with_the_pid_of_a_dead_one_holds_nothing(storage: LocalStorage) -> None:
    write_lease(storage, kernel="ours")
    take(storage, Stand(processes={7: "at noon", 1: "at dusk"})).check()


def test_a_live_process_of_this_kernel_is_trusted_whatever_the_clock(
    storage: LocalStorage,
) -> None:
    write_lease(storage, kernel="ours")
    for now in (1e9 + 86_400, 1e9 - 86_400):
        with pytest.raises(LeaseError, match="its lease expires 60 s after the last heartbeat"):
            take(storage, Stand(now=now, processes={7: "at noon", 1: "at dawn"}))


def test_a_real_process_that_ended_is_gone(storage: LocalStorage) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        started = ThisMachine().started(process.pid)
        write_lease(
            storage,
            kernel=ThisMachine().kernel,
            pid=process.pid,
            process_started=started,
        )
        assert started
        process.wait()
    assert holder_of(storage) is None
    with Lease(storage, purpose="other") as lease:
        lease.check()


def test_one_of_many_concurrent_takeovers_succeeds(storage: LocalStorage) -> None:
    write_lease(storage, kernel=ThisMachine().kernel, pid=10**9)

    def attempt(index: int) -> Lease | None:
        try:
            return Lease(storage, purpose=f"driver {index}").__enter__()
        except LeaseError:
            return None

    with ThreadPoolExecutor(8) as pool:
        (winner,) = [lease for lease in pool.map(attempt, range(8)) if lease is not None]
    winner.check()
    winner.__exit__(None, None, None)


def test_a_lost_lease_is_noticed_and_left_to_its_holder(storage: LocalStorage) -> None:
    with Lease(storage, purpose="extract") as lease:
        write_lease(storage, "lease/00000002.json")
        with pytest.raises(LeaseError, match=r"another driver took over .*: this one stops"):
            lease.check()
    assert json.loads(storage.read("lease/00000002.json"))["token"] == "theirs"


def test_a_driver_that_woke_up_cannot_take_its_lease_back(storage: LocalStorage) -> None:
    sleeper = take(storage, Stand())
    winner = take(storage, Stand(pid=8, processes={8: "at one"}))
    sleeper._beat()  # it was about to, when it fell asleep
    sleeper.__exit__(None, None, None)
    winner.check()
    with pytest.raises(LeaseError):
        sleeper.check()


def test_a_removed_lease_is_noticed(storage: LocalStorage) -> None:
    with Lease(storage, purpose="extract") as lease:
        storage.remove(FIRST)
        with pytest.raises(LeaseError):
            lease.check()


def test_the_heart_beats_while_the_lease_is_held(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.lease, "HEARTBEAT_S", 0.02)  # ten seconds are long for a test
    with Lease(storage, purpose="extract"):
        before = json.loads(storage.read(FIRST))["heartbeat"]
        time.sleep(0.2)
        assert json.loads(storage.read(FIRST))["heartbeat"] > before


GARBAGE = [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'"text"', b'{"host": "a", "pid": 1}']


@pytest.mark.parametrize("data", GARBAGE)
def test_a_lease_file_with_garbage_holds_nothing_and_counts(
    storage: LocalStorage, data: bytes
) -> None:
    storage.write(FIRST, data)
    assert holder_of(storage) is None
    with Lease(storage, purpose="other") as lease:
        lease.check()
    assert storage.size("lease/00000002.json") is not None


@pytest.mark.parametrize("name", ["notes.txt", "x.json", "1.json", "²²²²²²²².json"])
def test_files_other_than_leases_are_ignored(storage: LocalStorage, name: str) -> None:
    storage.write(f"lease/{name}", b"")
    with Lease(storage, purpose="other"):
        assert storage.size(FIRST) is not None


@pytest.mark.parametrize(
    "facts", [{"pid": "x"}, {"pid": None}, {"pid": -1}, {"pid": 0}, {"heartbeat": "noon"}]
)
def test_a_lease_with_facts_of_another_kind_holds_nothing(
    storage: LocalStorage, facts: dict[str, Any]
) -> None:
    write_lease(storage, **facts)
    assert holder_of(storage) is None


def test_a_lease_that_this_process_could_not_give_back_does_not_keep_it_out(
    storage: LocalStorage,
) -> None:
    """On a full disk: the file still names a process that is alive, this one."""
    here = ThisMachine()
    facts = {"host": here.host, "kernel": here.kernel, "pid": here.pid}
    write_lease(storage, **facts, process_started=here.started(here.pid))
    with Lease(storage, purpose="other") as lease:
        lease.check()


def test_a_hidden_process_is_judged_by_its_heartbeat(storage: LocalStorage) -> None:
    write_lease(storage, kernel="ours")
    hidden = {7: "at noon", 1: HIDDEN}
    with pytest.raises(LeaseError):
        take(storage, Stand(processes=hidden))


def test_a_driver_overtaken_while_watching_is_refused(storage: LocalStorage) -> None:
    write_lease(storage)
    machine = Stand(now=1e9 + EXPIRY_S + 1)
    machine.meanwhile = lambda: write_lease(
        storage, "lease/00000002.json", heartbeat=machine.now, token="at work"
    )
    with pytest.raises(LeaseError):
        take(storage, machine)
    assert "lease/00000003.json" not in storage.keys("lease")


def test_a_pid_that_no_process_can_have_is_dead(storage: LocalStorage) -> None:
    write_lease(storage, kernel=ThisMachine().kernel, pid=10**30)
    assert holder_of(storage) is None
