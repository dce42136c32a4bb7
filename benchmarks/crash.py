"""Kill all processes at 70 % of the rows, then run the same command again, for systems that resume.

Each run consists of an undisturbed command, one that is killed, and the same one again. `extra cpu`
is what the last two took beyond the first, as a share of it: repeated work, and a second start.
`kept` is the share of the rows that were not computed again; `lost` and `doubled` count rows of the
final output. Ray Data uses its `CheckpointConfig` for checkpoints, TRAK its memory map. Loops,
opacus, BackPACK and Bergson start over: they keep nothing.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import images
from benchmarks.commands import cost_of
from benchmarks.end_to_end import CHECKED, check, extract_command, made_for
from benchmarks.measuring import Contender, Once, WrongNumbersError, fact
from benchmarks.paper_way import check as check_gradients
from benchmarks.part import Figure, Part, Sizes
from store.catalog import FeatureStore

KILLED_AT = 0.7


@dataclass(frozen=True)
class Attempt:
    """A system's command with its output folder, and how to look at what it did.

    ``n_computed`` gives rows computed since ``forget``, ``ids`` every row of the output, checked.
    """

    command: list[str]
    n_computed: Callable[[], int]
    ids: Callable[[], list[int]]
    forget: Callable[[], None] = lambda: None


def killed(attempt_in: Callable[[images.Made, Path], Attempt], n_rows: int, folder: Path) -> Once:
    """Run the command undisturbed, then kill it, then rerun it."""
    made = made_for(folder, n_rows)
    out = folder / "out"
    attempt = attempt_in(made, out)

    def once() -> dict[str, Any]:
        attempt.forget()
        undisturbed = cost_of(attempt.command)
        _check_all(attempt, n_rows)
        shutil.rmtree(out)
        attempt.forget()
        first = cost_of(
            attempt.command, kill_when=lambda: attempt.n_computed() >= KILLED_AT * n_rows
        )
        attempt.forget()
        n_before = attempt.n_computed()
        second = cost_of(attempt.command)
        times = Counter(attempt.ids())
        return {
            "wall_s": first.wall_s + second.wall_s,
            "cpu_s": first.cpu_s + second.cpu_s,
            "peak_bytes": max(first.peak_bytes, second.peak_bytes),
            "extra cpu": (first.cpu_s + second.cpu_s) / undisturbed.cpu_s - 1,
            "kept": 1 - (attempt.n_computed() - n_before) / n_rows,
            "lost": n_rows - len(times),
            "doubled": sum(n - 1 for n in times.values()),
        }

    return once


def _check_all(attempt: Attempt, n_rows: int) -> None:
    if sorted(attempt.ids()) != list(range(n_rows)):
        raise WrongNumbersError("an undisturbed run does not have each row once")


def ours(executor: str, made: images.Made, out: Path) -> Attempt:
    """`extract`: rows count as computed if they have a receipt."""

    def n_computed() -> int:
        receipts = out.glob("features/*/receipts/*.json")
        return len(list(receipts)) * (made.n_rows // 10)

    def ids() -> list[int]:
        found = next(FeatureStore(str(out)).feature_sets())
        check(found.read("logits", 0, CHECKED), made, "fp32")
        return list(map(int, found.samples()["row"]))

    command = [*extract_command(made, out, "fp32"), "--executor", executor]
    return Attempt(command, n_computed, ids)


def ray_data(made: images.Made, out: Path) -> Attempt:
    """Ray Data with its own checkpoints."""
    import pyarrow.parquet as pq

    def ids() -> list[int]:
        table = pq.read_table(out / "rows", columns=["id", "logits"]).sort_by("id")
        check(np.array(table["logits"].slice(0, CHECKED).to_pylist()), made, "fp32")
        return list(table["id"].to_pylist())

    extra = ("--checkpoint", str(out / "checkpoint"))
    return _counting("benchmarks.ray_data", made, out, out / "rows", ids, extra)


def trak(made: images.Made, out: Path) -> Attempt:
    """TRAK, whose memory map records finished rows."""
    if find_spec("trak") is None:
        raise ModuleNotFoundError("No module named 'trak'")

    def ids() -> list[int]:
        stored = np.load(out / "rows" / "0" / "grads.mmap", mmap_mode="r")
        check_gradients(np.asarray(stored[:CHECKED]) * np.sqrt(stored.shape[1]), made)
        is_there = np.load(out / "rows" / "0" / "_is_featurized.mmap")
        return list(map(int, np.flatnonzero(is_there)))

    return _counting("benchmarks.trak_rows", made, out, out / "rows", ids)


def _counting(
    module: str,
    made: images.Made,
    out: Path,
    rows: Path,
    ids: Callable[[], list[int]],
    extra: tuple[str, ...] = (),
) -> Attempt:
    """A command that records the rows that it computes in a file."""
    counted = out.with_name(f"{out.name}-counted")
    place = (str(made.folder), str(made.n_rows), str(rows))
    command = [sys.executable, "-m", module, *place, "--counted", str(counted), *extra]

    def n_computed() -> int:
        lines = counted.read_text().splitlines() if counted.is_file() else []
        return sum(int(line.split()[1]) for line in lines)

    def forget() -> None:
        out.mkdir(exist_ok=True)
        counted.unlink(missing_ok=True)

    forget()
    return Attempt(command, n_computed, ids, forget)


def contenders(sizes: Sizes) -> list[Contender]:
    """Ours in this process and on Ray, Ray Data, TRAK."""
    many, few = sizes.pick(1_000, 6_000), sizes.pick(500, 2_000)
    systems = {
        "ours, one process": (partial(ours, "local"), many),
        "ours, on Ray": (partial(ours, "ray"), many),
        "Ray Data": (ray_data, many),
        "TRAK": (trak, few),
    }
    return [
        Contender(name, partial(killed, system, n), n, warms_up=False)
        for name, (system, n) in systems.items()
    ]


PART = Part(
    "crash",
    "Crash and rerun",
    __doc__,
    contenders,
    columns=("seconds", "from", "to", "cpu s"),
    figures=(
        Figure("rows lost or doubled by ours", ["ours, on Ray"], None, fact("lost"), at_most=0),
        Figure("rows kept by ours", ["ours, on Ray"], None, fact("kept"), at_least=0.6),
    ),
)
