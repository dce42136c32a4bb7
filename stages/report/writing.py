"""The files of a report: a self-contained page, its table and figures, stored as an artifact.

A report has ``report.html``, ``report.md``, ``table.csv``, ``figures/*.svg`` and its card.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from stages.errors import InputError
from stages.out_folder import check_folder
from stages.report.content import Content, ReportCard
from stages.report.page import Page, html_of, markdown_of
from stages.report.svg import standalone
from stages.report.vocabulary import FIGURES
from store.artifacts import Artifact

PAGE, MARKDOWN, TABLE, FIGURES_FOLDER = "report.html", "report.md", "table.csv", "figures"
_FIGURE = re.compile(rf"{FIGURES_FOLDER}/({'|'.join(FIGURES)})(-\d+)?\.svg")
"""A figure of a report; of several, each of one result, the second and later ones are numbered."""


def is_of_report(key: str) -> bool:
    """Whether a report may have a file, named relative to its folder."""
    return key in (PAGE, MARKDOWN, TABLE) or _FIGURE.fullmatch(key) is not None


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


def check_report_folder(folder: Path) -> None:
    """Raise ``InputError`` if a report cannot be copied to ``folder`` without touching others."""
    check_folder(folder)
    if (folder / FIGURES_FOLDER).is_file():
        raise InputError(f"--out {folder}: {folder / FIGURES_FOLDER} is a file, expected a folder")
    found = {*folder.glob("*"), *(folder / FIGURES_FOLDER).glob("*")} - {folder / FIGURES_FOLDER}
    for path in sorted(found):
        name = path.relative_to(folder).as_posix()
        if not is_of_report(name) or not path.is_file():
            raise InputError(
                f"--out {folder}: it contains {name}, which is not part of a report: choose a new "
                "folder, or that of an earlier report"
            )


def copy_report(report: Artifact, folder: Path) -> list[Path]:
    """Copy a report's files, each checked against its card, to a folder; returns their paths.

    Files of an earlier report that this one lacks are removed.
    """
    check_report_folder(folder)
    files = {key: report.read(key) for key in report.files()}
    for path in (*folder.glob("*.*"), *(folder / FIGURES_FOLDER).glob("*")):
        if path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for key, data in files.items():
        place = folder / key
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return [folder / key for key in files]


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
