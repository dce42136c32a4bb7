"""The printed summaries of maps, drawn maps, and evaluated maps."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.output import table
from pipeline.stage import Made, Stage
from pipeline.terminal import counted
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from stages.explanation.explain import Explain


def sheet_or_command(stage: Explain, made: Made, workspace: Workspace) -> str:
    """Where the sheet of computed maps is, or the command that draws one."""
    if made.copied:
        return f"sheet: {made.copied[0]}"
    words = ["intro-pipe", "draw-maps", "--maps", made.output.name, "--out", "sheet"]
    words += ["--dataset", stage.dataset] if stage.dataset else []
    return f"to draw them: {shlex.join([*words, *_places(workspace.command)])}"


def _places(command: Sequence[str]) -> list[str]:
    """The options of a command line that name the store and the data sets."""
    found: list[str] = []
    for at, word in enumerate(command):
        option, _, value = word.partition("=")
        if option in ("--store", "--data-root"):
            found += [option, value or command[at + 1]]
    return found


def draw_maps(_: Stage, made: Made, __: Workspace) -> tuple[str, Mapping[str, Any]]:  # Any: JSON
    """Where the page and its pictures are."""
    from stages.out_folder import PAGE

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
