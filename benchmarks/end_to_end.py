"""From uint8 images to features and logits, as whole commands: ResNet-18, untrained, noise images.

Ours is `intro-pipe extract --executor ray` into a new store, which `intro-pipe verify` then checks:
Ray is what several workers and machines use. One worker on one machine runs without it by default,
and the seconds before its first rows are in docs/explanation/performance.md. The usual loop has a
torchvision data set, a DataLoader of two processes, ToTensor, Normalize and batches of 128, and
saves arrays at the end; the tuned loops are the fastest forward pass that we know how to write, and
store nothing. Ray Data runs our network in `map_batches` and writes with
`write_parquet`.

`at work` is images per second from the first batch to the last receipt, file or batch, without
start-up. The seconds are those of the whole command, start-up included.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import images
from benchmarks.commands import INTRO_PIPE, cost_of
from benchmarks.measuring import Contender, Once, WrongNumbersError, fact
from benchmarks.part import Figure, Part, Sizes
from stages.sensing.card import Precision
from store.catalog import FeatureStore

N_SHARDS = 10
CHECKED = 64
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1}
"""Largest difference of a logit from the plain network's, over the largest of them."""


def check(logits: NDArray[Any], made: images.Made, precision: Precision) -> None:
    """Raise ``WrongNumbersError`` if the first rows differ from those of the plain network."""
    right = made.logits(0, CHECKED).numpy()
    difference = np.abs(logits[:CHECKED] - right).max() / np.abs(right).max()
    if not difference <= TOLERANCES[precision]:
        raise WrongNumbersError(f"logits differ from the plain network's by {difference:.1e}")


def made_for(folder: Path, n_rows: int) -> images.Made:
    """Images beside the folder of a contender; all of the part share them."""
    place = folder.with_name("images")
    made = images.Made(place, n_rows)
    return made if made.weights.is_file() else images.make(place, n_rows)


def extract_command(made: images.Made, store: Path, precision: Precision) -> list[str]:
    """Our command."""
    return [
        *INTRO_PIPE,
        *("extract", "--dataset", str(made.dataset), "--store", str(store)),
        *("--network", images.NETWORK, "--weights", str(made.weights)),
        *("--precision", precision, "--shard-rows", str(made.n_rows // N_SHARDS), "--json"),
    ]


def ours(precision: Precision, n_rows: int, folder: Path) -> Once:
    """`extract`, timed, then `verify`."""
    made = made_for(folder, n_rows)

    def once() -> dict[str, Any]:
        began = time.time()
        command = extract_command(made, folder / "store", precision)
        cost = cost_of([*command, "--executor", "ray"])
        verified = cost_of([*INTRO_PIPE, "verify", "--store", str(folder / "store")])
        found = next(FeatureStore(str(folder / "store")).feature_sets())
        check(found.read("logits", 0, CHECKED), made, precision)
        place = Path(found.shard_set.storage.location)
        done = sorted(path.stat().st_mtime for path in place.glob("receipts/*.json"))
        return {
            **cost.facts(),
            "at work": n_rows / seconds_at_work(folder / "store"),
            "first rows s": done[0] - began,
            "verify s": verified.wall_s,
        }

    return once


def seconds_at_work(store: Path) -> float:
    """Seconds from the first images to the last receipt of the only run of a store."""
    receipts = store.glob("features/*/receipts/*.json")
    return max(path.stat().st_mtime for path in receipts) - _computes_since(store)


def _computes_since(store: Path) -> float:
    """Time at which the first worker had loaded its network and read its first images."""
    (journal,) = store.glob("journal/*.jsonl")
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    return min(
        event["time"] - sum(seconds for name, seconds in event["costs"].items() if name != "setup")
        for event in events
        if event["event"] == "shard"
    )


def loop(name: str, n_rows: int, folder: Path) -> Once:
    """One of `benchmarks.loops`."""
    made = made_for(folder, n_rows)
    out = folder / "out.npz"

    def once() -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.loops", name]
        cost = cost_of([*command, str(made.folder), str(n_rows), str(out)])
        found = json.loads(cost.stdout.splitlines()[-1])
        check(np.array(found.pop("logits")), made, "bf16" if "bf16" in name else "fp32")
        return {**cost.facts(), **found}

    return once


def ray_data(n_rows: int, folder: Path) -> Once:
    """`benchmarks.ray_data`."""
    import pyarrow.parquet as pq

    made = made_for(folder, n_rows)
    out, counted = folder / "out", folder.with_name("counted")

    def once() -> dict[str, Any]:
        counted.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.ray_data", str(made.folder), str(n_rows)]
        cost = cost_of([*command, str(out), "--counted", str(counted)])
        table = pq.read_table(out, columns=["id", "logits"]).sort_by("id")
        if table["id"].to_pylist() != list(range(n_rows)):
            raise WrongNumbersError("rows are lost or doubled")
        check(np.array(table["logits"].slice(0, CHECKED).to_pylist()), made, "fp32")
        began = float(counted.read_text().split()[0])
        done = max(path.stat().st_mtime for path in out.rglob("*.parquet"))
        return {**cost.facts(), "at work": n_rows / (done - began)}

    return once


def contenders(sizes: Sizes) -> list[Contender]:
    """Ours, the loops, Ray Data."""
    n = sizes.pick(1_000, 24_000)
    makers = {
        "ours, fp32": partial(ours, "fp32"),
        "ours, bf16": partial(ours, "bf16"),
        "plain loop, fp32": partial(loop, "plain"),
        "tuned loop, fp32": partial(loop, "tuned-fp32"),
        "tuned loop, bf16": partial(loop, "tuned-bf16"),
        "Ray Data, fp32": ray_data,
    }
    return [Contender(name, partial(maker, n), n, warms_up=False) for name, maker in makers.items()]


def _at_work(over: str, under: str, least: float | None = None) -> Figure:
    """Speed of ``over`` relative to ``under``, without start-up."""
    return Figure(f"{over} / {under}, at work", [over], under, fact("at work"), least)


PART = Part(
    "end-to-end",
    "End to end",
    __doc__,
    contenders,
    columns=("seconds", "from", "to", "rows/s", "cpu s", "memory", "on disk"),
    figures=(
        _at_work("ours, fp32", "tuned loop, fp32", 0.9),
        _at_work("ours, bf16", "tuned loop, bf16", 0.9),
        _at_work("ours, fp32", "plain loop, fp32", 1.5),
        _at_work("ours, bf16", "plain loop, fp32", 4),
        _at_work("ours, fp32", "Ray Data, fp32"),
        Figure("first rows, seconds", ["ours, fp32"], None, fact("first rows s"), at_most=10),
    ),
)
