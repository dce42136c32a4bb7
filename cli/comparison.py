"""What `evaluate` is told and what it shows: contenders by label, f beside them in one table."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.output import table

if TYPE_CHECKING:
    from stages.applications.evaluation import Contender, Evaluation
    from stages.introspection.predictors import OfModel
    from store.catalog import FeatureStore

_GAINS = ("accuracy", "ece")


def contenders_of(
    store: FeatureStore, feature_set: OfModel, heads: Sequence[str]
) -> list[Contender]:
    """The heads named as ``[LABEL=]NAME``; the model's only one, as H, where none is named."""
    from stages.applications.evaluation import Contender
    from stages.introspection.predictors import choose_head

    if not heads:
        return [Contender("H", choose_head(store, feature_set, None))]
    pairs = [head.partition("=")[::2] for head in heads]
    return [
        Contender(label, choose_head(store, feature_set, name or label)) for label, name in pairs
    ]


def shown(result: Evaluation) -> str:
    """The averages as a table, what they mean, and where the files lie."""
    from stages.applications.evaluation import SHOWN
    from stages.metrics.bootstrap import MIN_RESAMPLES
    from stages.metrics.definitions import DEFINITIONS, STATISTICS

    card = result.card
    means = result.average.set_index(["predictor", "metric"]).to_dict(orient="index")
    rows = [
        {
            "predictor": label,
            "seeds": len(seeds),
            **{name: with_std(means[label, name]) for name in SHOWN},
            **{f"gain in {name}": gain_of(means[label, name]) for name in _GAINS},
        }
        for label, seeds in card["seeds"].items()
    ]
    told = {name: DEFINITIONS[name] for name in SHOWN}
    told |= {"mean": STATISTICS["mean"], "gain": STATISTICS["gain"]}
    if any(len(seeds) > 1 for seeds in card["seeds"].values()):
        told["±"] = STATISTICS["std"]
    if card["n_resamples"] >= MIN_RESAMPLES:
        told["[low, high]"] = f"{STATISTICS['interval']}; {card['n_resamples']:,} resamples"
    definitions = "\n".join(f"  {name}: {definition}" for name, definition in told.items())
    place = result.artifact.storage.location
    files = f"tables: {place}/{{by-group,average,differences,bins}}.parquet"
    return f"{card['title']}\n{table(rows)}\n{definitions}\n{files}"


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
