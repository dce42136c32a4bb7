"""The store and its driver alone: given features, 64 and 10 numbers per row, 10,000 rows a shard.

`N rows` is computed in one process: encode, checksum, fsync, publish, receipt; the memory is that
of this process. `N workers` runs the driver with as many simulated workers: they stage real shards
of 100 rows, but one after the other, in the driver's process. Their time is subtracted, so the
seconds are those of the driver alone: hand out, publish, receipt, journal, progress. `listing` is
the time to list the finished shards, `no-op` the same run again, in a process that has the imports.
"""

from __future__ import annotations

import io
import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Contender, Once, WrongNumbersError, peak, wall_per_row
from benchmarks.part import Figure, Part, Sizes
from pipeline.executors import LocalExecutor, Watch
from pipeline.journal import Journal
from pipeline.runner import run_map
from pipeline.work import ShardOutput, Task, Tick, Work
from pipeline.worker import Outcome, Pace, Worker
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.plan import Plan
from store.schema import ArraySpec, Schema
from store.shards import Shard

SCHEMA = Schema(
    (ArraySpec("features", (64,)), ArraySpec("logits", (10,))),
    (("row", "int64"), ("label", "int64"), ("prediction", "int64"), ("confidence", "float64")),
)
NAME = "given-test@none"
SHARD_ROWS = 10_000
SMALL_SHARD_ROWS = 100


@cache
def block_of(shard_rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """Features and logits of every shard, which differ only in its number in the first value."""
    rng = np.random.default_rng(0)
    shapes = {spec.name: (shard_rows, *spec.row_shape) for spec in SCHEMA.arrays}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@dataclass(frozen=True)
class Given:
    """Rows that exist already and only have to be stored."""

    shard_rows: int
    name: str = "given"
    version: int = 1
    rows: str = "rows"

    def check(self, plan: Plan) -> None:
        """Nothing can change."""

    def setup(self, n_threads: int) -> int:
        """Nothing to load."""
        return n_threads

    def compute(self, state: int, shard: Shard, tick: Tick) -> ShardOutput:
        """The shard's number in front of its rows, then what all have."""
        del state
        arrays = {name: values[: shard.n_rows].copy() for name, values in self._rows().items()}
        arrays["features"][:, 0] = shard.index
        logits = arrays["logits"]
        columns = {
            "row": np.arange(shard.start, shard.stop),
            "label": np.arange(shard.n_rows) % 10,
            "prediction": logits.argmax(axis=1),
            "confidence": logits.max(axis=1).astype(np.float64),
        }
        tick(shard.n_rows)
        return ShardOutput(encode_rows(SCHEMA, shard, self.shard_rows, arrays, columns), {})

    def _rows(self) -> dict[str, np.ndarray[Any, Any]]:
        return block_of(self.shard_rows)


@dataclass(frozen=True)
class SimulatedWorkers:
    """So many workers at once, as the driver sees them; ``spent_s`` is what they took."""

    n_workers: int
    spent_s: list[float] = field(default_factory=lambda: [0.0])

    @property
    def description(self) -> str:
        """What runs where, for people."""
        return f"{self.n_workers} simulated workers"

    def check(self) -> None:
        """There is always room."""

    def worker_memory(self, n_tasks: int) -> int:
        """As much as anyone wants."""
        return 2**30 * n_tasks

    def run(self, work: Work, todo: deque[Task], watch: Watch) -> Iterator[Outcome]:
        """Every worker takes a shard; their outcomes come in any order."""
        workers = [Worker(work, lane, 1) for lane in range(self.n_workers)]
        rng = random.Random(0)
        while todo:
            busy = [(worker, todo.popleft()) for worker in workers[: len(todo)]]
            began = time.perf_counter()
            outcomes = [worker.run(shard) for worker, shard in busy]
            self.spent_s[0] += time.perf_counter() - began
            watch([Pace(lane, shard, 0) for lane, (_, shard) in enumerate(busy)])
            rng.shuffle(outcomes)
            yield from outcomes


def plan_of(n_rows: int, shard_rows: int) -> Plan:
    """The plan of given rows."""
    return {
        "name": NAME,
        "n_rows": n_rows,
        "shard_rows": shard_rows,
        "schema": SCHEMA.to_json(),
        "inputs": {"source": {"name": "given"}, "model": {"name": "none"}},
    }


def storing(n_rows: int, shard_rows: int, n_workers: int | None, folder: Path) -> Once:
    """Store rows; with ``n_workers``, by simulated ones, and less what they took."""
    plan = plan_of(n_rows, shard_rows)
    stage = Given(min(shard_rows, n_rows))
    block_of(stage.shard_rows)

    def once() -> dict[str, Any]:
        store = FeatureStore(str(folder)).prepare()
        simulated = SimulatedWorkers(n_workers or 1)
        executor = simulated if n_workers else LocalExecutor(1)
        began = time.perf_counter()
        shards = store.create(plan).shard_set
        _run(stage, shards, executor)
        wall_s = time.perf_counter() - began - simulated.spent_s[0]
        n_done, listing_s = _timed(lambda: len(shards.done()))
        _, again_s = _timed(lambda: _run(stage, store.create(plan).shard_set, executor))
        if n_done != len(shards.shards):
            raise WrongNumbersError(f"{n_done} receipts for {len(shards.shards)} shards")
        _check_ends(store, n_rows)
        return {
            "wall_s": wall_s,
            "ms/shard": 1000 * wall_s / n_done,
            "receipts": n_done,
            "listing s": listing_s,
            "no-op s": again_s,
        }

    return once


def _run(stage: Given, shards: Any, executor: SimulatedWorkers | LocalExecutor) -> None:
    journal = Journal.of(str(Path(shards.storage.location).parents[1]), ["given"])
    with redirect_stderr(io.StringIO()):
        run_map(stage, shards, executor, journal, title="given")


def _timed(work: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _check_ends(store: FeatureStore, n_rows: int) -> None:
    """Raise ``WrongNumbersError`` where the first or the last rows are not those given."""
    found = store.open(NAME)
    for start in (0, max(0, n_rows - 10)):
        first = found.read("features", start, start + 10)
        index, at = divmod(start, found.shard_set.chunk_rows)
        right = block_of(found.shard_set.chunk_rows)["features"][at : at + 10].copy()
        right[:, 0] = index
        if not np.array_equal(first, right):
            raise WrongNumbersError(f"rows from {start} on are not those that were given")


def contenders(sizes: Sizes) -> list[Contender]:
    """Rows of four sizes in one process; workers of four numbers for the same rows."""
    rows = [10**4, 10**5] if sizes.is_quick else [10**4, 10**5, 10**6, 10**7]
    workers = [1, 10] if sizes.is_quick else [1, 10, 100, 1000]
    n_small = sizes.pick(5_000, 100_000)
    small = SMALL_SHARD_ROWS
    return [
        *(
            Contender(f"{n:,} rows", partial(storing, n, SHARD_ROWS, None), n, n < 10**6)
            for n in rows
        ),
        *(
            Contender(f"{n:,} workers", partial(storing, n_small, small, n), n_small, False)
            for n in workers
        ),
    ]


MOST, FEW = "10,000,000 rows", "100,000 rows"
PART = Part(
    "scale",
    "Scale",
    __doc__,
    contenders,
    columns=("rows/s", "seconds", "from", "to", "cpu s", "memory", "on disk"),
    figures=(
        Figure("rows/s, 10^7 / 10^5", [FEW], MOST, wall_per_row, at_least=0.9),
        Figure("memory, 10^7 / 10^5", [MOST], FEW, peak, at_most=1.1),
    ),
)
