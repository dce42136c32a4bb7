"""The report stage: turns results into a self-contained page, stored as an artifact.

A report has ``report.html``, ``report.md``, ``table.csv``, ``figures/*.svg`` and its card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from stages.errors import InputError
from stages.report.comparison import comparison_of, sentences, strong_one
from stages.report.content import Content, ReportCard
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
from stages.report.tables import table_of
from stages.report.vocabulary import LEARNING_FIGURES
from store.artifacts import Artifact
from store.catalog import FeatureStore

PAGE, MARKDOWN, TABLE, FIGURES_FOLDER = "report.html", "report.md", "table.csv", "figures"
COPIED = (
    *(PAGE, MARKDOWN, TABLE),
    *(f"{FIGURES_FOLDER}/{name}.svg" for name in (*FIGURES, *LEARNING_FIGURES)),
)
"""All files that a report may have."""


def figures_for(store: FeatureStore, entries: Sequence[Entry]) -> list[str]:
    """Figures that are informative for the results of these entries."""
    judged = read_entries(store, entries)
    return fitting_figures(frame_over(judged, "by_group"), tuple(entries[0].axes))


def page_of(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame | None]:
    """The page, and the numbers of its table if it has one.

    Raises:
        InputError: entries, metrics or figures are incompatible.
        NotFoundError: a result is not finished.
    """
    judged = read_entries(store, content.entries)
    axes = tuple(content.entries[0].axes)
    numbers = None if content.table is None else table_of(judged, content.table)
    page = Page(
        title=content.title,
        about=content.about,
        **_compared(judged, numbers, axes),
        table=None if numbers is None else table_grid(numbers, axes),
        shortcomings=[*shortcomings(store, judged, numbers), *content.notes],
        drawings=_drawings(judged, content.figures, axes),
        definitions=_definitions(judged, numbers, content.figures),
        provenance={
            "Results": results_used(judged),
            "Sensing networks": networks_used(store, judged),
            "Heads": heads_used(store, judged),
        },
        versions=versions_used(judged),
        command=content.command,
    )
    return page, numbers


def output_of(
    page: Page, numbers: pd.DataFrame | None, content: Content
) -> tuple[dict[str, bytes], dict[str, Any]]:  # Any: JSON
    """The files of a report, and the facts of its card."""
    card = ReportCard(
        page.title,
        page.about,
        shows=tuple(page.sentences),
        falls_short=tuple(page.shortcomings),
        figures=tuple(drawing.name for drawing in page.drawings),
        results=content.results,
        versions=page.versions,
        command=page.command,
    )
    return _files(page, numbers), asdict(card)


def check_folder(folder: Path) -> None:
    """Raise ``InputError`` if a report cannot be copied to ``folder`` without touching others."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not existing.is_dir():
        raise InputError(f"--out {folder}: {existing} is a file, expected a folder")
    if (folder / FIGURES_FOLDER).is_file():
        raise InputError(f"--out {folder}: {folder / FIGURES_FOLDER} is a file, expected a folder")
    found = {*folder.glob("*"), *(folder / FIGURES_FOLDER).glob("*")} - {folder / FIGURES_FOLDER}
    for path in sorted(found):
        name = path.relative_to(folder).as_posix()
        if name not in COPIED or not path.is_file():
            raise InputError(
                f"--out {folder}: it contains {name}, which is not part of a report: choose a new "
                "folder, or that of an earlier report"
            )


def copy_report(report: Artifact, folder: Path) -> list[Path]:
    """Copy a report's files, each checked against its card, to a folder; returns their paths.

    Files of an earlier report that this one lacks are removed.
    """
    check_folder(folder)
    files = {key: report.read(key) for key in report.files()}
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
    """Comparison by the table's metrics; empty if f stands alone or there is no table."""
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
    """Definitions of the metrics shown, and how cells, seeds and resamples are combined."""
    shown = [] if numbers is None else list(numbers["metric"].unique())
    shown += [metric for name in figures for metric in FIGURES[name].shows]
    cards = [found.card for found in judged]
    definitions = cards[0].defined(shown)
    for card in cards:
        definitions |= card.defined([card.detector] if card.detector else [])
    return {**definitions, **cards[0].statistics}


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
