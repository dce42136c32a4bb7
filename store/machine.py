"""The machine that a driver runs on: its clock and its processes, the seam for a simulated one."""

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
    """A clock, and what is known about processes here."""

    @property
    def host(self) -> str:
        """Its name."""

    @property
    def kernel(self) -> str:
        """One boot of a machine and one space of pids, where pids mean the same; may be empty."""

    @property
    def pid(self) -> int:
        """The process that asks."""

    def time(self) -> float:
        """Seconds since 1970, by a clock that may jump."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def started(self, pid: int) -> str:
        """When a process of this machine began, which tells a reused pid; empty if it is gone.

        ``HIDDEN`` where it is there and that is all we may know.
        """

    def every(self, seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        """Do something again and again beside the work; gives what stops it."""


@dataclass(frozen=True, slots=True)
class ThisMachine:
    """The one that this process runs on."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    @property
    def kernel(self) -> str:
        """Linux tells it; elsewhere processes are known by their heartbeats alone."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
        except OSError:
            return ""

    def time(self) -> float:
        """Seconds since 1970, by a clock that may jump."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def started(self, pid: int) -> str:
        """In ticks since the machine did; a zombie is gone, and so is all where /proc is not."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return HIDDEN if _is_another_users(pid) else ""
        return "" if fields[0] == "Z" else fields[19]

    def every(self, seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        """Do something again and again in a thread; gives what stops it and waits for its end."""
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
    """Whether a process is there that we may not look at, as where /proc hides those of others."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False
