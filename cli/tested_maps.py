"""The printed summaries of drawn and of evaluated maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cli.output import table
from pipeline.stage import Made, Stage
from pipeline.terminal import counted
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd


def draw_maps(_: Stage, made: Made, __: Workspace) -> tuple[str, Mapping[str, Any]]:  # Any: JSON
    """Where the page and its pictures are."""
    from stages.explanation.draw_maps import PAGE

    folder, n_rows = made.output.storage.location, made.output.card()["rows"]
    copied = [str(path) for path in made.copied]
    lines = [f"{counted(n_rows, 'row')} drawn", f"page: {folder}/{PAGE}"]
    if made.copied:
        lines.append(f"copied to {made.copied[0].parent}")
    facts = {"sheet": made.name, "page": f"{folder}/{PAGE}", "rows": n_rows, "copied": copied}
    return "\n".join(lines), facts


def evaluate_maps(
    _: Stage, made: Made, __: Workspace
) -> tuple[str, Mapping[str, Any]]:  # Any: JSON
    """A table of the measures, less those of noise, and one of the sanity check."""
    from stages.explanation.evaluate_maps import AVERAGE, SANITY, MapsCard

    card = MapsCard.of(made.output)
    average, sanity = (made.output.read_frame(name) for name in (AVERAGE, SANITY))
    parts = [
        f"{card.title}, {counted(card.rows, 'row')}; in brackets the difference to maps of noise, "
        "* if its 95 % interval excludes 0",
        table(_measures(card.questions, average)),
        "rank correlation with maps of the network with randomised last layers",
        table(_similarities(card.questions, sanity)),
    ]
    facts = {
        "result": made.name,
        "maps": card.questions,
        "average": average.to_dict(orient="records"),
        "sanity": sanity.to_dict(orient="records"),
        "definitions": card.definitions,
    }
    return "\n".join(parts), facts


def _measures(questions: tuple[str, ...], average: pd.DataFrame) -> list[dict[str, str]]:
    lines = []
    for number, rows in average.groupby("map"):
        measures = rows.set_index("measure")
        shown = {
            str(name): f"{row['mean']:.3f} ({row['difference']:+.3f}{'*' * _is_clear(row)})"
            for name, row in measures.iterrows()
        }
        first = rows.iloc[0]
        counts = {"rows": f"{first['n_rows']}", "empty": f"{first['n_empty']}"}
        lines.append({"map": questions[int(str(number))], **counts, **shown})
    return lines


def _is_clear(row: pd.Series[Any]) -> bool:
    return bool(row["low"] > 0 or row["high"] < 0)


def _similarities(questions: tuple[str, ...], sanity: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "map": questions[int(str(number))],
            **{
                f"{layers:,} of {round(layers / share):,} layers": f"{value:.2f}"
                for layers, share, value in zip(
                    rows["layers"], rows["share"], rows["rank_correlation"], strict=True
                )
            },
        }
        for number, rows in sanity.groupby("map")
    ]
