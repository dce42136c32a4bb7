"""Mean of ten scores over stored rows of 64 and 10 numbers, 10,000 rows a shard, in this process.

`from the store` reads, checks and scores all rows, one shard per thread at a time, as `intro-pipe
query --score` does. `in memory` is the same arithmetic, in as many threads and in blocks of as many
rows, on arrays that are in memory already. The memory is that of the process.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Contender, Once, WrongNumbersError, peak, wall, wall_per_row
from benchmarks.part import Figure, Part, Sizes
from benchmarks.scale import NAME, SHARD_ROWS, Given, block_of, plan_of
from stages.evaluation.recognition import query
from stages.reflection.reduction import in_threads
from stages.scores.asked_scores import asked_scores
from stages.scores.factors import row_blocks
from stages.scores.known_scores import PLAIN
from store.catalog import FeatureStore

TOLERANCE = 1e-9
Values = np.ndarray[Any, Any]


def stored(folder: Path, n_rows: int) -> FeatureStore:
    """The rows, beside the folder of a contender, which is emptied."""
    store = FeatureStore(str(folder.with_name(f"of-{n_rows}"))).prepare()
    found, stage = store.create(plan_of(n_rows, SHARD_ROWS)).shard_set, Given(SHARD_ROWS)
    for shard in found.missing():
        output = stage.compute(1, shard, lambda _: None)
        found.commit(shard, output.files, {"failed": {}})
    return store


def expected(n_shards: int) -> dict[str, float]:
    """Means of some scores by their definitions.

    Shards differ in the first feature, which is their number, and every score is linear in it.
    """
    f, z = (block_of(SHARD_ROWS)[name].astype(np.float64) for name in ("features", "logits"))
    f[:, 0] = (n_shards - 1) / 2
    e = np.exp(z)
    p, norm = e / e.sum(axis=1, keepdims=True), np.abs(f).sum(axis=1)
    rows = {
        "confidence": p.max(axis=1),
        "energy": np.log(e.sum(axis=1)),
        "entropy": -(p * np.log(p)).sum(axis=1),
        "exgrad": 2 * norm * (p * (1 - p)).sum(axis=1),
        "gradnorm": norm * np.abs(p - 1 / p.shape[1]).sum(axis=1),
        "max-logit": z.max(axis=1),
    }
    return {name: float(values.mean()) for name, values in rows.items()}


def scanning(n_rows: int, folder: Path) -> Once:
    """The mean scores of stored rows."""
    store = stored(folder, n_rows)
    found = store.open(NAME)
    scores = asked_scores(store, found, tuple(PLAIN))

    def once() -> None:
        (row,) = query(found, metrics=(), scores=scores).rows
        _check(row, n_rows)

    return once


def computing(n_rows: int, _: Path) -> Once:
    """The same from arrays in memory."""
    block = block_of(SHARD_ROWS)
    features = np.tile(block["features"], (n_rows // SHARD_ROWS, 1))
    logits = np.tile(block["logits"], (n_rows // SHARD_ROWS, 1))
    features[:, 0] = np.arange(n_rows) // SHARD_ROWS

    def sums_of(start: int) -> Values:
        f, z = (each[start : start + SHARD_ROWS] for each in (features, logits))
        return np.array(
            [
                sum(float(score(f[at], z[at]).sum()) for at in row_blocks(SHARD_ROWS))
                for score in PLAIN.values()
            ]
        )

    def once() -> None:
        sums = np.sum([*in_threads(sums_of, range(0, n_rows, SHARD_ROWS))], axis=0)
        _check(dict(zip(PLAIN, sums / n_rows, strict=True)), n_rows)

    return once


def _check(row: Any, n_rows: int) -> None:  # Any: a mapping of numbers
    """Raise ``WrongNumbersError`` if a mean is wrong."""
    for name, right in expected(n_rows // SHARD_ROWS).items():
        if not abs(row[name] - right) <= TOLERANCE * abs(right):
            raise WrongNumbersError(f"{name}: mean {row[name]}, expected {right}")


def contenders(sizes: Sizes) -> list[Contender]:
    """Rows in memory and from the store, and ten times as many in the same memory."""
    n = sizes.pick(50_000, 950_000)
    few, many = sizes.pick(20_000, 100_000), sizes.pick(100_000, 10_000_000)
    return [
        Contender("in memory", partial(computing, n), n),
        Contender("from the store", partial(scanning, n), n),
        Contender("few rows", partial(scanning, few), few),
        Contender("many rows", partial(scanning, many), many, warms_up=False),
    ]


PART = Part(
    "scores",
    "Scores",
    f"{__doc__}\n`few rows` are 100,000, `many rows` 10,000,000, both from the store.\n",
    contenders,
    columns=("rows/s", "seconds", "from", "to", "cpu s", "memory"),
    figures=(
        Figure("ten scores, store / memory", ["from the store"], "in memory", wall, at_most=1.5),
        Figure("rows/s, 10^7 / 10^5", ["few rows"], "many rows", wall_per_row, at_least=0.9),
        Figure("memory, 10^7 / 10^5", ["many rows"], "few rows", peak, at_most=1.1),
    ),
)
