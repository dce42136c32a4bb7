"""The page of a report as a self-contained HTML file and as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from stages.report.tables import sign_of
from stages.sheets.theme import page_style

MARKS = {BETTER: "✓", WORSE: "✗", EQUAL: "≈"}
"""Verdict -> mark beside a difference; there is none without an interval."""


@dataclass(frozen=True)
class Cell:
    """A number of a table as shown; ``gain`` and ``interval`` are small lines below it.

    ``is_best`` marks the best numbers of an entry.
    """

    text: str
    gain: str = ""
    interval: str = ""
    verdict: str = ""
    is_best: bool = False

    @property
    def mark(self) -> str:
        """✓ better, ✗ worse, ≈ no clear difference; empty without an interval."""
        return MARKS.get(self.verdict, "")


@dataclass(frozen=True)
class Line:
    """A row of a table: names, then cells; ``is_strong`` marks the contender of the report."""

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    is_strong: bool = False


@dataclass(frozen=True)
class Grid:
    """A table as shown; ``notes`` are printed below it."""

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
    """Content of a page.

    ``tables`` are further tables by their headings, for pages that need more than one; ``legend``
    explains the names that tables and figures use; ``ranking`` comes first, followed by the
    figures.
    """

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
    tables: Mapping[str, Grid] = field(default_factory=dict)
    legend: Mapping[str, str] = field(default_factory=dict)
    ranking: Grid | None = None


def html_of(page: Page) -> str:
    """The page as one HTML file with embedded style and figures, without scripts or links."""
    style = page_style(_text("page.css"))
    svgs = {drawing.name: Markup(drawing.svg) for drawing in page.drawings}  # our own, escaped
    return _template("page.html.jinja").render(page=page, style=style, svgs=svgs)


def markdown_of(page: Page) -> str:
    """The page as Markdown, with the figures in separate files."""
    return _template("page.md.jinja").render(page=page)


def table_grid(table: pd.DataFrame, axes: tuple[str, ...], clean_note: str = "") -> Grid:
    """The table as shown: one line per entry and contender, one column per metric.

    A metric's column is followed by the paper's numbers if there are any, and the accuracy by that
    on clean images, which ``clean_note`` explains.
    """
    metrics = list(table["metric"].unique())
    with_paper = {
        name for name in metrics if table.loc[table["metric"] == name, "paper"].notna().any()
    }
    has_clean = "clean" in table and bool(table["clean"].notna().any())
    strong = strong_one(table["contender"].unique())
    shown = varying(table, axes)
    table = table.assign(at=range(len(table)))
    lines = []
    best = _best(table, axes)
    for key, rows in table.groupby([*shown, "contender"], sort=False):
        by_metric = rows.set_index("metric")
        cells = []
        for metric in metrics:
            row = by_metric.loc[metric]
            cells.append(replace(_cell(row, metric), is_best=bool(best[row["at"]])))
            if has_clean and metric == "accuracy":
                cells.append(Cell(_number(row["clean"])))
            if metric in with_paper:
                cells.append(_paper_cell(by_metric.loc[metric]))
        lines.append(Line(tuple(map(str, key)), tuple(cells), key[-1] == strong))
    heads = [
        head
        for metric in metrics
        for head in (
            spoken(metric),
            *(("clean accuracy",) if has_clean and metric == "accuracy" else ()),
            *(("paper",) if metric in with_paper else ()),
        )
    ]
    notes = (*_constant_axes(table, axes), *_notes(table), *([clean_note] if has_clean else []))
    return Grid((*shown, "contender"), tuple(heads), tuple(lines), notes)


def ranking_grid(table: pd.DataFrame, sets: Sequence[str]) -> Grid:
    """Detectors and predictors by their mean AUROC; see `ranking.ranked`."""
    columns = [tuple(map(str, each)) for each in table.columns.to_list()]
    signed_values = table * [sign_of(metric) for metric, _ in columns]
    is_best = (signed_values == signed_values.max()).to_numpy()
    lines = []
    for at, (key, values) in enumerate(zip(table.index, table.to_numpy(), strict=True)):
        cells = [
            Cell(_number(x), is_best=bool(y)) for x, y in zip(values, is_best[at], strict=True)
        ]
        lines.append(Line((f"{at + 1}. {key[0]}, {key[1]}",), tuple(cells)))
    heads = tuple(f"{spoken(metric)}, {group}" for metric, group in columns)
    note = f"Means over {', '.join(sets)}; bold: the best of a column."
    return Grid(("detector",), heads, tuple(lines), (note,))


def _best(table: pd.DataFrame, axes: tuple[str, ...]) -> pd.Series:
    """Whether a row's mean is the best of its entry and metric, of several contenders."""
    keys = [*axes, "metric"]
    signs = table["metric"].map(sign_of)
    values = table["mean"] * signs
    groups = values.groupby([table[name] for name in keys])
    best = (values == groups.transform("max")) & (signs != 0) & (groups.transform("size") > 1)
    return best.set_axis(table["at"])


def comparison_grid(comparison: pd.DataFrame, axes: tuple[str, ...]) -> Grid:
    """The strong contender against each other one: one line each, one column per metric."""
    metrics = [name for name in comparison["metric"].unique() if sign_of(name)]
    shown = varying(comparison, axes)
    lines = [
        Line(
            tuple(map(str, key)),
            tuple(_difference(rows.set_index("metric").loc[metric]) for metric in metrics),
        )
        for key, rows in comparison.groupby([*shown, "other"], sort=False)
    ]
    notes = (*_constant_axes(comparison, axes), _legend(), HOW)
    return Grid((*shown, "against"), tuple(map(spoken, metrics)), tuple(lines), notes)


def _constant_axes(table: pd.DataFrame, axes: tuple[str, ...]) -> list[str]:
    same = [name for name in axes if name not in varying(table, axes)]
    values = ", ".join(f"{name} {table[name].iloc[0]}" for name in same)
    return [f"For all rows: {values}."] if values else []


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
        f"interval. Bold: the best of a result. {_legend()}"
    ]
    if table["paper"].notna().any():
        notes.append("“paper”: the paper's number, and below it its difference to the paper's f.")
    if (table["paper_dataset"] != "").any():
        theirs = ", ".join(sorted(set(table["paper_dataset"]) - {""}))
        notes.append(f"* the paper's number is for all of {theirs}, not our data: compare gains.")
    return notes + [f"Paper: {note}." for note in dict.fromkeys(table["paper_note"]) if note]


def _legend() -> str:
    words = ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items())
    return f"{words}; accuracy, areas and log-likelihood are better if higher, errors if lower."


@cache
def _template(name: str) -> Template:
    is_html = ".html" in name
    environment = Environment(
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = _markdown
    environment.filters["spoken"] = spoken
    return environment.from_string(_text(name))


def _text(name: str) -> str:
    return (files("stages.report") / name).read_text(encoding="utf-8")


def _markdown(text: str) -> str:
    """Escape text for Markdown, including for tables.

    >>> _markdown("<b>|x_1")
    '&lt;b&gt;\\\\|x\\\\_1'
    """
    text = " ".join(str(text).split()).replace("&", "&amp;")
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)
