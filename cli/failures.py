"""The table that `detect-failures` prints: confidences by predictor, the best first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.comparison import gain_of, with_std
from cli.output import table

if TYPE_CHECKING:
    from stages.failures.failure_result import Failures

SHOWN = ("aurc", "augrc", "auroc_f", "risk_at_80")
GAINS = ("aurc", "auroc_f")


def failure_table(found: Failures) -> str:
    """The averages as a table, their definitions, and the location of the files."""
    from stages.failures.ranked import BASELINE
    from stages.metrics.bootstrap import MIN_RESAMPLES
    from stages.metrics.definitions import SELECTIVE

    card = found.card
    means = found.average.set_index(["predictor", "confidence", "metric"])
    numbers = means.to_dict(orient="index")
    keys = list(dict.fromkeys(each[:2] for each in numbers))
    predictors = list(dict.fromkeys(predictor for predictor, _ in keys))
    keys.sort(key=lambda key: (predictors.index(key[0]), numbers[*key, "aurc"]["mean"]))
    rows = [
        {
            "errors of": predictor,
            "confidence": confidence,
            **{name: with_std(numbers[predictor, confidence, name]) for name in SHOWN},
            **{f"gain in {name}": gain_of(numbers[predictor, confidence, name]) for name in GAINS},
        }
        for predictor, confidence in keys
    ]
    told = {name: SELECTIVE[name] for name in SHOWN} | {"gain": card.statistics["gain"]}
    told |= {name: card.definitions[name] for name in card.contenders}
    if card.n_resamples >= MIN_RESAMPLES:
        told["[low, high]"] = f"{card.statistics['interval']}; {card.n_resamples:,} resamples"
    definitions = "\n".join(f"  {name}: {text}" for name, text in told.items())
    place = found.artifact.storage.location
    files = f"tables: {place}/{{by-group,average,curves}}.parquet"
    order = f"the lowest aurc first; gains are over f ranked by {BASELINE}"
    return f"{card.title}; {order}\n{table(rows)}\n{definitions}\n{files}"
