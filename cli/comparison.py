"""The table that `evaluate` prints: f, and below it the heads."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from cli.output import table

if TYPE_CHECKING:
    from stages.evaluation.evaluation import Evaluation

_GAINS = ("accuracy", "ece")


def shown(result: Evaluation) -> str:
    """The averages as a table, their definitions, and the location of the files."""
    from stages.metrics.bootstrap import MIN_RESAMPLES
    from stages.metrics.definitions import DEFINITIONS, STATISTICS
    from stages.report.vocabulary import TABLE_METRICS

    card = result.card
    means = result.average.set_index(["predictor", "metric"]).to_dict(orient="index")
    rows = [
        {
            "predictor": label,
            "seeds": len(seeds),
            **{name: with_std(means[label, name]) for name in TABLE_METRICS},
            **{f"gain in {name}": gain_of(means[label, name]) for name in _GAINS},
        }
        for label, seeds in card.seeds.items()
    ]
    told = {name: DEFINITIONS[name] for name in TABLE_METRICS}
    told |= {"mean": STATISTICS["mean"], "gain": STATISTICS["gain"]}
    if any(len(seeds) > 1 for seeds in card.seeds.values()):
        told["±"] = STATISTICS["std"]
    if card.n_resamples >= MIN_RESAMPLES:
        told["[low, high]"] = f"{STATISTICS['interval']}; {card.n_resamples:,} resamples"
    definitions = "\n".join(f"  {name}: {definition}" for name, definition in told.items())
    place = result.artifact.storage.location
    files = f"tables: {place}/{{by-group,average,differences,bins}}.parquet"
    return f"{card.title}\n{table(rows)}\n{definitions}\n{files}"


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
