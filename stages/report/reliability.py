"""Reliability diagrams: accuracy against confidence, with the share of rows in each bin."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.report.drawing import (
    MAX_PANELS,
    WIDTH,
    legend_above,
    line_style,
    name_panel,
    name_scales,
    panels_of,
    sheet,
)
from stages.report.palette import Style, styles_of
from stages.sheets.theme import PAPER, SOFT

FEW = 0.005
"""Share of the rows below which a bin is drawn hollow."""

_N_COLUMNS = 4


def draw_reliability(bins: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    """One diagram per entry and contender, or one per entry if there would be too many."""
    n_panels = len(bins[[*axes, "predictor"]].drop_duplicates())
    return _one_each(bins, axes) if n_panels <= MAX_PANELS else _together(bins, axes)


def _one_each(bins: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    """Accuracy by bin at the top, share of rows below."""
    styles = styles_of(bins["predictor"])
    found = panels_of(bins, [*axes, "predictor"])
    n_columns = min(_N_COLUMNS, max(len(found), 3))
    n_rows = math.ceil(len(found) / n_columns)
    height = n_rows * (0.86 * WIDTH / n_columns + 0.95)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.add_gridspec(2 * n_rows, n_columns, height_ratios=[3.2, 1] * n_rows)
    for at, (title, part) in enumerate(found):
        row, column = divmod(at, n_columns)
        above = figure.add_subplot(grid[2 * row, column])
        below = figure.add_subplot(grid[2 * row + 1, column])
        style = styles[str(part["predictor"].iloc[0])]
        _diagram(above, below, pooled(part), style)
        name_panel(above, title, color=style.colour, fontsize=8.5)
        _scales(above, below, is_first=column == 0)
    return figure


def _together(bins: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    """All contenders of an entry as lines in one diagram, without the shares of rows."""
    styles = styles_of(bins["predictor"])
    found = panels_of(bins, axes)
    figure, panels = sheet(len(found), height={1: 5.0, 2: 3.5, 4: 3.5}.get(len(found), 2.5))
    for panel, (title, part) in zip(panels, found, strict=True):
        _diagonal(panel)
        for name, rows in part.groupby("predictor", sort=False):
            points, style = pooled(rows), styles[str(name)]
            line = {**line_style(style), "marker": ""}
            panel.plot(points["confidence"], points["accuracy"], **line)
            _points(panel, points, style)
        panel.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        name_panel(panel, title)
    name_scales(panels, x="confidence", y="accuracy")
    legend_above(figure, styles, styles)
    return figure


def pooled(bins: pd.DataFrame) -> pd.DataFrame:
    """Pool cells and seeds: ``accuracy``, ``confidence`` and ``share`` of each non-empty bin.

    ``low`` and ``high`` are the edges of the bin.
    """
    sums = bins.groupby(["low", "high"])[["n_rows", "n_correct", "confidence_sum"]].sum()
    sums = sums[sums["n_rows"] > 0].reset_index()
    n_rows = sums["n_rows"]
    return sums.assign(
        accuracy=sums["n_correct"] / n_rows,
        confidence=sums["confidence_sum"] / n_rows,
        share=n_rows / n_rows.sum(),
    )


def _diagram(above: Axes, below: Axes, points: pd.DataFrame, style: Style) -> None:
    _diagonal(above)
    x, y = points["confidence"], points["accuracy"]
    above.vlines(x, y.combine(x, min), y.combine(x, max), color=style.colour, alpha=0.45, zorder=2)
    above.plot(x, y, color=style.colour, linewidth=1.3, zorder=3)
    _points(above, points, style)
    width = points["high"] - points["low"]
    below.bar(
        points["low"], points["share"], width * 0.9, align="edge", color=style.colour, alpha=0.75
    )


def _diagonal(panel: Axes) -> None:
    panel.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, dashes=(3, 2), zorder=1)


def _points(panel: Axes, points: pd.DataFrame, style: Style) -> None:
    """Draw a marker for each bin, hollow if it has few rows."""
    fill = [PAPER if share < FEW else style.colour for share in points["share"]]
    panel.scatter(
        points["confidence"],
        points["accuracy"],
        s=16,
        c=fill,
        marker=style.marker,
        edgecolors=style.colour,
        linewidths=1.0,
        zorder=style.z + 0.5,
    )


def _scales(above: Axes, below: Axes, *, is_first: bool) -> None:
    above.set(xlim=(0, 1), ylim=(0, 1), yticks=(0, 0.5, 1), xticks=(0, 0.5, 1))
    above.tick_params(labelbottom=False, labelleft=is_first)
    below.set(xlim=(0, 1), ylim=(0, 1), yticks=(0, 1), xlabel="confidence")
    below.tick_params(labelleft=is_first)
    below.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
    if is_first:
        above.set_ylabel("accuracy")
        below.set_ylabel("rows")
