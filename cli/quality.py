"""The printed summary of image quality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.output import note, table

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.stage import Made, Stage
    from pipeline.workspace import Workspace


def iqa(_: Stage, made: Made, __: Workspace) -> tuple[str, Any]:  # Any: JSON
    """Agreement with opinions, or else monotony with the level, or else mean scores."""
    from stages.quality.quality_result import QualityCard, read_table

    card = QualityCard.of(made.output)
    if card.n_failed:
        note(
            f"{card.n_failed:,} of {card.n_pairs:,} pairs could not be compared by every measure: "
            f"see the column `status` of {card.scores}"
        )
    facts: dict[str, Any] = {"result": made.name, "scores": card.scores, "pairs": card.n_pairs}
    tables = {name: read_table(made.output, name) for name in ("agreement", "monotony")}
    facts |= {name: frame.to_dict(orient="records") for name, frame in tables.items()}
    means = read_table(made.output, "pairs")
    if len(tables["agreement"]):
        text = _agreement(tables["agreement"])
    elif len(tables["monotony"]):
        text = _monotony(tables["monotony"])
    else:
        text = _means(means, card.measures)
    return f"result {made.name}, scores {card.scores}\n{text}", facts


def _agreement(rows: pd.DataFrame) -> str:
    """A line per measure and start of the mapping."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows.to_dict("records"):
        line = found.setdefault(
            (row["measure"], row["start"]),
            {"measure": row["measure"], "mapping": row["start"], "pairs": row["n_pairs"]},
        )
        line[row["metric"]] = _shown(row["value"])
    return table(list(found.values()))


def _monotony(rows: pd.DataFrame) -> str:
    """Mean over the distortions of how a measure follows the level."""
    lines: list[dict[str, Any]] = []
    for measure, part in rows.groupby("measure", sort=False):
        least = part.sort_values("monotony").iloc[0]
        lines.append(
            {
                "measure": measure,
                "distortions": len(part),
                "monotony": _shown(float(part["monotony"].mean())),
                "least": _shown(float(least["monotony"])),
                "at": least["distortion"],
            }
        )
    return table(lines)


def _means(pairs: pd.DataFrame, measures: tuple[str, ...]) -> str:
    from stages.quality.measures import column_of

    return table(
        [
            {"measure": name, "mean score": _shown(float(pairs[column_of(name)].mean()))}
            for name in measures
        ]
    )


def _shown(value: float) -> float | str:
    return "-" if value != value else value  # NaN
