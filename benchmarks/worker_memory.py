"""Measure what a worker of `extract` takes at most, beside what it was given.

Run it from the repository: `python benchmarks/worker_memory.py`. Each case extracts a set of black
images in a process of its own, in one shard. `anonymous` is the peak of what the process has made
itself; `resident` counts the pages of files that it has mapped as well, which the kernel takes back
when memory gets scarce.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.output import emit, table

WIDE = """
from torch import nn

def net(n_classes):
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2048), nn.Linear(2048, n_classes)
    )
"""
"""A network that is nothing but wide features: as many numbers a row as ResNet-50 on ImageNet."""


@dataclass(frozen=True)
class Case:
    """A shard of ``n_rows`` images of ``side`` x ``side`` pixels, and their network."""

    network: str
    side: int
    n_rows: int
    memory: str


CASES = (
    Case("cnn2", 32, 100_000, "2G"),
    Case("wide", 32, 100_000, "4G"),
    Case("torchvision:resnet18", 224, 1_024, "2G"),
    Case("torchvision:resnet18", 224, 1_024, "1G"),
    Case("torchvision:resnet18", 1024, 32, "2G"),
    Case("torchvision:resnet18", 1024, 32, "1G"),
    Case("resnet18", 224, 32, "2G"),
)


def measured(case: Case) -> dict[str, object]:
    """Extract the case in this process; peaks in bytes."""
    import numpy as np
    import torch

    from pipeline.executors import LocalExecutor
    from pipeline.journal import Journal
    from pipeline.memory import bytes_of
    from stages.data.registry import SourceSpec
    from stages.reflection.extraction import Extraction, extraction_job
    from stages.sensing.build import build_network
    from stages.sensing.model import describe
    from stages.sensing.weights import save_weights
    from store.catalog import FeatureStore

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shape = (case.n_rows, case.side, case.side, 3)
        np.lib.format.open_memmap(folder / "black.npy", "w+", np.uint8, shape).flush()
        (folder / "wide.py").write_text(WIDE)
        name = f"{folder}/wide.py:net" if case.network == "wide" else case.network
        torch.manual_seed(0)
        network = build_network(name, 1000).eval()
        card = describe(
            network,
            name="net",
            network_name=name,
            class_names=tuple(str(label) for label in range(1000)),
            image_size=case.side,
            family="black",
        )
        (folder / "weights.safetensors").write_bytes(save_weights(network))
        del network
        source = SourceSpec(str(folder / "black.npy"), "test", "", image_size=case.side)
        weights = str(folder / "weights.safetensors")
        stage = Extraction(source, card, weights, shard_rows=case.n_rows, batch_rows=128)
        store = FeatureStore(str(folder / "store"))
        peak = _watched()
        before = peak[0]
        executor = LocalExecutor(2, memory_bytes=bytes_of(case.memory))
        made = extraction_job(store, stage, executor).run(Journal.of(store.location, ["extract"]))
        receipt = made.output.shard_set.receipt(made.output.shard_set.shards[0])
        return {
            **asdict(case),
            "batch": receipt.facts["batch_rows"],
            "before": before,
            "anonymous": peak[0],
            "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "images/s": round(made.report.rows_per_s),
        }


def _watched() -> list[int]:
    """The largest anonymous memory of this process so far, looked at every 2 ms from now on."""
    peak = [_anonymous_bytes()]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], _anonymous_bytes())
            stop.wait(0.002)

    stop = threading.Event()
    threading.Thread(target=watch, daemon=True).start()
    return peak


def _anonymous_bytes() -> int:
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon")
    ]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Every case in a process of its own, as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, help="only this one, in this process, as JSON")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    asked = parser.parse_args()
    if asked.case is not None:
        print(json.dumps(measured(CASES[asked.case])))
        return
    rows = []
    for index in range(len(CASES)):
        command = [sys.executable, __file__, "--case", str(index)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    shown = [
        {
            k: f"{v / 2**20:,.0f} MiB" if k in ("before", "anonymous", "resident") else v
            for k, v in row.items()
        }
        for row in rows
    ]
    emit(rows, table(shown), as_json=asked.json)


if __name__ == "__main__":
    main()
