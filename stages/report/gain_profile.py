"""The profile of the paper's gain: where H gains over f there, and which heads do so here.

The paper (Figures 2, 6 and 7, section 5) reports more than a mean: which corruptions gain most and
least, that gains grow with severity, where the ECE is better, and that clean accuracy stays. A
reading of the paper that has the mean without the profile does not explain it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from stages.errors import InputError
from stages.report.comparison import BETTER, WORSE
from stages.report.drawing import CELL
from stages.report.page import Cell, Grid, Line
from stages.report.results import Judged

MEAN_GAIN, LARGE_GAIN, N_LARGE = 0.03, 0.05, 7
SAME_CLEAN = 0.003
"""Differences in clean accuracy that count as none: the noise between seeds of the paper."""

HIGH = (
    *("defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "gaussian_noise",
)
LOW = ("brightness", "contrast", "saturate")
EXCEPTED = ("contrast", 5)


@dataclass(frozen=True)
class Gains:
    """Differences between a head and f, means over the seeds.

    Attributes:
        accuracy, ece: a row for each corruption, a column for each severity, ascending.
        clean: difference in accuracy on the clean images; NaN if it is unknown.
    """

    accuracy: pd.DataFrame
    ece: pd.DataFrame
    clean: float = math.nan


@dataclass(frozen=True)
class Finding:
    """Whether a criterion holds, ``None`` if the cells do not say, and the number behind it."""

    holds: bool | None
    number: str


@dataclass(frozen=True)
class Criterion:
    """One part of the profile: a short name, its definition, and the test."""

    name: str
    definition: str
    test: Callable[[Gains], Finding]


def _mean_gain(gains: Gains) -> Finding:
    mean = _mean(gains)
    return Finding(mean > MEAN_GAIN, _points(mean))


def _mean(gains: Gains) -> float:
    return float(gains.accuracy.to_numpy().mean())


def _large_gains(gains: Gains) -> Finding:
    n_large = int((gains.accuracy.mean(axis=1).to_numpy() > LARGE_GAIN).sum())
    return Finding(n_large >= N_LARGE, f"{n_large} of {len(gains.accuracy)}")


def _high_corruptions(gains: Gains) -> Finding:
    ranks, half = _ranks(gains, "max")
    named = ranks[ranks.index.isin(HIGH)]
    if len(named) < 2 or "gaussian_noise" not in named:
        return Finding(None, "not in the set")
    return Finding(bool(named.max() <= half), f"ranks to {named.max():g} of {len(ranks)}")


def _low_corruptions(gains: Gains) -> Finding:
    ranks, half = _ranks(gains, "min")
    named = ranks[ranks.index.isin(LOW)]
    if len(named) < len(LOW):
        return Finding(None, "not in the set")
    is_low = named.min() > len(ranks) - half
    return Finding(bool(is_low), f"ranks from {named.min():g} of {len(ranks)}")


def _ranks(gains: Gains, of_equal: Literal["min", "max"]) -> tuple[pd.Series, int]:
    """Rank of each corruption by its gain, 1 for the highest, and how many are half of them.

    Equal gains have the smallest or the largest of their ranks: the one that makes a test stricter.
    """
    ranks = gains.accuracy.mean(axis=1).rank(ascending=False, method=of_equal)
    return ranks, math.ceil(len(ranks) / 2)


def _growth(gains: Gains) -> Finding:
    steps = gains.accuracy.mean(axis=0).diff().dropna()
    if steps.empty:
        return Finding(None, "one severity")
    n_up = int((steps > 0).sum())
    return Finding(n_up == len(steps), f"{n_up} of {len(steps)} steps")


def _better_ece(gains: Gains) -> Finding:
    cells = gains.ece.stack().drop(EXCEPTED, errors="ignore").to_numpy()
    n_worse = int((cells >= 0).sum())
    return Finding(n_worse == 0, f"not in {n_worse} of {len(cells)}")


def _same_clean(gains: Gains) -> Finding:
    if math.isnan(gains.clean):
        return Finding(None, "unknown")
    return Finding(abs(gains.clean) <= SAME_CLEAN, _points(gains.clean))


CRITERIA = (
    Criterion(
        "gain > 3",
        f"mean over the cells of the accuracy minus that of f is above {100 * MEAN_GAIN:g} points "
        "(the paper: 3.51)",
        _mean_gain,
    ),
    Criterion(
        "7 corruptions > 5",
        f"the mean over severities is above {100 * LARGE_GAIN:g} points for {N_LARGE} corruptions "
        "or more",
        _large_gains,
    ),
    Criterion(
        "blurs high",
        "Gaussian noise and every blur of the set are in the upper half of the corruptions, ranked "
        "by gain",
        _high_corruptions,
    ),
    Criterion(
        "brightness low",
        "brightness, contrast and saturate are in the lower half of the corruptions by gain",
        _low_corruptions,
    ),
    Criterion(
        "grows",
        "the mean over corruptions is larger at each severity than at the one before",
        _growth,
    ),
    Criterion(
        "ECE better",
        "ECE is below that of f in every cell except contrast at severity 5",
        _better_ece,
    ),
    Criterion(
        "clean same",
        f"accuracy on the clean images differs from that of f by {100 * SAME_CLEAN:g} points at "
        "most",
        _same_clean,
    ),
)


def gains_of(found: Judged, clean: Mapping[str, float]) -> dict[str, Gains]:
    """The gains of each contender of a result; raises ``InputError`` without corruptions."""
    frame = found.by_group
    if missing := [name for name in CELL if name not in frame]:
        raise InputError(
            f"--profile: expected results by {' and '.join(CELL)}, found {found.name} without "
            f"{missing[0]}: evaluate a corrupted set"
        )
    cells = {
        (label, metric): _cells(frame[frame["predictor"] == label], metric)
        for label in ("f", *found.others)
        for metric in ("accuracy", "ece")
    }
    return {
        label: Gains(
            cells[label, "accuracy"] - cells["f", "accuracy"],
            cells[label, "ece"] - cells["f", "ece"],
            clean.get(label, math.nan) - clean.get("f", math.nan),
        )
        for label in found.others
    }


def _cells(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means over the seeds: a row for each corruption, a column for each severity."""
    return rows.pivot_table(index=CELL[0], columns=CELL[1], values=metric, aggfunc="mean")


def profile_grid(gains: Sequence[tuple[Mapping[str, object], Mapping[str, Gains]]]) -> Grid:
    """Which criteria hold for each head: yes or no, and the number behind it; best mean first."""
    lines = []
    for axes, of_entry in gains:
        for label, each in sorted(of_entry.items(), key=lambda head: -_mean(head[1])):
            found = [criterion.test(each) for criterion in CRITERIA]
            whole = Finding(all(one.holds for one in found), _count(found))
            cells = tuple(_verdict(one) for one in (whole, *found))
            lines.append(Line((*map(str, axes.values()), label), cells, bool(whole.holds)))
    heads = ("explains the paper", *(criterion.name for criterion in CRITERIA))
    notes = [f"{each.name}: {each.definition}." for each in CRITERIA]
    notes.append("explains the paper: all of these hold.")
    return Grid((*gains[0][0], "contender"), heads, tuple(lines), tuple(notes))


def profile_sentence(gains: Sequence[tuple[Mapping[str, object], Mapping[str, Gains]]]) -> str:
    """Which heads have the whole profile, or how near the nearest comes."""
    counts = {
        " · ".join([*map(str, axes.values()), label]): sum(
            bool(each.test(found).holds) for each in CRITERIA
        )
        for axes, of_entry in gains
        for label, found in of_entry.items()
    }
    most = max(counts.values())
    nearest = ", ".join(name for name, count in counts.items() if count == most)
    if most == len(CRITERIA):
        return f"Contenders with the profile of the paper's gain: {nearest}."
    return (
        "No contender has the profile of the paper's gain; "
        f"the most criteria hold for {nearest}: {most} of {len(CRITERIA)}."
    )


def _verdict(found: Finding) -> Cell:
    if found.holds is None:
        return Cell("—", found.number)
    return Cell("yes" if found.holds else "no", found.number, "", BETTER if found.holds else WORSE)


def _count(found: Sequence[Finding]) -> str:
    return f"{sum(bool(one.holds) for one in found)} of {len(found)}"


def _points(value: float) -> str:
    text = f"{100 * value:+.2f}"
    return text.replace("-", "\N{MINUS SIGN}")
