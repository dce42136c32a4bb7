"""The table that `evaluate` and `uncertainty` print: f, and below it the others."""

from __future__ import annotations

import math
import shlex
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.output import table

if TYPE_CHECKING:
    from stages.judging.judged_result import Evaluation
    from store.artifacts import Artifact

GAINS = ("accuracy", "ece")
"""Metrics whose gain over f `evaluate` prints."""


def shown(
    result: Evaluation, metrics: Sequence[str] | None = None, gains: Sequence[str] = GAINS
) -> str:
    """The averages as a table, and where definitions and files are.

    Args:
        result: the result.
        metrics: columns; by default those of an evaluation.
        gains: metrics whose gain over f is shown too, if there is a predictor beside it.
    """
    from stages.report.vocabulary import TABLE_METRICS

    card, metrics = result.card, TABLE_METRICS if metrics is None else metrics
    means = result.average.set_index(["predictor", "metric"]).to_dict(orient="index")
    gains = gains if len(card.seeds) > 1 else ()
    rows = [
        {
            "predictor": label,
            "seeds": len(seeds),
            **{name: with_std(means[label, name]) for name in metrics},
            **{f"gain in {name}": gain_of(means[label, name]) for name in gains},
        }
        for label, seeds in card.seeds.items()
    ]
    files = files_and_page(result.artifact, ("by-group", "average", "differences", "bins"))
    return f"{card.title}\n{table(rows)}\n{files}"


def files_and_page(result: Artifact, names: Sequence[str]) -> str:
    """Where the tables, the figures and the definitions of a result are."""
    keys = ",".join(name.replace("_", "-") for name in names)
    return f"tables: {result.storage.location}/{{{keys}}}.parquet\n{page_of(result.name)}"


def page_of(*names: str) -> str:
    """Where the figures and definitions of results are."""
    return f"page with figures and definitions: intro-pipe report {shlex.join(names)}"


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
