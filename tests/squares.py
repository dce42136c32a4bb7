"""A small real stage for tests of the runner and the executors: squares of row numbers."""

import errno
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from pipeline.ray_executor import RayExecutor
from pipeline.runner import run_map
from pipeline.work import ShardOutput, Tick
from store.catalog import FeatureStore
from store.disk import LocalDisk
from store.encoding import encode_rows
from store.errors import StoreError
from store.machine import ThisMachine
from store.plan import Plan
from store.schema import ArraySpec, Schema
from store.shards import Shard

SCHEMA = Schema(
    (ArraySpec("square", (2,)),),
    (("row", "int64"), ("corruption", "string"), ("severity", "int64"), ("status", "string")),
)


def plan_of(n_rows: int, shard_rows: int, **inputs: Any) -> dict[str, Any]:
    return {
        "name": "numbers-test@square",
        "n_rows": n_rows,
        "shard_rows": shard_rows,
        "schema": SCHEMA.to_json(),
        "inputs": {"source": {"name": "numbers"}, "model": {"name": "square"}, **inputs},
    }


@dataclass(frozen=True)
class Squares:
    """Row i holds (i, i*i). ``script`` maps a shard to what happens to its attempts, in order.

    A script entry is "ok", "fail" (an error that may pass), "final" (one that will not), or "kill"
    (the process dies) or "hang" (it stops, and says nothing any more). Attempts are counted in
    files under ``folder``, so that they survive kills.
    """

    chunk_rows: int
    folder: str
    script: dict[int, tuple[str, ...]] = field(default_factory=dict)
    nan_rows: tuple[int, ...] = ()
    pause_s: float = 0.0
    name: str = "squares"
    version: int = 1
    rows: str = "rows"

    def check(self, plan: Plan) -> None:
        pass  # numbers do not change

    def setup(self, n_threads: int) -> int:
        Path(self.folder, f"setup-{os.getpid()}-{n_threads}").touch()
        return n_threads

    def compute(self, state: int, shard: Shard, tick: Tick) -> ShardOutput:
        assert state >= 1
        self._act(shard)
        time.sleep(self.pause_s)
        rows = np.arange(shard.start, shard.stop)
        values = np.stack([rows, rows * rows], axis=1).astype(np.float32)
        failed = [row for row in self.nan_rows if shard.start <= row < shard.stop]
        values[[row - shard.start for row in failed]] = np.nan
        tick(shard.n_rows)
        columns = {
            "row": rows,
            "corruption": ["fog" if row % 2 else "snow" for row in rows],
            "severity": rows % 5 + 1,
            "status": ["failed" if row in failed else "ok" for row in rows],
        }
        files = encode_rows(SCHEMA, shard, self.chunk_rows, {"square": values}, columns)
        return ShardOutput(files, {"failed": {str(row): "scripted" for row in failed}})

    def attempts(self, shard_index: int) -> int:
        return len(list(Path(self.folder).glob(f"shard-{shard_index}-*")))

    def _act(self, shard: Shard) -> None:
        n_before = self.attempts(shard.index)
        Path(self.folder, f"shard-{shard.index}-{n_before}").touch()
        script = self.script.get(shard.index, ())
        action = script[n_before] if n_before < len(script) else "ok"
        if action == "fail":
            raise RuntimeError("this one may pass")
        if action == "final":
            raise ValueError("this one will not")
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True, slots=True)
class Stranger(ThisMachine):
    """This machine as another would see it: by its heartbeat alone; its clock jumps by an hour."""

    since: float = field(default_factory=time.monotonic)

    @property
    def kernel(self) -> str:
        return ""

    def time(self) -> float:
        return time.time() + 3600 * (time.monotonic() - self.since > 1)


def let_the_disk_fail(rng: random.Random) -> None:
    """From now on one in a hundred calls of the file system fails."""
    numbers = (errno.EIO, errno.ENOSPC, errno.EROFS)

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def fail_or_call(self: LocalDisk, *arguments: Any) -> Any:
            if rng.random() < 0.01:
                number = rng.choice(numbers)
                raise OSError(number, os.strerror(number), *map(str, arguments[:1]))
            return call(self, *arguments)

        return fail_or_call

    for name in ("read", "put", "rename", "link", "unlink", "make_folder", "sync_folder"):
        setattr(LocalDisk, name, failing(getattr(LocalDisk, name)))


def main() -> None:
    """Make a set of squares, as a command does; a campaign kills and reruns it."""
    store, attempts, n_rows, shard_rows, pause_s, n_workers = sys.argv[1:]
    if seed := os.environ.get("SQUARES_DISK_FAILS"):
        let_the_disk_fail(random.Random(int(seed)))
    machine = Stranger() if os.environ.get("SQUARES_CLOCK_JUMPS") else ThisMachine()
    stage = Squares(int(shard_rows), attempts, pause_s=float(pause_s))
    executor = RayExecutor(n_workers=int(n_workers)) if int(n_workers) else LocalExecutor(1)
    journal = Journal.of(store, ["squares"])
    try:
        plan = plan_of(int(n_rows), int(shard_rows))
        shards = FeatureStore(store).prepare().create(plan).shard_set
        run_map(stage, shards, executor, journal, title="squares", machine=machine)
    except (StoreError, PipelineError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
