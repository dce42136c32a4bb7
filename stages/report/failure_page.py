"""The page of failure detection: which confidence finds the errors, as a table and curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.errors import InputError
from stages.failures.failure_result import Failures, open_failures
from stages.metrics.bootstrap import MIN_RESAMPLES
from stages.metrics.definitions import REFERENCE
from stages.report.comparison import THAN, interval, signed, spoken, verdict_of
from stages.report.content import Content
from stages.report.drawing import (
    legend_above,
    line_style,
    name_panel,
    name_scales,
    panels_of,
    sheet,
)
from stages.report.kinds import PageKind
from stages.report.page import Cell, Drawing, Grid, Line, Page
from stages.report.palette import SETTINGS, Style, styles_of
from stages.report.provenance import Row
from stages.report.results import Entry, varying
from stages.report.svg import svg_of
from stages.report.tables import sign_of
from stages.report.vocabulary import FAILURE_METRICS
from stages.scores.known_scores import BASELINE
from store.catalog import FeatureStore

CURVES, RANKING = "risk-coverage", "confidence-ranking"
RANKED_BY = ("aurc", "auroc_f")
"""Metrics of the figure of rankings; the first one orders confidences."""


@dataclass(frozen=True)
class _Drawn:
    title: str
    caption: str


_FIGURES = {
    CURVES: _Drawn(
        "Risk-coverage curves",
        "Share of errors among the most confident rows, against the share of rows that is kept; "
        "mean over cells and seeds. A better confidence is lower; all end at the error rate.",
    ),
    RANKING: _Drawn(
        "Confidences compared",
        "The lower the AURC, and the higher the AUROC of errors, the better a confidence separates "
        "errors from correct rows. Whiskers are 95 % intervals. A head in the list is a confidence "
        "in the predictions of f.",
    ),
}


def failure_page_of(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame | None]:
    """The page of results of failure detection, and the numbers of its table if it has one.

    Raises:
        InputError: a metric or figure is not for these results.
    """
    del store
    found = [open_failures(entry.result) for entry in content.entries]
    axes = tuple(content.entries[0].axes)
    metrics = content.table.metrics if content.table else FAILURE_METRICS
    average = _frames(content.entries, [each.average for each in found])
    _check(content, average, metrics)
    curves = _frames(content.entries, [each.curves for each in found])
    definitions: dict[str, str] = {}
    for each in found:
        definitions |= each.card.definitions
    shown = [*metrics, *(RANKED_BY if RANKING in content.figures else ()), *_confidences(average)]
    page = Page(
        title=content.title,
        about=content.about,
        strong="",
        sentences=_sentences(average, axes, metrics[0]),
        comparison=None,
        table=_grid(average, axes, metrics) if content.table else None,
        shortcomings=[*_shortcomings(found), *content.notes],
        drawings=[_drawing(name, average, curves, axes) for name in content.figures],
        definitions={
            **{name: definitions[name] for name in dict.fromkeys(shown)},
            **found[0].card.statistics,
        },
        provenance={"Results": [_used(*each) for each in zip(content.entries, found, strict=True)]},
        versions=dict(found[0].card.versions),
        command=content.command,
    )
    numbers = average[average["metric"].isin(metrics)] if content.table else None
    return page, numbers


def _frames(entries: Sequence[Entry], frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All frames below each other, with the axes as their first columns."""
    parts = []
    for entry, frame in zip(entries, frames, strict=True):
        part = frame.copy()
        for at, (name, value) in enumerate(entry.axes.items()):
            part.insert(at, name, value)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _check(content: Content, average: pd.DataFrame, metrics: Sequence[str]) -> None:
    known = list(average["metric"].unique())
    if unknown := [name for name in metrics if name not in known]:
        raise InputError(f"failure detection has no {unknown[0]}: choose from {', '.join(known)}")
    if unknown := [name for name in content.figures if name not in _FIGURES]:
        raise InputError(
            f"no figure '{unknown[0]}' for failure detection: choose from {', '.join(_FIGURES)}"
        )
    if content.table and content.table.paper:
        raise InputError("the paper has no table of failure detection: omit --paper")


def _confidences(average: pd.DataFrame) -> list[str]:
    return [str(each) for each in average["confidence"].unique()]


def _best_first(average: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of a metric, the best first within each group; those without a number come last."""
    rows = average[average["metric"] == metric]
    return rows.sort_values("mean", ascending=sign_of(metric) < 0, kind="stable")


def _sentences(average: pd.DataFrame, axes: tuple[str, ...], metric: str) -> list[str]:
    """The best confidence for each predictor, and heads as confidences in f, by entry."""
    said = []
    for title, rows in panels_of(average, varying(average, axes)):
        where = f"{title}: " if title else ""
        for predictor, part in rows.groupby("predictor", sort=False):
            if part.loc[part["metric"] == "auroc_f", "mean"].isna().all():
                said.append(f"{where}{predictor} is right, or wrong, in all rows: nothing to rank.")
                continue
            ordered = _best_first(part, metric)
            best = ordered.iloc[0]
            place = list(ordered["confidence"]).index(BASELINE) + 1
            said.append(
                f"{where}{best['confidence']} ranks the errors of {predictor} best, with "
                f"{spoken(metric)} {best['mean']:.4f}; {BASELINE} is number {place} of "
                f"{len(ordered)}."
            )
        said += [f"{where}{each}" for each in _of_heads(rows)]
    return said


def _of_heads(rows: pd.DataFrame) -> list[str]:
    """How well heads rank the errors of f, against its own baseline."""
    heads = [name for name in rows["predictor"].unique() if name != REFERENCE]
    is_of_head = (rows["predictor"] == REFERENCE) & rows["confidence"].isin(heads)
    found = rows[is_of_head & (rows["metric"] == "auroc_f") & rows["mean"].notna()]
    said = []
    for _, row in found.iterrows():
        verdict = THAN[verdict_of("auroc_f", row["gain_low"], row["gain_high"])]
        ends = interval(row["gain_low"], row["gain_high"])
        gain = f"{signed(row['gain'])} {ends}".strip()
        said.append(
            f"As a confidence in f's predictions, {row['confidence']} has an AUROC of errors of "
            f"{row['mean']:.4f}, {verdict} {BASELINE} ({gain})."
        )
    return said


def _grid(average: pd.DataFrame, axes: tuple[str, ...], metrics: Sequence[str]) -> Grid:
    shown = varying(average, axes)
    best = _best_first(average, metrics[0])
    keys = [*shown, "predictor"]
    firsts = {tuple(row) for row in best.groupby(keys).head(1)[[*keys, "confidence"]].to_numpy()}
    place = {tuple(row): at for at, row in enumerate(best[[*keys, "confidence"]].to_numpy())}
    first = {key: at for at, (key, _) in enumerate(average.groupby(keys, sort=False))}
    groups = sorted(
        average.groupby([*keys, "confidence"], sort=False),
        key=lambda group: (first[group[0][:-1]], place[group[0]]),
    )
    lines = []
    for key, rows in groups:
        of = {str(row["metric"]): row for _, row in rows.iterrows()}
        cells = tuple(_cell(of[name], name) for name in metrics)
        lines.append(Line(tuple(map(str, key)), cells, tuple(key) in firsts))
    notes = (
        f"Mean over cells ± standard deviation over seeds; below it the gain over f ranked by "
        f"{BASELINE}, with its 95 % interval. ✓ better, ✗ worse, ≈ no clear difference. Bold: the "
        f"best {spoken(metrics[0])} for the errors of a predictor. A head in the column of "
        "confidences ranks the errors of f.",
    )
    return Grid((*keys, "confidence"), tuple(map(spoken, metrics)), tuple(lines), notes)


def _cell(row: pd.Series[Any], metric: str) -> Cell:
    text = "" if pd.isna(row["mean"]) else f"{row['mean']:.4f}"
    text += "" if pd.isna(row["std"]) else f" ± {row['std']:.4f}"
    if pd.isna(row["gain"]):
        return Cell(text)
    ends = row["gain_low"], row["gain_high"]
    return Cell(text, signed(row["gain"]), interval(*ends), verdict_of(metric, *ends))


def _shortcomings(found: Sequence[Failures]) -> list[str]:
    said = [
        f"{n_rows:,} rows of {each.card.features} are excluded: no label, or unreadable."
        for each in found
        if (n_rows := each.card.left_out_rows.get(REFERENCE, 0))
    ]
    if any(each.card.n_resamples < MIN_RESAMPLES for each in found):
        said.append(f"Some results have no intervals: fewer than {MIN_RESAMPLES} resamples.")
    return said


def _used(entry: Entry, found: Failures) -> Row:
    card = found.card
    heads = ", ".join(f"{label} ({head.name})" for label, head in card.contenders.items())
    return {
        **{name: str(value) for name, value in entry.axes.items()},
        "result": entry.result.name,
        "rows": f"{card.rows:,}",
        "cells": f"{card.cells.count:,}",
        "model": card.model,
        "heads": heads or "none",
        "resamples": f"{card.n_resamples:,}",
    }


def _drawing(
    name: str, average: pd.DataFrame, curves: pd.DataFrame, axes: tuple[str, ...]
) -> Drawing:
    kind = _FIGURES[name]
    with rc_context(SETTINGS):
        if name == CURVES:
            figure = _draw_curves(curves, average, varying(average, axes))
        else:
            figure = _draw_ranking(average, varying(average, axes))
    return Drawing(name, kind.title, kind.caption, svg_of(figure, name, kind.title))


def _draw_curves(curves: pd.DataFrame, average: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    """One panel per entry and predictor, with a line for each confidence."""
    found = panels_of(curves, [*axes, "predictor"])
    styles = _styles(average)
    figure, panels = sheet(len(found), height=4.2 if len(found) == 1 else 2.7)
    for panel, (title, part) in zip(panels, found, strict=True):
        for name, line in part.groupby("confidence", sort=False):
            style = {**line_style(styles[str(name)]), "marker": ""}
            panel.plot(100 * line["coverage"], 100 * line["risk"], **style)
        name_panel(panel, f"errors of {title}" if title else "")
        panel.set_xlim(0, 100)
        panel.set_ylim(bottom=0)
    name_scales(panels, x="coverage, %", y="risk, %")
    legend_above(figure, styles, styles)
    return figure


def _styles(average: pd.DataFrame) -> dict[str, Style]:
    """Grey for the baseline, the strong colour for a head or the best confidence of f."""
    rows = _best_first(average, RANKED_BY[0])
    of_f = list(dict.fromkeys(rows.loc[rows["predictor"] == REFERENCE, "confidence"]))
    names = [name for name in of_f if name != BASELINE]
    found = styles_of([REFERENCE, *names])
    return {BASELINE: found[REFERENCE], **{name: found[name] for name in names}}


def _draw_ranking(average: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    """A row of panels per entry: the metrics of all confidences, the best at the top."""
    ordered = _best_first(average[average["predictor"] == REFERENCE], RANKED_BY[0])
    names = list(dict.fromkeys(ordered["confidence"]))[::-1]
    entries = panels_of(average, axes)
    styles = styles_of(average["predictor"])
    height = (0.9 + 0.22 * len(names)) * len(entries) + 0.4
    figure = Figure(figsize=(7.0, height), layout="constrained")
    grid = figure.subplots(len(entries), len(RANKED_BY), sharey=True, squeeze=False)
    for panels, (title, part) in zip(grid, entries, strict=True):
        for panel, metric in zip(panels, RANKED_BY, strict=True):
            _dots(panel, part[part["metric"] == metric], names, styles)
            arrow = "lower is better" if sign_of(metric) < 0 else "higher is better"
            panel.set_xlabel(f"{spoken(metric)}, {arrow}")
        panels[0].set_title(title)
    legend_above(figure, styles, styles)
    return figure


def _dots(panel: Axes, rows: pd.DataFrame, names: Sequence[str], styles: dict[str, Style]) -> None:
    for name, found in rows.groupby("predictor", sort=False):
        style = styles[str(name)]
        places = [names.index(each) + 0.18 * style.dodge for each in found["confidence"]]
        panel.hlines(places, found["low"], found["high"], color=style.colour, linewidth=1.0)
        panel.plot(found["mean"], places, **{**line_style(style), "linestyle": ""})
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(-0.7, len(names) - 0.3)


FAILURES = PageKind(FAILURE_METRICS, failure_page_of, lambda _, __: (CURVES, RANKING))
