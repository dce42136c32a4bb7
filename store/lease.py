"""One driver per set: a lease file with host, pid and heartbeat."""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from store.errors import LeaseError, StoreError
from store.plan import readable_json
from store.storage import Storage

LEASE_KEY = "lease.json"
HEARTBEAT_S = 10.0
EXPIRY_S = 60.0
"""A lease whose heartbeat is older than this belongs to a dead driver."""

SETTLE_S = 0.2
"""Two that take a dead driver's lease over at once wait this long to see who wrote last."""


_FACTS: dict[str, Callable[[Any], Any]] = {
    "host": str,
    "pid": int,
    "token": str,
    "purpose": str,
    "heartbeat": float,
}


class Lease:
    """Held inside a ``with`` block; a second holder is refused with a message that names the first.

    A lease is taken over where its process is gone (same host) or its heartbeat has stopped.
    """

    def __init__(self, storage: Storage, *, purpose: str) -> None:
        self._storage = storage
        self._facts = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": secrets.token_hex(8),
            "purpose": purpose,
        }
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        if not self._storage.create(LEASE_KEY, self._content()):
            self._take_over()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        if self.is_held():
            self._storage.remove(LEASE_KEY)

    def is_held(self) -> bool:
        """Whether the file still names us; a driver that lost its lease must stop."""
        return _read(self._storage).get("token") == self._facts["token"]

    def _content(self) -> bytes:
        return readable_json({**self._facts, "heartbeat": time.time()})

    def _take_over(self) -> None:
        holder = _read(self._storage)
        if holder and is_alive(holder):
            raise LeaseError(
                f"{self._storage.location} is being written by {holder['purpose']} "
                f"(pid {holder['pid']} on {holder['host']}): wait for it, or stop it first; "
                f"if it is gone for good, remove {LEASE_KEY} there"
            )
        self._storage.write(LEASE_KEY, self._content())
        time.sleep(SETTLE_S)
        if not self.is_held():
            raise LeaseError(f"{self._storage.location}: another driver took the lease just now")

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            try:
                if not self.is_held():
                    return
                self._storage.write(LEASE_KEY, self._content())
            except (StoreError, OSError):
                continue  # a missed beat is no reason to stop; the next one may get through


def holder_of(storage: Storage) -> dict[str, Any] | None:
    """Who is writing the set now, ``None`` where nobody is."""
    holder = _read(storage)
    return holder if holder and is_alive(holder) else None


def is_alive(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lease still works: its process lives, and its heart beats."""
    if time.time() - holder["heartbeat"] > EXPIRY_S:
        return False
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # it lives, under another user
    return True


def _read(storage: Storage) -> dict[str, Any]:
    """The lease, empty where there is none or where the file is not one."""
    try:
        content = json.loads(storage.read(LEASE_KEY))
        facts = {name: kind(content[name]) for name, kind in _FACTS.items()}
    except (StoreError, ValueError, KeyError, TypeError):
        return {}
    return facts if facts["pid"] > 0 else {}
