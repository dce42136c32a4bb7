"""Gains of each contender over f, over a control, and over the first H: a table and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from stages.errors import InputError
from stages.report.comparison import BETTER, WORSE, interval, signed, strong_one, verdict_of
from stages.report.page import Cell, Grid, Line
from stages.report.results import Judged

METRICS = {"accuracy": "accuracy", "ece": "ECE"}


class Difference(NamedTuple):
    """A metric of a head minus that of another contender, with its 95 % interval, or NaN."""

    value: float
    low: float
    high: float
    verdict: str


Differences = Mapping[tuple[str, str, str], Difference]
"""By head, other contender and metric."""


def differences_of(found: Judged) -> Differences:
    """The paired differences of a result."""
    table = found.differences
    keys = zip(table["predictor"], table["other"], table["metric"], strict=True)
    numbers = zip(table["difference"], table["low"], table["high"], strict=True)
    return {
        (str(one), str(other), str(metric)): Difference(
            float(value), float(low), float(high), verdict_of(str(metric), float(low), float(high))
        )
        for (one, other, metric), (value, low, high) in zip(keys, numbers, strict=True)
    }


def check_control(judged: Sequence[Judged], control: str) -> None:
    """Raise ``InputError`` if a result lacks the control, or has no other contender."""
    for found in judged:
        if control not in ("f", *found.others):
            raise InputError(
                f"--profile: result {found.name} has no contender '{control}'; there are: f, "
                f"{', '.join(found.others)}"
            )
        if not set(found.others) - {control}:
            raise InputError(
                f"--profile: expected a contender beside f and '{control}', found none in result "
                f"{found.name}: evaluate a head, or name another control"
            )


def gain_grid(judged: Sequence[Judged], control: str, axes: Sequence[str]) -> Grid:
    """Differences in accuracy and ECE from f, a control and the first H, best accuracy first.

    ``axes`` are shown for each entry.
    """
    strong = _strong(judged)
    against = tuple(dict.fromkeys(["f", control, strong]))
    lines = []
    for found in judged:
        of = differences_of(found)
        for label in sorted(found.others, key=lambda name: -of[name, "f", "accuracy"].value):
            cells = [
                _cell(of.get((label, other, metric))) for metric in METRICS for other in against
            ]
            names = (*(str(found.axes[name]) for name in axes), label)
            lines.append(Line(names, tuple(cells), label == strong))
    shown = {control: "control", "f": "f", strong: strong}
    minus = "\N{MINUS SIGN}"
    heads = [f"{word} {minus} {shown[other]}" for word in METRICS.values() for other in against]
    note = (
        f"Control: {control}. Sorted by accuracy. Differences are paired, with 95 % intervals; ✓ "
        "better, ✗ worse, ≈ no clear difference."
    )
    return Grid((*axes, "contender"), tuple(heads), tuple(lines), (note,))


def gain_sentences(judged: Sequence[Judged], control: str) -> Iterator[str]:
    """The largest gains over f and over the control, and which heads differ from the first H."""
    strong, many = _strong(judged), len(judged) > 1
    for found in judged:
        of, where = differences_of(found), f" ({_entry(found)})" if many else ""
        labels = [label for label in found.others if label != control]
        for other in dict.fromkeys(["f", control]):
            gains = {label: of[label, other, "accuracy"] for label in labels}
            best = max(gains, key=lambda label: gains[label].value)
            yield (
                f"The largest difference in accuracy from {other}{where} is {_said(gains[best])}, "
                f"of {best}; in ECE it is {_said(of[best, other, 'ece'])}."
            )
        if strong in labels and len(labels) > 1:
            yield _moved(of, labels, strong, where)


def _moved(of: Differences, contenders: Sequence[str], strong: str, where: str) -> str:
    named = {
        verdict: [
            f"{label} ({signed(of[label, strong, 'accuracy'].value)})"
            for label in contenders
            if label != strong and of[label, strong, "accuracy"].verdict == verdict
        ]
        for verdict in (BETTER, WORSE)
    }
    n_same = len(contenders) - 1 - sum(map(len, named.values()))
    parts = [f"{verdict}: {', '.join(labels)}" for verdict, labels in named.items() if labels]
    parts += [f"no clear difference: {n_same}"] if n_same else []
    return f"Accuracy against {strong}{where}: {'; '.join(parts)}."


def _strong(judged: Sequence[Judged]) -> str:
    return strong_one([label for found in judged for label in ("f", *found.others)]) or "f"


def _entry(found: Judged) -> str:
    return ", ".join(map(str, found.axes.values())) or found.name


def _cell(found: Difference | None) -> Cell:
    if found is None:  # a contender beside itself
        return Cell("")
    return Cell(signed(found.value), "", interval(found.low, found.high), found.verdict)


def _said(found: Difference) -> str:
    return f"{signed(found.value)} {interval(found.low, found.high)}".strip()
