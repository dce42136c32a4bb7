"""Contenders measured in turn, each in a process of its own, so that its memory is its own.

A round runs every contender once, the next round the other way about: whatever else the machine
does falls on all of them. The first round warms up and does not count.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Facts = Mapping[str, Any]
"""What a run says of itself; ``wall_s``, ``cpu_s`` and ``peak_bytes`` are taken for those measured,
where the work was done by other processes."""

Once = Callable[[], Facts | None]
"""The function that is timed. It writes into the folder that it was prepared with."""


class WrongNumbersError(Exception):
    """A contender computes other numbers than expected."""


@dataclass(frozen=True)
class Contender:
    """One way to do a piece of work on ``n_rows`` rows.

    ``prepare`` is given an empty folder, in the contender's own process. It loads what it needs,
    holds its numbers against the closed form, and gives what is timed. An ``ImportError`` says that
    the contender is not installed, ``WrongNumbersError`` that it is not to be timed.
    """

    name: str
    prepare: Callable[[Path], Once]
    n_rows: int = 1
    warms_up: bool = True


@dataclass(frozen=True)
class Run:
    """What one run cost: seconds, processor seconds, bytes of memory at most, bytes on disk."""

    n_rows: int
    wall_s: float
    cpu_s: float
    peak_bytes: int
    disk_bytes: int
    facts: Facts


@dataclass
class Measured:
    """The runs of a contender, one per round; none if ``absent`` has a reason."""

    contender: Contender
    runs: list[Run] = field(default_factory=list)
    absent: str = ""

    def row(self) -> dict[str, Any]:
        """Medians for a table, with the range of the seconds."""
        name = self.contender.name
        if not self.runs:
            return {"name": name, "absent": self.absent}
        walls = [run.wall_s for run in self.runs]
        wall = statistics.median(walls)
        return {
            "name": name,
            "seconds": wall,
            "from": min(walls),
            "to": max(walls),
            "cpu s": statistics.median(run.cpu_s for run in self.runs),
            "rows/s": self.contender.n_rows / wall,
            "memory": statistics.median(run.peak_bytes for run in self.runs),
            "on disk": statistics.median(run.disk_bytes for run in self.runs),
            **{key: _middle([run.facts[key] for run in self.runs]) for key in self._facts()},
        }

    def _facts(self) -> list[str]:
        return [key for key in self.runs[0].facts if key not in ("wall_s", "cpu_s", "peak_bytes")]


def measured(
    contenders: Sequence[Contender],
    folder: Path,
    repeats: int,
    *,
    preload: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Run every contender ``repeats`` times, in rounds.

    Args:
        contenders: each is prepared before the first round, one after the other.
        folder: theirs are made in it.
        repeats: rounds that count.
        preload: modules that all of them need, imported once and shared.
        tell: is told what is done.

    Raises:
        WrongNumbersError: a contender's numbers are wrong, or it failed.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    found = [Measured(contender) for contender in contenders]
    pipes: list[tuple[Measured, Connection]] = []
    processes = []
    try:
        for index, each in enumerate(found):
            tell(f"preparing {each.contender.name}")
            ours, theirs = context.Pipe()
            own = folder / str(index)
            process = context.Process(target=_serve, args=(theirs, each.contender, own))
            process.start()
            processes.append(process)
            theirs.close()
            each.absent = _answer(ours, each)
            if not each.absent:
                pipes.append((each, ours))
        for number in range(repeats + 1):
            for each, pipe in pipes if number % 2 else reversed(pipes):
                if number or each.contender.warms_up:
                    tell(f"round {number} of {repeats}: {each.contender.name}")
                    pipe.send(True)
                    run = _answer(pipe, each)
                    each.runs += [run] * (number > 0)
    finally:
        for _, pipe in pipes:
            with suppress(OSError):
                pipe.send(False)
        for process in processes:
            process.join(10)
            process.kill()
    return found


def ratios(over: Measured, under: Measured, of: Callable[[Run], float]) -> list[float]:
    """Ratio of ``over`` to ``under`` in some quantity, for each round."""
    pairs = zip(over.runs, under.runs, strict=True)
    return [of(one) / of(other) for one, other in pairs if of(other)]


def wall(run: Run) -> float:
    """Seconds."""
    return run.wall_s


def wall_per_row(run: Run) -> float:
    """Seconds per row."""
    return run.wall_s / run.n_rows


def cpu_per_row(run: Run) -> float:
    """CPU seconds per row."""
    return run.cpu_s / run.n_rows


def disk_per_row(run: Run) -> float:
    """Bytes on disk per row."""
    return run.disk_bytes / run.n_rows


def peak(run: Run) -> float:
    """Peak memory in bytes."""
    return run.peak_bytes


def fact(name: str) -> Callable[[Run], float]:
    """Additional measurements of the runs under a name."""
    return lambda run: float(run.facts[name])


def _middle(values: list[Any]) -> Any:
    numbers = [value for value in values if isinstance(value, int | float)]
    return statistics.median(numbers) if len(numbers) == len(values) else values[-1]


def _answer(pipe: Connection, each: Measured) -> Any:
    """Receive a message of a contender's process; raises its errors."""
    try:
        kind, content = pipe.recv()
    except EOFError:
        kind, content = "failed", "its process died"
    if kind == "failed":
        raise WrongNumbersError(f"{each.contender.name}: {content}")
    return content


def _serve(pipe: Connection, contender: Contender, folder: Path) -> None:
    """Main function of a contender's process: prepare, then run on request."""
    try:
        folder.mkdir(parents=True)
        once = contender.prepare(folder)
        _empty(folder)
        pipe.send(("prepared", ""))
        while pipe.recv():
            run = _timed(once, contender.n_rows, folder)
            pipe.send(("run", run))
    except ImportError as error:
        pipe.send(("absent", f"not installed: {str(error).splitlines()[0]}"))
    except WrongNumbersError as error:
        pipe.send(("failed", str(error)))
    except Exception:
        pipe.send(("failed", traceback.format_exc()))


def _timed(once: Once, n_rows: int, folder: Path) -> Run:
    """One run; the files that it wrote are counted and removed."""
    with suppress(OSError):  # without permission to reset it, the peak since the start counts
        Path("/proc/self/clear_refs").write_text("5")
    cpu_s, began = _cpu_s(), time.perf_counter()
    facts = dict(once() or {})
    wall_s, cpu_s = time.perf_counter() - began, _cpu_s() - cpu_s
    n_bytes = disk_bytes(folder)
    _empty(folder)
    return Run(
        n_rows,
        facts.get("wall_s", wall_s),
        facts.get("cpu_s", cpu_s),
        facts.get("peak_bytes", peak_bytes()),
        n_bytes,
        facts,
    )


def peak_bytes() -> int:
    """Peak resident memory of this process since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def disk_bytes(folder: Path) -> int:
    """Disk usage of the files of a folder, without holes."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _cpu_s() -> float:
    """CPU seconds of all threads of this process, and of its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
