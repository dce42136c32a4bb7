"""Leases: at most one driver writes a set; each lease has a host, a process and a heartbeat."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

from store.errors import LeaseError, StoreError, SweptError
from store.machine import HIDDEN, Machine, ThisMachine
from store.plan import read_object, readable_json
from store.storage import Storage

LEASES = "lease"
"""Folder of the leases; the one with the highest number is valid."""

HEARTBEAT_S = 10.0
EXPIRY_S = 60.0
"""Age of the last heartbeat, by our own clock, at which a lease is considered expired."""

_TOKENS: set[str] = set()
"""Tokens of the leases that this process holds; other leases with its pid were left behind."""

_FACTS: dict[str, Callable[[Any], Any]] = {
    "host": str,
    "kernel": str,
    "pid": int,
    "process_started": str,
    "token": str,
    "purpose": str,
    "heartbeat": float,
    "is_released": bool,
}


class Lease:
    """Context manager for the right to write a set.

    Entering it raises ``LeaseError``, naming the holder, if another driver holds the lease.

    A lease is taken by creating the file with the next number, at which only one driver can
    succeed, and is lost as soon as a higher number exists. A driver that wakes up after its lease
    expired can therefore neither regain its lease nor affect another one. The successor first
    removes whatever was staged, so a driver that stages, checks its lease and then publishes can
    never publish after it has lost the lease.

    Numbers are never reused or removed: whether the next number exists can be checked by its key,
    while listings of an object store may lag behind.
    """

    def __init__(self, storage: Storage, *, purpose: str, machine: Machine | None = None) -> None:
        self._storage = storage
        self._machine = machine or ThisMachine()
        self._token = secrets.token_hex(8)
        self._facts = {
            "host": self._machine.host,
            "kernel": self._machine.kernel,
            "pid": self._machine.pid,
            "process_started": self._machine.started(self._machine.pid),
            "token": self._token,
            "purpose": purpose,
        }
        self._number = 0
        self._stop: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        _TOKENS.add(self._token)  # before any other process can read the lease
        try:
            self._take()
            self._storage.sweep()
        except BaseException:
            self._release()
            raise
        self._stop = self._machine.every(HEARTBEAT_S, self._beat)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        self._release()

    def check(self) -> None:
        """Raise ``LeaseError`` if another driver has taken over; this driver must then stop."""
        if self._exists(self._number + 1) or not self._exists(self._number):
            raise LeaseError(
                f"another driver took over {self._storage.location}: this one stops, and what was "
                "finished is kept"
            )

    def _take(self) -> None:
        while not self._number:
            last = _last(self._storage)
            self._refuse_if_held(last)
            with suppress(SweptError):  # another driver was faster and removed our staged file
                if self._storage.create(_key(last + 1), self._content()):
                    self._number = last + 1

    def _exists(self, number: int) -> bool:
        return self._storage.size(_key(number)) is not None

    def _content(self, *, is_released: bool = False) -> bytes:
        facts = {"heartbeat": self._machine.time(), "is_released": is_released}
        return readable_json({**self._facts, **facts})

    def _refuse_if_held(self, number: int) -> None:
        holder = _read(self._storage, number)
        if holder and (is_alive(holder, self._machine) or self._is_beating(holder, number)):
            raise LeaseError(
                f"{self._storage.location} is being written by {holder['purpose']} "
                f"(pid {holder['pid']} on {holder['host']}): wait for it, or stop it first; if it "
                f"has crashed, its lease expires {EXPIRY_S:.0f} s after the last heartbeat"
            )

    def _is_beating(self, holder: dict[str, Any], number: int) -> bool:
        """Whether an expired holder still sends heartbeats: its clock, or ours, may be wrong."""
        if holder["is_released"] or _is_same_kernel(holder, self._machine):
            return False
        self._machine.sleep(2 * HEARTBEAT_S)
        seen = _read(self._storage, number)
        return seen not in ({}, holder) and not seen["is_released"]

    def _release(self) -> None:
        _TOKENS.discard(self._token)  # enough for this process if the disk is full
        self._rewrite(is_released=True)

    def _beat(self) -> None:
        self._rewrite()

    def _rewrite(self, *, is_released: bool = False) -> None:
        """Rewrite our lease if it is still ours; a missed heartbeat is no reason to stop."""
        with suppress(StoreError, OSError):
            if _read(self._storage, self._number).get("token") == self._token:
                self._storage.write(_key(self._number), self._content(is_released=is_released))


def holder_of(storage: Storage) -> dict[str, Any] | None:
    """The lease of the driver that is writing the set, or ``None`` if there is none."""
    holder = _read(storage, _last(storage))
    return holder if holder and is_alive(holder, ThisMachine()) else None


def is_alive(holder: dict[str, Any], machine: Machine) -> bool:
    """Whether the holder of a lease is running, judged by its process or by its heartbeat.

    For a process on the same kernel the kernel is asked, and clocks do not matter.
    """
    if holder["is_released"]:
        return False
    if _is_same_kernel(holder, machine):
        if holder["pid"] == machine.pid and holder["host"] == machine.host:
            return holder["token"] in _TOKENS
        began = machine.started(holder["pid"])
        if began != HIDDEN:
            return began != "" and began == holder["process_started"]
    heartbeat: float = holder["heartbeat"]
    return abs(machine.time() - heartbeat) <= EXPIRY_S


def _is_same_kernel(holder: dict[str, Any], machine: Machine) -> bool:
    return bool(holder["kernel"]) and holder["kernel"] == machine.kernel


def _key(number: int) -> str:
    return f"{LEASES}/{number:08d}.json"


def _last(storage: Storage) -> int:
    """The highest lease number, 0 if there is none; other files are ignored."""
    names = {PurePosixPath(key).name for key in storage.keys(LEASES)}
    stems = [PurePosixPath(name).stem for name in names]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    last = max((number for number in numbers if f"{number:08d}.json" in names), default=0)
    while storage.size(_key(last + 1)) is not None:  # exists, but is not listed yet
        last += 1
    return last


def _read(storage: Storage, number: int) -> dict[str, Any]:
    """Read a lease; empty if it does not exist or is not a valid lease."""
    try:
        content = read_object(storage.read(_key(number)))
        facts = {name: kind(content[name]) for name, kind in _FACTS.items()}
    except (StoreError, ValueError, KeyError, TypeError, OverflowError):
        return {}
    return facts if facts["pid"] > 0 else {}
