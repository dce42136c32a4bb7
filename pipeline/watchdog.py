"""A process beside the driver that kills the rest of its Ray cluster once the driver is gone.

After a SIGKILL of the driver, some of Ray's processes keep running for a minute. This module is
also run as a script, and imports only the standard library.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "CLUSTER_OF_INTRO_PIPE"
"""Environment variable of every process of our own cluster; its value is the mark."""

PATIENCE_S = 10.0

QUIET_S = 1.0
"""How long no process is seen after a driver that was killed, before the watchdog ends.

A process that is just starting another program cannot be read for a moment.
"""

ORDERLY = b"end"
"""Written to the watchdog by a driver that ends by itself: its cluster has been shut down."""


@contextmanager
def watchdog(folder: str) -> Iterator[str]:
    """Yield a mark; processes that carry it are killed after this block, however this process ends.

    Then ``folder``, which contains their files, is removed.

    The watchdog runs in its own session, so that signals to the process group of a terminal or a
    job do not reach it. Without ``/proc`` no watchdog is started.
    """
    mark = secrets.token_hex(16)
    if not Path("/proc/self/environ").exists():
        yield mark
        return
    # Isolated: no folder of the user's is searched for modules.
    command = [sys.executable, "-I", "-S", __file__, f"{MARK}={mark}", folder]
    process = subprocess.Popen(
        command,
        cwd="/",
        stdin=subprocess.PIPE,  # it is closed when the driver is gone
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield mark
    finally:
        process.communicate(ORDERLY)


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """Set the mark for processes that start in this block, and for their children."""
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]


def _marked_processes(mark: str) -> list[int]:
    """Ids of the processes with this mark, ``NAME=value``, in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # another user's, or gone in the meantime
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def main() -> None:
    """Wait for the end of standard input, then kill the marked processes and remove the folder."""
    mark, folder = sys.argv[1:]
    quiet_s = 0.0 if sys.stdin.buffer.read() == ORDERLY else QUIET_S
    seen = time.monotonic()
    deadline = seen + PATIENCE_S
    while (now := time.monotonic()) < deadline:
        pids = _marked_processes(mark)
        if not pids and now - seen >= quiet_s:
            break
        seen = now if pids else seen
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
