"""Cost of a command, including all processes that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import WrongNumbersError

LOOK_EVERY_S = 0.05
TICKS = os.sysconf("SC_CLK_TCK")
INTRO_PIPE = (sys.executable, "-m", "cli.app")


@dataclass(frozen=True)
class Cost:
    """Seconds, processor seconds and memory of a command and all of its descendants.

    ``peak_bytes`` is their proportional set size, pages that they share counted once, at most, as
    seen twenty times a second, and that much less often the more of them there are. ``stdout`` is
    what it printed.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    stdout: str

    def facts(self) -> dict[str, Any]:
        """Measurements of a run that consists of this command."""
        return {key: value for key, value in asdict(self).items() if key != "stdout"}


def cost_of(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    kill_when: Callable[[], bool] | None = None,
) -> Cost:
    """Run a command to its end, or until ``kill_when``: then all its processes are killed at once.

    Raises ``WrongNumbersError`` with its output if it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.communicate()))
    reader.start()
    seen = _Tree(process.pid)
    while reader.is_alive():
        seen.look()
        if kill_when is not None and kill_when():
            seen.kill()
            kill_when = None
        reader.join(LOOK_EVERY_S)
    seconds = time.perf_counter() - began
    if process.returncode not in (0, -signal.SIGKILL):
        raise WrongNumbersError(f"{' '.join(command)} failed:\n{output[1][-3000:]}")
    return Cost(seconds, seen.cpu_s(), seen.peak_bytes, output[0])


class _Tree:
    """A process and all descendants that were seen, including those that lost their parent."""

    def __init__(self, root: int) -> None:
        self._ticks: dict[tuple[int, int], int] = {root_key(root): 0}
        self._looked_at_memory = 0.0
        self.peak_bytes = 0

    def look(self) -> None:
        """Record what each process has used so far."""
        there = _processes()
        known = {pid for pid, _ in self._ticks}
        grown = True
        while grown:
            found = {key for key, (parent, _) in there.items() if parent in known}
            grown = not found <= self._ticks.keys()
            self._ticks |= dict.fromkeys(found - self._ticks.keys(), 0)
            known |= {pid for pid, _ in found}
        for key in self._ticks.keys() & there.keys():
            self._ticks[key] = there[key][1]
        alive = self._ticks.keys() & there.keys()
        if time.monotonic() - self._looked_at_memory > LOOK_EVERY_S * len(alive):
            self.peak_bytes = max(self.peak_bytes, sum(_own_bytes(pid) for pid, _ in alive))
            self._looked_at_memory = time.monotonic()

    def kill(self) -> None:
        """Kill all processes that are still alive."""
        self.look()
        for key in self._ticks.keys() & _processes().keys():
            with suppress(ProcessLookupError):
                os.kill(key[0], signal.SIGKILL)

    def cpu_s(self) -> float:
        """CPU seconds of all processes, as of the last look at each."""
        return sum(self._ticks.values()) / TICKS


def root_key(pid: int) -> tuple[int, int]:
    """A process, identified by pid and start time, since pids are reused."""
    stat = _stat(pid)
    return (pid, stat[2]) if stat else (pid, 0)


def _processes() -> dict[tuple[int, int], tuple[int, int]]:
    """``(pid, start)`` -> ``(parent, ticks used)`` of every process."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            parent, ticks, start = stat
            found[int(entry.name), start] = parent, ticks
    return found


def _stat(pid: int) -> tuple[int, int, int] | None:
    """Parent, ticks used by the process itself, and start; ``None`` if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[19])


def _own_bytes(pid: int) -> int:
    """The proportional set size of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
