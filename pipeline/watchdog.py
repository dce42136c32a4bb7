"""A process beside the driver that kills the rest of its Ray cluster once the driver is gone.

After a SIGKILL of the driver, some of Ray's processes keep running for a minute. This module is
also run as a script, and imports only the standard library.
"""

import os
import secrets
import shutil
import signal
import stat
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


def _processes_of(mark: str, folder: str) -> list[int]:
    """Ids of the processes of the cluster with this mark, ``NAME=value``, and this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone in the meantime
            is_marked = mark.encode() in (process / "environ").read_bytes().split(b"\0")
            if is_marked or any(_is_log_of_raylet(file, folder) for file in _open_files(process)):
                found.append(int(process.name))
    return found


def _open_files(process: Path) -> Iterator[tuple[str, bool]]:
    """Path of each open file of a process, and whether it is open for writing."""
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed in the meantime
            is_written = bool(descriptor.lstat().st_mode & stat.S_IWUSR)
            yield str(descriptor.readlink()), is_written


def _is_log_of_raylet(file: tuple[str, bool], folder: str) -> bool:
    """Whether an open file is a log of the cluster's raylet, open for writing.

    All children of the raylet inherit it. Some of them give themselves a title, which overwrites
    the start of the environment that others see, and the mark if it happens to be there.
    """
    path, is_written = file
    return is_written and path.startswith(f"{folder}/") and "/logs/raylet." in path


def main() -> None:
    """Wait for the end of standard input, then kill the cluster's processes, remove its folder."""
    mark, folder = sys.argv[1], os.path.realpath(sys.argv[2])
    quiet_s = 0.0 if sys.stdin.buffer.read() == ORDERLY else QUIET_S
    seen = time.monotonic()
    deadline = seen + PATIENCE_S
    while (now := time.monotonic()) < deadline:
        pids = _processes_of(mark, folder)
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
