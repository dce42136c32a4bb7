"""The report stage: results to one page that needs nothing else, kept as an artifact.

A report holds ``report.html``, ``report.md``, ``table.csv``, ``figures/*.svg`` and its card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.journal import Journal
from stages.errors import InputError
from stages.report.comparison import comparison_of, sentences, strong_one
from stages.report.figures import FIGURES, draw_figure, fitting_figures
from stages.report.page import (
    Drawing,
    Page,
    comparison_grid,
    html_of,
    markdown_of,
    table_grid,
)
from stages.report.provenance import (
    heads_used,
    networks_used,
    results_used,
    shortcomings,
    versions_used,
)
from stages.report.results import Entry, Judged, frame_over, read_entries
from stages.report.svg import standalone, svg_of
from stages.report.tables import TableSpec, table_of
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import Plan, fingerprint

VERSION = 1
PAGE, MARKDOWN, TABLE, FIGURES_FOLDER = "report.html", "report.md", "table.csv", "figures"
FIGURE_NAMES = (*FIGURES, "learning-curves")
COPIED = (PAGE, MARKDOWN, TABLE, *(f"{FIGURES_FOLDER}/{name}.svg" for name in FIGURE_NAMES))
"""All the files that a report may have."""


def report_plan(
    *,
    title: str,
    about: str,
    entries: Sequence[Entry],
    table: TableSpec | None,
    figures: Sequence[str],
    notes: Sequence[str] = (),
) -> Plan:
    """Everything that determines what a report says; the results must be there.

    The command is not in it: the same report may be asked for in other words.
    """
    params = {
        "title": title,
        "about": about,
        "table": None if table is None else {**asdict(table), "metrics": list(table.metrics)},
        "figures": list(figures),
        "notes": list(notes),
    }
    # Of each result the hash: its plan holds those of features and heads, each a page long.
    results = [
        {
            "axes": dict(entry.axes),
            "result": entry.result.name,
            "plan": fingerprint(entry.result.plan()),
        }
        for entry in entries
    ]
    return {
        "stage": {"name": "report", "version": VERSION, "params": params},
        "inputs": {"results": results},
    }


def report_name(plan: Plan) -> str:
    """What a report is called that was given no name: as its first result, with its own hash."""
    first = str(plan["inputs"]["results"][0]["result"])
    return f"{first.rpartition('-')[0] or first}-{fingerprint(plan)}"


def figures_for(store: FeatureStore, entries: Sequence[Entry]) -> list[str]:
    """The figures that say something about the results of these entries."""
    judged = read_entries(store, entries)
    return fitting_figures(frame_over(judged, "by_group"), tuple(entries[0].axes))


def build_report(
    store: FeatureStore,
    name: str,
    *,
    title: str,
    about: str,
    entries: Sequence[Entry],
    table: TableSpec | None,
    figures: Sequence[str],
    command: str,
    journal: Journal,
    notes: Sequence[str] = (),
) -> Artifact:
    """Write the report of finished results under a name; one of the same plan is left as it is.

    Args:
        store: keeps the report.
        name: of the artifact.
        title, about: the page's head, and what it is about, in plain text.
        entries: results, each at another place of the same axes.
        table: which metrics, beside which table of the paper; ``None`` for no table.
        figures: names of ``figures.FIGURES``.
        command: that makes all of this again.
        journal: begins when there is something to write.
        notes: what else falls short.

    Raises:
        InputError: entries, metrics or figures that do not go together.
        PlanMismatchError: the name holds a report of other results or another form.
    """
    judged = read_entries(store, entries)
    plan = report_plan(
        title=title, about=about, entries=entries, table=table, figures=figures, notes=notes
    )
    report = store.artifact("report", name)
    if report.refuse_other(plan) and report.is_settled():
        return report
    axes = tuple(entries[0].axes)
    numbers = None if table is None else table_of(judged, table)
    drawings = _drawings(judged, figures, axes)
    page = Page(
        title=title,
        about=about,
        **_compared(judged, numbers, axes),
        table=None if numbers is None else table_grid(numbers, axes),
        shortcomings=[*shortcomings(store, judged, numbers), *notes],
        drawings=drawings,
        definitions=_definitions(judged, numbers, figures),
        provenance={
            "Results": results_used(judged),
            "Sensing networks": networks_used(store, judged),
            "Heads": heads_used(store, judged),
        },
        versions=versions_used(judged),
        command=command,
    )
    return keep_report(store, report, plan, page, numbers, journal)


def keep_report(
    store: FeatureStore,
    report: Artifact,
    plan: Plan,
    page: Page,
    numbers: pd.DataFrame | None,
    journal: Journal,
) -> Artifact:
    """Write a page and its table as the report of a plan."""
    store.prepare()
    journal.begin()
    report.claim(plan)
    report.write(_files(page, numbers), _card(page, plan))
    return report


def check_folder(folder: Path) -> None:
    """Raise ``InputError`` where a report cannot be copied: a file, or a folder of other files."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise InputError(f"--out {folder}: {there} is a file, expected a folder")
    if (folder / FIGURES_FOLDER).is_file():
        raise InputError(f"--out {folder}: {folder / FIGURES_FOLDER} is a file, expected a folder")
    found = {*folder.glob("*"), *(folder / FIGURES_FOLDER).glob("*")} - {folder / FIGURES_FOLDER}
    for path in sorted(found):
        name = path.relative_to(folder).as_posix()
        if name not in COPIED or not path.is_file():
            raise InputError(
                f"--out {folder}: it holds {name}, which is no part of a report: name a new "
                "folder, or that of an earlier report"
            )


def copy_report(report: Artifact, folder: Path) -> list[Path]:
    """Copy a report's files, each checked against its card, below a folder; gives their places.

    Files of an earlier report that this one does not have are removed.
    """
    check_folder(folder)
    files = {key: report.read(key) for key in report.card()["files"]}
    for key in COPIED:
        if key not in files:
            (folder / key).unlink(missing_ok=True)
    for key, data in files.items():
        place = folder / key
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return [folder / key for key in files]


def _compared(
    judged: Sequence[Judged], numbers: pd.DataFrame | None, axes: tuple[str, ...]
) -> dict[str, Any]:  # Any: fields of a Page
    """Who beats whom, by the table's metrics; nothing where f stands alone or there is no table."""
    strong = strong_one([label for found in judged for label in ("f", *found.heads)])
    if numbers is None or strong is None:
        return {"strong": strong or "f", "sentences": [], "comparison": None}
    metrics = list(numbers["metric"].unique())
    comparison = comparison_of(frame_over(judged, "differences"), metrics, axes)
    return {
        "strong": strong,
        "sentences": sentences(comparison, axes, n_entries=len(judged)),
        "comparison": comparison_grid(comparison, axes),
    }


def _drawings(
    judged: Sequence[Judged], figures: Sequence[str], axes: tuple[str, ...]
) -> list[Drawing]:
    frames = {part: frame_over(judged, part) for part in ("by_group", "bins")}
    drawings = []
    for name in dict.fromkeys(figures):
        figure = draw_figure(name, frames, axes)
        kind = FIGURES[name]
        drawings.append(Drawing(name, kind.title, kind.caption, svg_of(figure, name, kind.title)))
    return drawings


def _definitions(
    judged: Sequence[Judged], numbers: pd.DataFrame | None, figures: Sequence[str]
) -> dict[str, str]:
    """Of every metric that is shown, and of how cells, seeds and resamples are put together."""
    shown = [] if numbers is None else list(numbers["metric"].unique())
    shown += [metric for name in figures for metric in FIGURES[name].shows]
    card = judged[0].card
    detectors = {found.card["detector"]: found.card for found in judged if "detector" in found.card}
    return {
        **{name: card["definitions"][name] for name in dict.fromkeys(shown)},
        **{name: card["definitions"][name] for name, card in detectors.items()},
        **card.get("statistics", {}),
    }


def _files(page: Page, numbers: pd.DataFrame | None) -> dict[str, bytes]:
    files = {
        PAGE: html_of(page),
        MARKDOWN: markdown_of(page),
        **{
            f"{FIGURES_FOLDER}/{drawing.name}.svg": standalone(drawing.svg)
            for drawing in page.drawings
        },
    }
    if numbers is not None:
        files[TABLE] = numbers.to_csv(index=False)
    return {key: text.encode() for key, text in files.items()}


def _card(page: Page, plan: Plan) -> dict[str, Any]:  # Any: JSON
    return {
        "title": page.title,
        "about": page.about,
        "shows": list(page.sentences),
        "falls_short": list(page.shortcomings),
        "figures": [drawing.name for drawing in page.drawings],
        "results": plan["inputs"]["results"],
        "versions": page.versions,
        "command": page.command,
    }
