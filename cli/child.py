"""Run a command of intro-pipe in a child process."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

CAPTURED = subprocess.PIPE
"""Value of ``stdout`` with which the output is returned."""


def run_child(
    words: Sequence[str], environment: Mapping[str, str], stdout: int | IO[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a process to its end; a signal that stops this process stops it too.

    A terminal sends its signals to both, a scheduler only to this one. The child gets the time to
    release its leases: ``subprocess.run`` would kill it after a quarter of a second.
    """
    with subprocess.Popen(words, env=environment, stdout=stdout, text=True) as child:
        try:
            printed, _ = child.communicate()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
    return subprocess.CompletedProcess(words, child.returncode, printed)
