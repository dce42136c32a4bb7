"""The table that `evaluate` prints: f, and below it the heads."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.output import table

if TYPE_CHECKING:
    from stages.judging.judged_result import Evaluation

GAINS = {"gain in accuracy": "accuracy", "gain in ece": "ece"}
"""Name of a column -> the metric whose gain over f it shows."""


def shown(result: Evaluation) -> str:
    """The averages as a table, and where definitions and files are."""
    from stages.report.vocabulary import TABLE_METRICS

    card = result.card
    means = result.average.set_index(["predictor", "metric"]).to_dict(orient="index")
    rows = [
        {
            "predictor": label,
            "seeds": len(seeds),
            **{name: with_std(means[label, name]) for name in TABLE_METRICS},
            **{name: gain_of(means[label, metric]) for name, metric in GAINS.items()},
        }
        for label, seeds in card.seeds.items()
    ]
    place = result.artifact.storage.location
    files = f"tables: {place}/{{by-group,average,differences,bins}}.parquet"
    page = f"page with figures and definitions: intro-pipe report {result.artifact.name}"
    return f"{card.title}\n{table(rows, _columns(rows))}\n{files}\n{page}"


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:  # Any: numbers and text
    """The columns to print: gains only if there is a predictor beside f."""
    return [name for name in rows[0] if len(rows) > 1 or name not in GAINS]


def with_std(row: Mapping[Hashable, Any]) -> str:  # Any: numbers
    """A mean over seeds with its standard deviation."""
    std = "" if math.isnan(row["std"]) else f" ± {row['std']:.4f}"
    return "-" if math.isnan(row["mean"]) else f"{row['mean']:.4f}{std}"


def gain_of(row: Mapping[Hashable, Any]) -> str:
    """A gain over f with its interval."""
    if math.isnan(row["gain"]):
        return "-"
    has_interval = not math.isnan(row["gain_low"])
    between = f" [{row['gain_low']:+.4f}, {row['gain_high']:+.4f}]" if has_interval else ""
    return f"{row['gain']:+.4f}{between}"
