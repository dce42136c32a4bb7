"""The printed summary of an analysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cli.output import note, table
from pipeline.stage import Made, Stage
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from stages.analysis.findings import AnalysisCard

SEVERITY_SHOWN = (
    "accuracy",
    "fisher_trace",
    "fisher_trace_empirical",
    "feature_energy",
    "impurity",
)


def analyse(_: Stage, made: Made, __: Workspace) -> tuple[str, Mapping[str, Any]]:  # Any: JSON
    """A table of means, the Fisher trace by severity, and the definitions."""
    from stages.analysis.findings import AVERAGE, BY_GROUP, AnalysisCard

    card, location = AnalysisCard.of(made.output), made.output.storage.location
    by_group, average = (made.output.read_frame(f"{name}.parquet") for name in (BY_GROUP, AVERAGE))
    if made.copied:
        note(f"figures and tables in {made.copied[0].parent}")
    facts = {
        "result": made.name,
        "location": location,
        "average": _records(average),
        "by_group": _records(by_group),
        "definitions": card.definitions,
        "losses": card.losses,
    }
    return "\n\n".join([*_parts(card, by_group, average), f"tables and figures: {location}"]), facts


def _parts(
    card: AnalysisCard,
    by_group: pd.DataFrame,
    average: pd.DataFrame,
) -> Iterator[str]:
    names = _short_names(average["features"].tolist())
    yield card.title
    yield table(
        [
            {"quantity": each, **dict(zip(names, map(_number, average[each]), strict=True))}
            for each in card.definitions
        ]
    )
    if "severity" in by_group:
        yield "by severity, mean over its groups"
        yield table(_by_severity(by_group))
    yield "\n".join(f"  {name}: {text}" for name, text in card.definitions.items())
    if M := next((M for M in card.losses.values() if M is not None), None):
        yield f"  M = {M:.4f}, from {card.M_from}"


def _by_severity(by_group: pd.DataFrame) -> list[dict[str, Any]]:
    groups = by_group.groupby("severity", dropna=False)[list(SEVERITY_SHOWN)].mean()
    ordered = groups.sort_index(na_position="first").reset_index()
    return [
        {
            "severity": "none" if row["severity"] is None else str(row["severity"]),
            **{name: _number(row[name]) for name in SEVERITY_SHOWN},
        }
        for row in _records(ordered)
    ]


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4g}"


def _short_names(names: list[str]) -> list[str]:
    """The names without fingerprints, if they remain distinct."""
    short = [name.rpartition("-")[0] for name in names]
    return short if len(set(short)) == len(names) else names


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; missing ones are None."""
    rows: list[Any] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows
