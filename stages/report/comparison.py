"""Compare one contender with each of the others, with the intervals of the differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from stages.report.tables import sign_of

BETTER, WORSE, EQUAL, UNKNOWN = "better", "worse", "no clear difference", "no interval"
SPOKEN_METRICS = ("accuracy", "nll", "ece", "auroc", "fpr95")
"""Metrics described in sentences: those of recognition and calibration, or of detection."""

HOW = "Differences are paired: both contenders use the same resampled images, 95 % intervals."


def strong_one(contenders: Iterable[str]) -> str | None:
    """The contender that a report is about: H, or the first other than f; ``None`` for f alone.

    >>> strong_one(["f", "H on scaled f", "H"])
    'H'
    """
    others = [name for name in contenders if name != "f"]
    return "H" if "H" in others else next(iter(others), None)


def comparison_of(
    differences: pd.DataFrame, metrics: Sequence[str], axes: tuple[str, ...]
) -> pd.DataFrame:
    """The strong contender compared with each of the others, by entry and metric.

    Args:
        differences: differences of all entries, see ``results.frame_over``.
        metrics: metrics to show, in this order.
        axes: names of the axes.

    Returns:
        The axes, ``contender``, ``other``, ``metric``, ``difference`` (contender minus other),
        ``low``, ``high`` and ``verdict``, from the contender's side.
    """
    strong = strong_one(differences["predictor"].unique())
    is_shown = differences["metric"].isin(metrics) & (differences["predictor"] == strong)
    place = differences["metric"].map({name: at for at, name in enumerate(metrics)})
    entry = differences.groupby(list(axes), sort=False).ngroup() if axes else 0
    found = differences.assign(_entry=entry, _what=place)[is_shown]
    other = found["other"].map({name: at for at, name in enumerate(found["other"].unique())})
    found = found.assign(_who=other).sort_values(["_entry", "_who", "_what"], ignore_index=True)
    found = found.rename(columns={"predictor": "contender"})
    numbers = (found[name] for name in ("metric", "low", "high"))
    found["verdict"] = [verdict_of(*row) for row in zip(*numbers, strict=True)]
    columns = [*axes, "contender", "other", "metric", "difference", "low", "high", "verdict"]
    return found[columns]


def verdict_of(metric: str, low: float, high: float) -> str:
    """Verdict of the interval of a difference: whether it excludes zero, and on which side.

    `UNKNOWN` if there is no interval.
    """
    if math.isnan(low) or math.isnan(high):
        return UNKNOWN
    if low <= 0 <= high or not sign_of(metric):
        return EQUAL
    return BETTER if (low > 0) == (sign_of(metric) > 0) else WORSE


def sentences(
    comparison: pd.DataFrame, axes: tuple[str, ...], *, n_entries: int | None = None
) -> list[str]:
    """Describe the comparison, in one sentence for each of `SPOKEN_METRICS` that it has.

    ``n_entries`` is the number of entries in the report: sentences say if some lack the contender.
    """
    metrics = [name for name in SPOKEN_METRICS if name in set(comparison["metric"])]
    rows = {name: comparison[comparison["metric"] == name] for name in metrics}
    n_found = len(comparison[list(axes)].drop_duplicates()) if axes else 1
    where = "" if n_entries in (None, n_found) else f", found in {n_found} of {n_entries} results,"
    say = _over_entries if n_found > 1 else _in_one_entry
    return [
        f"In {spoken(name)} {found['contender'].iloc[0]}{where} is {'; '.join(say(found))}."
        for name, found in rows.items()
    ]


THAN = {
    BETTER: "better than",
    WORSE: "worse than",
    EQUAL: "not clearly different from",
    UNKNOWN: "not tested against",
}
"""Verdict -> words before the name of the other contender."""


def _in_one_entry(rows: pd.DataFrame) -> list[str]:
    """The verdict against f with its interval, then the other contenders by verdict."""
    parts = []
    of_f, others = rows[rows["other"] == "f"], rows[rows["other"] != "f"]
    for _, row in of_f.iterrows():
        numbers = f"{signed(row['difference'])} {interval(row['low'], row['high'])}".strip()
        parts.append(f"{THAN[row['verdict']]} f{_bracketed(numbers)}")
    for verdict, phrase in THAN.items():
        found = others[others["verdict"] == verdict]
        if named := [
            f"{row['other']}{_bracketed(signed(row['difference']))}" for _, row in found.iterrows()
        ]:
            parts.append(f"{phrase} {_listed(named)}")
    return parts


def _over_entries(rows: pd.DataFrame) -> list[str]:
    """How often each verdict occurs, and the range of the differences."""
    parts = []
    for other, found in rows.groupby("other", sort=False):
        counts = found["verdict"].value_counts()
        tally = _listed(
            [f"{THAN[name]} {other} in {counts[name]}" for name in THAN if name in counts]
        )
        ends = signed(found["difference"].min()), signed(found["difference"].max())
        parts.append(f"{tally} of {len(found)}{_bracketed(' to '.join(dict.fromkeys(ends)))}")
    return parts


def spoken(metric: str) -> str:
    """Name of a metric as shown in the head of a table.

    >>> spoken("ece"), spoken("ece_midpoint")
    ('ECE', 'ECE, mid-point')
    """
    return SPOKEN.get(metric, metric.replace("_", " "))


SPOKEN = {
    "ece": "ECE",
    "ece_midpoint": "ECE, mid-point",
    "ece_adaptive": "ECE, adaptive",
    "mce": "MCE",
    "brier": "Brier",
    "brier_sum": "Brier, sum",
    "nll": "NLL",
    "log_likelihood": "log-likelihood",
    "fpr95": "FPR at 95 % TPR",
    "fpr95_ood_pos": "FPR at 95 % TPR, OOD positive",
    "fpr95_sweep": "FPR at 95 % TPR, code base",
    "detection_error": "detection error",
    "auroc": "AUROC",
    "auroc_sweep": "AUROC, code base",
    "aupr_in": "AUPR, ID positive",
    "aupr_out": "AUPR, OOD positive",
    "aurc": "AURC",
    "augrc": "AUGRC",
    "e_aurc": "E-AURC",
    "auroc_f": "AUROC of errors",
    "risk_at_50": "risk at 50 %",
    "risk_at_80": "risk at 80 %",
    "risk_at_90": "risk at 90 %",
    "coverage_at_1": "coverage at 1 %",
    "coverage_at_5": "coverage at 5 %",
}


def signed(value: float) -> str:
    """A difference with its sign and four digits; empty for NaN.

    >>> signed(-0.00421), signed(0.0), signed(float("nan"))
    ('−0.0042', '0.0000', '')
    """
    if math.isnan(value):
        return ""
    text = f"{value:+.4f}"
    return "0.0000" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float) -> str:
    """Format an interval, e.g. ``[+0.0031, +0.0053]``; empty if there is none."""
    return "" if math.isnan(low) or math.isnan(high) else f"[{signed(low)}, {signed(high)}]"


def _bracketed(text: str) -> str:
    return f" ({text})" if text else ""


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
