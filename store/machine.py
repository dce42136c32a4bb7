"""The clock and the processes of a machine, as a protocol that tests can simulate."""

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

HIDDEN = "hidden"


class Machine(Protocol):
    """A clock, and what is known about the processes of this machine."""

    @property
    def host(self) -> str:
        """Host name."""

    @property
    def kernel(self) -> str:
        """Identifies one boot and one pid namespace, in which pids are comparable; may be empty."""

    @property
    def pid(self) -> int:
        """Process id of the caller."""

    def time(self) -> float:
        """Seconds since 1970; the clock may jump."""

    def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""

    def started(self, pid: int) -> str:
        """When a process of this machine started, to detect a reused pid; empty if it is gone.

        ``HIDDEN`` if the process exists but its start time may not be read.
        """

    def every(self, seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        """Repeat an action in the background; returns a function that stops it."""


@dataclass(frozen=True, slots=True)
class ThisMachine:
    """The machine on which this process runs."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    @property
    def kernel(self) -> str:
        """Boot id and pid namespace on Linux; elsewhere empty, and only heartbeats count."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
        except OSError:
            return ""

    def time(self) -> float:
        """Seconds since 1970; the clock may jump."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        time.sleep(seconds)

    def started(self, pid: int) -> str:
        """Start time in clock ticks since boot; empty for zombies and on systems without /proc."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return HIDDEN if _is_another_users(pid) else ""
        return "" if fields[0] == "Z" else fields[19]

    def every(self, seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        """Repeat an action in a thread; returns a function that stops it and joins the thread."""
        stopped = threading.Event()

        def beat() -> None:
            while not stopped.wait(seconds):
                action()

        thread = threading.Thread(target=beat, name="every", daemon=True)
        thread.start()

        def stop() -> None:
            stopped.set()
            thread.join()

        return stop


def _is_another_users(pid: int) -> bool:
    """Whether the process exists but belongs to another user, and /proc may hide it."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False
