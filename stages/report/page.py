"""The pages of a report: HTML that needs nothing else, and Markdown that says the same."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from stages.report.comparison import (
    BETTER,
    EQUAL,
    HOW,
    WORSE,
    interval,
    signed,
    spoken,
    strong_one,
    verdict_of,
)
from stages.report.provenance import Row
from stages.report.results import varying
from stages.report.svg import css_variables
from stages.report.tables import sign_of

MARKS = {BETTER: "✓", WORSE: "✗", EQUAL: "≈"}
"""Beside a difference; nothing where there is no interval."""


@dataclass(frozen=True)
class Cell:
    """A number of a table as it is shown: ``gain`` and its ``interval`` are small lines below."""

    text: str
    gain: str = ""
    interval: str = ""
    verdict: str = ""

    @property
    def mark(self) -> str:
        """✓ better, ✗ worse, ≈ not told apart."""
        return MARKS.get(self.verdict, "")


@dataclass(frozen=True)
class Line:
    """A row of a table: what it is, then its cells; ``is_strong`` for what the report is about."""

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    is_strong: bool = False


@dataclass(frozen=True)
class Grid:
    """A table as it is shown; ``notes`` stand below it."""

    names: tuple[str, ...]
    heads: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure on the page."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Page:
    """All that a page says."""

    title: str
    about: str
    strong: str
    sentences: Sequence[str]
    comparison: Grid | None
    table: Grid | None
    shortcomings: Sequence[str]
    drawings: Sequence[Drawing]
    definitions: dict[str, str]
    provenance: dict[str, list[Row]]
    versions: dict[str, str]
    command: str


def html_of(page: Page) -> str:
    """The page as one HTML file: style and figures inside, nothing fetched, nothing run."""
    style = css_variables(":root") + _text("page.css")
    svgs = {drawing.name: Markup(drawing.svg) for drawing in page.drawings}  # our own, escaped
    return _template("page.html.jinja").render(page=page, style=Markup(style), svgs=svgs)


def markdown_of(page: Page) -> str:
    """The page as Markdown, with the figures as files beside it."""
    return _template("page.md.jinja").render(page=page)


def table_grid(table: pd.DataFrame, axes: tuple[str, ...]) -> Grid:
    """The table as people read it: a line for each entry and contender, a column for each metric.

    A metric's column is followed by the paper's numbers where there are any.
    """
    metrics = list(table["metric"].unique())
    with_paper = {
        name for name in metrics if table.loc[table["metric"] == name, "paper"].notna().any()
    }
    strong = strong_one(table["contender"].unique())
    told = varying(table, axes)
    lines = []
    for key, rows in table.groupby([*told, "contender"], sort=False):
        by_metric = rows.set_index("metric")
        cells = []
        for metric in metrics:
            cells.append(_cell(by_metric.loc[metric], metric))
            if metric in with_paper:
                cells.append(_paper_cell(by_metric.loc[metric]))
        lines.append(Line(tuple(map(str, key)), tuple(cells), key[-1] == strong))
    heads = [
        head
        for metric in metrics
        for head in (spoken(metric), *(("paper",) if metric in with_paper else ()))
    ]
    notes = (*_throughout(table, axes), *_notes(table))
    return Grid((*told, "contender"), tuple(heads), tuple(lines), notes)


def comparison_grid(comparison: pd.DataFrame, axes: tuple[str, ...]) -> Grid:
    """The strong contender against the others: a line for each, a column for each metric."""
    metrics = [name for name in comparison["metric"].unique() if sign_of(name)]
    told = varying(comparison, axes)
    lines = [
        Line(
            tuple(map(str, key)),
            tuple(_difference(rows.set_index("metric").loc[metric]) for metric in metrics),
        )
        for key, rows in comparison.groupby([*told, "other"], sort=False)
    ]
    notes = (*_throughout(comparison, axes), _legend(), HOW)
    return Grid((*told, "against"), tuple(map(spoken, metrics)), tuple(lines), notes)


def _throughout(table: pd.DataFrame, axes: tuple[str, ...]) -> list[str]:
    same = [name for name in axes if name not in varying(table, axes)]
    told = ", ".join(f"{name} {table[name].iloc[0]}" for name in same)
    return [f"Throughout: {told}."] if told else []


def _cell(row: pd.Series, metric: str) -> Cell:
    text = _number(row["mean"])
    if not math.isnan(row["std"]):
        text += f" ± {row['std']:.4f}"
    if math.isnan(row["gain"]):
        return Cell(text)
    ends = row["gain_low"], row["gain_high"]
    return Cell(text, signed(row["gain"]), interval(*ends), verdict_of(metric, *ends))


def _paper_cell(row: pd.Series) -> Cell:
    if math.isnan(row["paper"]):
        return Cell("")
    other = " *" if row["paper_dataset"] else ""
    return Cell(f"{_number(row['paper'])}{other}", signed(row["paper_gain"]))


def _difference(row: pd.Series) -> Cell:
    low, high = row["low"], row["high"]
    return Cell(signed(row["difference"]), "", interval(low, high), row["verdict"])


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _notes(table: pd.DataFrame) -> list[str]:
    notes = [
        "Mean over cells ± standard deviation over seeds; below it the gain over f with its 95 % "
        f"interval. {_legend()}"
    ]
    if table["paper"].notna().any():
        notes.append("“paper”: the paper's own number, below it its difference to the paper's f.")
    if (table["paper_dataset"] != "").any():
        theirs = ", ".join(sorted(set(table["paper_dataset"]) - {""}))
        notes.append(f"* of other data than ours, all of {theirs}: compare gains, not levels.")
    return notes + [f"Paper: {note}." for note in dict.fromkeys(table["paper_note"]) if note]


def _legend() -> str:
    words = ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items())
    return f"{words}; accuracy, areas and log-likelihood are better high, errors low."


@cache
def _template(name: str) -> Template:
    is_html = ".html" in name
    environment = Environment(
        autoescape=is_html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["md"] = _markdown
    environment.filters["spoken"] = spoken
    return environment.from_string(_text(name))


def _text(name: str) -> str:
    return (files("stages.report") / name).read_text(encoding="utf-8")


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table too.

    >>> _markdown("<b>|x_1")
    '&lt;b&gt;\\\\|x\\\\_1'
    """
    text = " ".join(str(text).split()).replace("&", "&amp;")
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)
