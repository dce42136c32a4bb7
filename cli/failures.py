"""The table that `detect-failures` prints: confidences by predictor, the best first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.comparison import files_and_page, gain_of, with_std
from cli.output import table

if TYPE_CHECKING:
    from stages.failures.failure_result import Failures

SHOWN = ("aurc", "augrc", "auroc_f", "risk_at_80")
GAINS = ("aurc", "auroc_f")


def failure_table(found: Failures) -> str:
    """The averages as a table, and where definitions and files are."""
    from stages.scores.known_scores import BASELINE

    card = found.card
    records = found.average.to_dict(orient="records")
    numbers = {(row["predictor"], row["confidence"], row["metric"]): row for row in records}
    keys = list(dict.fromkeys((predictor, confidence) for predictor, confidence, _ in numbers))
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
    files = files_and_page(found.artifact, ("by-group", "average", "curves"))
    order = f"the lowest aurc first; gains are over f ranked by {BASELINE}"
    return f"{card.title}; {order}\n{table(rows)}\n{files}"
