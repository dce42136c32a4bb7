"""The printed summary of prediction sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cli.comparison import files_and_page
from cli.output import note, table
from pipeline.stage import Made, Stage
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from stages.conformal.conformal_result import Conformity


def conformal(_: Stage, made: Made, __: Workspace) -> tuple[str, Mapping[str, Any]]:  # Any: JSON
    """Coverage and size of the sets of each predictor and score, and by severity."""
    from stages.conformal.conformal_result import open_conformity

    found = open_conformity(made.output)
    card = found.card
    for label, scores in card.unbounded.items():
        note(
            f"{label}: too few calibration rows for {', '.join(scores)}: its sets hold every class"
        )
    for name, n_rows in card.left_out_rows.items():
        if n_rows:
            note(f"{name}: {n_rows:,} rows left out: no label, or failed (see `status`)")
    frames = ("average", "by_group", "by_class", "by_size", "thresholds")
    facts = {
        "result": made.name,
        "location": made.output.storage.location,
        "title": card.title,
        "alpha": card.alpha,
        "calibration_rows": card.calibration_rows,
        "unbounded": card.unbounded,
        **{name: getattr(found, name).to_dict(orient="records") for name in frames},
    }
    return "\n\n".join(_parts(found)), facts


def _parts(found: Conformity) -> Iterator[str]:
    from stages.conformal.conformal_result import TABLES

    card = found.card
    yield f"{card.title}; {card.calibration_rows:,} rows calibrated"
    yield table([_line(row) for row in found.average.to_dict(orient="records")])
    if "severity" in found.by_group:
        yield "coverage by severity, mean over its groups and seeds"
        yield table(_by_severity(found.by_group))
    yield files_and_page(found.artifact, TABLES)


def _line(row: Mapping[Any, Any]) -> dict[str, Any]:
    is_known = row["low"] == row["low"]
    return {
        "set": row["set"],
        "score": row["method"],
        "predictor": row["predictor"],
        "rows": int(row["n_rows"]),
        "coverage": row["coverage"],
        "expected": f"[{row['low']:.4f}, {row['high']:.4f}]" if is_known else "-",
        "size": row["size"],
        "empty": row["empty"],
        "worst class": row["worst_class"],
        "size gap": row["size_gap"],
    }


def _by_severity(by_group: pd.DataFrame) -> list[dict[str, Any]]:
    rows = by_group.dropna(subset=["severity"])
    keys = ["set", "method", "predictor"]
    means = rows.groupby([*keys, "severity"], sort=False)["coverage"].mean().unstack("severity")
    found: list[Any] = means.sort_index(axis=1).reset_index().to_dict(orient="records")
    return [
        {
            "set": row.pop("set"),
            "score": row.pop("method"),
            "predictor": row.pop("predictor"),
            **{f"{level:g}": value for level, value in row.items()},
        }
        for row in found
    ]
