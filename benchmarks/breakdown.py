"""Show where the time of an extraction goes.

Run it from the repository, with a store that has a model for the data set:

    python benchmarks/breakdown.py --store STORE --data-root DATA --dataset cifar10c

The first rows of the data set are extracted in this process, into a store of their own, with a
clock around each part of the work. Printed are the seconds of the processor in each part, of all
threads, without those of the parts within it, and their share. They count the work of this process
alone, whatever else runs on the machine. Seconds of the wall stand beside them, for what waits
instead of working, such as fsync; those of parts that run at once add up to more than there were.

With `--start-up` the command itself is run, and the wall seconds are printed from its start to its
first committed shard, and of the same command again, which finds everything there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cli.output import emit, table
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal, runs
from stages.data.registry import SourceSpec
from stages.reflection.extraction import Extraction, extraction_job
from stages.sensing.models import choose_model, weights_path
from store.catalog import FeatureStore

PARTS = {
    "open and fit": "stages.reflection.extraction.fitted",
    "set up the worker": "stages.reflection.extraction.FittedExtraction.setup",
    "read": "stages.reflection.flow.read_each",
    "decode": "stages.data.resize.Resize.pixels",
    "normalise": "stages.sensing.model.normalised",
    "forward": "stages.sensing.model.Sensing.forward",
    "reflect": "stages.reflection.extraction._columns",
    "check": "stages.reflection.extraction._unfit",
    "encode": "store.encoding.encode_chunk",
    "compress": "store.encoding.encode_samples",
    "checksum": "google_crc32c.extend",
    "SHA-256": "store.seal.checksum",
    "fsync": "os.fsync",
    "write": "store.shardset.ShardSet.stage",
    "publish": "store.shardset.ShardSet.publish",
}


class Clocks:
    """CPU and wall seconds of each part, in all threads."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self._open = threading.local()
        self._lock = threading.Lock()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function to measure it; calls of other parts are counted there."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:  # Any: whatever it is
            within = self._open.__dict__.setdefault("within", [])
            within.append([0.0, 0.0])
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
                inner_cpu, inner_wall = within.pop()
                if within:
                    within[-1][0] += cpu
                    within[-1][1] += wall
                with self._lock:
                    self.cpu[part] += cpu - inner_cpu
                    self.wall[part] += wall - inner_wall

        return timed


def stage_of(options: argparse.Namespace) -> Extraction:
    """The requested extraction."""
    source = SourceSpec(options.dataset, "test", options.data_root, limit=options.rows)
    store = FeatureStore(options.store)
    card = choose_model(store, source.open().family, options.model)
    source = replace(source, image_size=card.image_size)
    precision, rows = options.precision, options.batch_size
    return Extraction(source, card, weights_path(store, card.name), precision, batch_rows=rows)


def profiled(options: argparse.Namespace) -> list[dict[str, object]]:
    """One row per part."""
    import stages.reflection.flow  # noqa: F401 - imported late, and patched below

    clocks = Clocks()
    stage = stage_of(options)
    with tempfile.TemporaryDirectory(dir=options.scratch) as place, ExitStack() as stack:
        for part, name in PARTS.items():
            target = patch(name)
            original, _ = target.get_original()
            stack.enter_context(patch(name, clocks.around(part, original)))
        cpu, wall = time.process_time(), time.perf_counter()
        executor = LocalExecutor(options.threads)
        job = extraction_job(FeatureStore(place), stage, executor)
        report = job.run(Journal.of(place, ["extract"])).report
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    clocks.cpu["all else"], clocks.wall["all else"] = cpu - sum(clocks.cpu.values()), 0.0
    clocks.cpu["all"], clocks.wall["all"] = cpu, wall
    rows = report.n_rows_computed
    return [
        {
            "part": part,
            "cpu_s": round(clocks.cpu[part], 3),
            "share": f"{clocks.cpu[part] / cpu:.1%}",
            "us_a_row": round(clocks.cpu[part] / rows * 1e6, 1),
            "wall_s": round(clocks.wall[part], 3),
        }
        for part in [*PARTS, "all else", "all"]
        if part in clocks.cpu
    ]


def started_up(options: argparse.Namespace) -> list[dict[str, object]]:
    """Seconds from the start of the command to its first steps, and for rerunning it."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as place:
        shutil.copytree(Path(options.store, "models"), Path(place, "models"))
        shutil.copy(Path(options.store, "store.json"), place)
        command = [sys.executable, "-m", "cli.app", "extract", "--dataset", options.dataset]
        command += [
            "--data-root",
            options.data_root,
            "--store",
            place,
            "--limit",
            str(options.rows),
        ]
        command += ["--precision", options.precision, "--executor", options.executor]
        command += ["--model", options.model] if options.model else []
        seconds = []
        began = time.time()
        for _ in range(2):
            then = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=dict(os.environ))
            seconds.append(time.perf_counter() - then)
        events = next(
            run.events for run in runs(place) if any(e["event"] == "work" for e in run.events)
        )
        shard = next(event for event in events if event["event"] == "shard")
        work = next(event for event in events if event["event"] == "work")
    told = {
        "to the plan": work["time"] - began,
        "to the first shard, staged": shard["time"] - began,
        **{f"of which {name}": cost for name, cost in shard["costs"].items()},
        "all": seconds[0],
        "again": seconds[1],
    }
    return [{"what": what, "seconds": round(value, 2)} for what, value in told.items()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", required=True, help="with the model; nothing is written there")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", help="of the store")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--rows", type=int, default=20_000, help="how many to extract")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--executor", default="auto", choices=("auto", "local", "ray"), help="of --start-up"
    )
    parser.add_argument("--start-up", action="store_true", help="time the command itself")
    parser.add_argument("--scratch", help="a folder for what is written and thrown away")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = started_up(options) if options.start_up else profiled(options)
    emit(rows, table(rows, list(rows[0])), as_json=options.json)


if __name__ == "__main__":
    main()
