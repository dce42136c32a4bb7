"""Accuracy and calibration error of 95 cells over 950,000 stored rows, as whole commands.

Ours is `intro-pipe query`. pandas and DuckDB are a script each, start-up included, which reads the
same Parquet files and takes confidence and prediction from there. All have 10 bins `(lo, hi]`.
`from logits` asks for accuracy and Brier score, which follows from the logits alone. The aims in
seconds were set on a machine where pandas takes 0.63 s; as ratios to pandas, they hold for others.
`extract again` is the whole `extract` command when every row is stored already: with a model of
the store, and with `--network` and `--weights`, which have to be read and compared with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import images, stored_cells
from benchmarks.commands import INTRO_PIPE, Cost, cost_of
from benchmarks.measuring import Contender, Once, WrongNumbersError, wall
from benchmarks.part import Figure, Part, Sizes
from stages.data.corruptions.names import N_SEVERITIES
from store.catalog import FeatureStore
from store.featureset import FeatureSet

N_BINS, TOLERANCE = 10, 1e-9
N_CELLS = len(stored_cells.CORRUPTIONS) * N_SEVERITIES

PANDAS = """
import sys
import numpy as np
import pandas as pd

columns = ["corruption", "severity", "label", "prediction", "confidence"]
rows = pd.read_parquet(sys.argv[1], columns=columns)
rows["right"] = (rows["label"] == rows["prediction"]).astype(float)
rows["bin"] = np.ceil(rows["confidence"] * 10)
cell = ["corruption", "severity"]
bins = rows.groupby([*cell, "bin"]).agg(
    n_rows=("right", "size"), right=("right", "sum"), sure=("confidence", "sum")
)
bins["gap"] = (bins["right"] - bins["sure"]).abs()
found = bins.groupby(level=cell).sum()
found["accuracy"] = found["right"] / found["n_rows"]
found["ece"] = found["gap"] / found["n_rows"]
print(found.reset_index()[[*cell, "accuracy", "ece"]].to_json(orient="records"))
"""

DUCKDB = """
import json
import sys
import duckdb

found = duckdb.sql(f'''
    with bins as (
        select corruption, severity, ceil(confidence * 10) as bin, count(*) as n,
            sum((label = prediction)::int) as sure_right, sum(confidence) as sure
        from '{sys.argv[1]}/*.parquet' group by all
    )
    select corruption, severity, sum(sure_right) / sum(n) as accuracy,
        sum(abs(sure_right - sure)) / sum(n) as ece
    from bins group by all order by all
''')
print(json.dumps([dict(zip(found.columns, row)) for row in found.fetchall()]))
"""


Cell = tuple[str, int]

FROM_COLUMNS, FROM_LOGITS = ("accuracy", "ece"), ("accuracy", "brier")


def expected(found: FeatureSet) -> dict[Cell, dict[str, float]]:
    """Accuracy, Brier score and, bin by bin, calibration error of each cell, which is a shard."""
    right = {}
    for shard in found.shard_set.shards:
        logits = found.read_chunk("logits", shard).astype(np.float64)
        samples = found.read_samples(shard).to_pandas()
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        sure, labels = p.max(axis=1), samples["label"].to_numpy()
        hits = logits.argmax(axis=1) == labels
        edges = np.arange(N_BINS) / N_BINS
        masks = [(sure > low) & (sure <= low + 1 / N_BINS) for low in edges]
        gaps = [abs(hits[mask].sum() - sure[mask].sum()) for mask in masks]
        cell = (samples["corruption"].iloc[0], int(samples["severity"].iloc[0]))
        right[cell] = {
            "accuracy": float(hits.mean()),
            "ece": float(sum(gaps) / len(hits)),
            "brier": float(np.square(p - np.eye(p.shape[1])[labels]).mean()),
        }
    return right


def made_for(folder: Path, cell_rows: int) -> stored_cells.Cells:
    """The set, beside the folder of a contender; all of the part share it."""
    place = folder.with_name("cells")
    made = stored_cells.Cells(place)
    return made if made.store.is_dir() else stored_cells.make(place, cell_rows)


def asking(
    command: Callable[[stored_cells.Cells], Sequence[str]],
    cell_rows: int,
    metrics: Sequence[str],
    folder: Path,
) -> Once:
    """A command that prints metrics of the cells as JSON."""
    made = made_for(folder, cell_rows)
    right = expected(FeatureStore(str(made.store)).open(stored_cells.FEATURES))

    def once() -> dict[str, Any]:
        cost = cost_of(command(made))
        _check(cost, right, metrics)
        return cost.facts()

    return once


def _check(cost: Cost, right: dict[Cell, dict[str, float]], metrics: Sequence[str]) -> None:
    """Raise ``WrongNumbersError`` if a printed cell is wrong."""
    found = {(row["corruption"], row["severity"]): row for row in json.loads(cost.stdout)}
    if found.keys() != right.keys():
        raise WrongNumbersError(f"{len(found)} cells, expected {len(right)}")
    difference = max(abs(found[at][name] - right[at][name]) for at in right for name in metrics)
    if not difference <= TOLERANCE:
        raise WrongNumbersError(f"cells differ by {difference:.1e}")


def _query(metrics: Sequence[str], made: stored_cells.Cells) -> list[str]:
    asked = ("--by", "corruption,severity", "--metric", ",".join(metrics), "--json")
    return [*INTRO_PIPE, "query", stored_cells.FEATURES, *asked, "--store", str(made.store)]


def _script(text: str, made: stored_cells.Cells) -> list[str]:
    (samples,) = made.store.glob("features/*/samples")
    return [sys.executable, "-c", text, str(samples)]


def extracting(is_in_store: bool, cell_rows: int, folder: Path) -> Once:
    """`extract` of a finished set."""
    made = made_for(folder, cell_rows)
    store = ("--store", str(made.store), "--shard-rows", str(cell_rows), "--json")
    extract = [*INTRO_PIPE, "extract", "--dataset", str(made.dataset), *store]
    brought = [*extract, "--network", images.NETWORK, "--weights", str(made.weights)]
    command = [*extract, "--model", images.NETWORK] if is_in_store else brought

    def once() -> dict[str, Any]:
        cost = cost_of(command)
        if (n := json.loads(cost.stdout)["n_computed"]) != 0:
            raise WrongNumbersError(f"{n} shards were computed, expected 0")
        return cost.facts()

    return once


def contenders(sizes: Sizes) -> list[Contender]:
    """Ours, pandas, DuckDB, and a rerun that has nothing to compute."""
    cell_rows = sizes.pick(200, 10_000)
    n = N_CELLS * cell_rows
    commands = {
        "intro-pipe query": (partial(_query, FROM_COLUMNS), FROM_COLUMNS),
        "intro-pipe query, from logits": (partial(_query, FROM_LOGITS), FROM_LOGITS),
        "pandas": (partial(_script, PANDAS), FROM_COLUMNS),
        "DuckDB": (partial(_script, DUCKDB), FROM_COLUMNS),
    }
    asked = [
        Contender(name, partial(asking, command, cell_rows, metrics), n)
        for name, (command, metrics) in commands.items()
    ]
    again = {"extract again": True, "extract again, --network": False}
    return asked + [
        Contender(name, partial(extracting, is_in_store, cell_rows), n)
        for name, is_in_store in again.items()
    ]


PART = Part(
    "query",
    "Query",
    __doc__,
    contenders,
    columns=("seconds", "from", "to", "cpu s", "memory"),
    figures=(
        Figure("intro-pipe query, seconds", ["intro-pipe query"], None, wall, at_most=0.6),
        Figure(
            "intro-pipe query, from logits, seconds",
            ["intro-pipe query, from logits"],
            None,
            wall,
            at_most=1,
        ),
        Figure("extract again, seconds", ["extract again"], None, wall, at_most=2),
        Figure("intro-pipe query / pandas", ["intro-pipe query"], "pandas", wall, at_most=0.95),
        Figure(
            "intro-pipe query, from logits / pandas",
            ["intro-pipe query, from logits"],
            "pandas",
            wall,
            at_most=1.6,
        ),
        Figure("intro-pipe query / DuckDB", ["intro-pipe query"], "DuckDB", wall),
    ),
)
