"""Building blocks of figures: panels, means over seeds, lines with bands, and labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stages.errors import InputError
from stages.report.palette import Style
from stages.sheets.theme import INK, PAPER, SOFT

WIDTH = 7.0
"""Width in inches: 504 drawing units, shown at about 700 pixels."""

MAX_PANELS = 12
CELL = ("corruption", "severity")
_TITLE_WIDTH = 68
"""Most characters of a title over the whole width."""

_LABEL_POINTS = 11.0
_BAND = 0.16


def over_seeds(frame: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean over the cells for each seed, then mean, minimum and maximum over the seeds.

    Returns:
        ``predictor``, the columns of ``by``, ``mean``, ``low``, ``high``; sorted by ``by``, with
        predictors in order of appearance. NaN cells are skipped.
    """
    keys = ["predictor", *by]
    seeds = frame.dropna(subset=[value]).groupby([*keys, "seed"], sort=False)[value].mean()
    found = seeds.groupby(level=keys, sort=False).agg(["mean", "min", "max"]).reset_index()
    found = found.rename(columns={"min": "low", "max": "high"})
    return found.sort_values(list(by), kind="stable") if by else found


def with_gain(frame: pd.DataFrame, axes: Sequence[str], metric: str) -> pd.DataFrame:
    """The contenders other than f, with the column ``gain``: their metric minus f's in the cell."""
    cell = [name for name in (*axes, *CELL) if name in frame.columns]
    is_f = frame["predictor"] == "f"
    others = frame[~is_f]
    if others.empty:
        raise InputError("a figure of gains over f: expected a contender beside f, found f alone")
    if not cell:
        return others.assign(gain=others[metric] - frame.loc[is_f, metric].mean())
    of_f = frame[is_f].groupby(cell, sort=False)[metric].mean().rename("_f").reset_index()
    both = others.merge(of_f, on=cell, how="left")
    return both.assign(gain=both[metric] - both["_f"])


def panels_of(frame: pd.DataFrame, by: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """One panel for each combination of the columns, in order of appearance."""
    if not by:
        return [("", frame)]
    groups = list(frame.groupby(list(by), sort=False))
    if len(groups) > MAX_PANELS:
        raise InputError(
            f"a figure by {', '.join(by)} would have {len(groups)} panels, at most {MAX_PANELS} "
            "are allowed: omit it, or report fewer results at once"
        )
    return [(" · ".join(str(part) for part in key), group) for key, group in groups]


def sheet(n_panels: int, *, height: float, wide: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels that share both axes; ``height`` is in inches per row of panels."""
    n_columns = {1: 1, 2: 2, 4: 2}.get(n_panels, min(wide, n_panels))
    n_rows = math.ceil(n_panels / n_columns)
    figure = Figure(figsize=(WIDTH, height * n_rows + 0.3 * (n_panels > 1)), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    for spare in panels[n_panels:]:
        spare.set_axis_off()
    return figure, panels[:n_panels]


def name_panel(
    panel: Axes,
    title: str,
    **style: Any,  # Any: options of matplotlib
) -> None:
    """Write a title above a panel, in lines that do not reach into the next one."""
    place = panel.get_subplotspec()
    assert place is not None  # it was made by `sheet`
    width = _TITLE_WIDTH // place.get_gridspec().ncols
    panel.set_title(fill(title, width, break_on_hyphens=False), **style)


def name_scales(panels: Sequence[Axes], *, x: str, y: str) -> None:
    """Label the axes of the lowest panel of each column and the first panel of each row."""
    place = panels[0].get_subplotspec()
    assert place is not None  # it was made by `sheet`
    n_columns = place.get_gridspec().ncols
    for at, panel in enumerate(panels):
        if at >= len(panels) - n_columns:
            panel.set_xlabel(x)
            panel.tick_params(labelbottom=True)
        if at % n_columns == 0:
            panel.set_ylabel(y)


def draw_line(panel: Axes, points: pd.DataFrame, x: str, style: Style, *, markers: bool) -> None:
    """Draw a contender's line over ``x`` with the range of its seeds.

    Thick lines have a band, the others bars, because more than two bands would hide each other.
    """
    ends = points["low"], points["high"]
    if not style.is_thick:
        places = points[x] + style.dodge * 0.07 * _gap(points[x])
        panel.vlines(places, *ends, color=style.colour, linewidth=1.0, alpha=0.7, zorder=2)
    elif (points["high"] > points["low"]).any():
        panel.fill_between(points[x], *ends, color=style.colour, alpha=_BAND, linewidth=0)
    panel.plot(points[x], points["mean"], **line_style(style, markers=markers))


def _gap(places: pd.Series[Any]) -> float:
    """Smallest distance between positions in ascending order; 0 for a single position."""
    return float(places.diff().min()) if len(places) > 1 else 0.0


def line_style(
    style: Style, *, markers: bool = True
) -> dict[str, Any]:  # Any: keyword arguments of matplotlib
    """Keyword arguments for a line in a contender's style."""
    return {
        "color": style.colour,
        "linewidth": style.width,
        "linestyle": (0, style.dashes) if style.dashes else "-",
        "marker": style.marker if markers else "",
        "markersize": 5.0,
        "markeredgecolor": PAPER,
        "markeredgewidth": 0.5,
        "zorder": style.z,
    }


def dot(name: str, style: Style) -> Artist:
    """The handle of a contender in the legend of a figure of points."""
    return Line2D([], [], label=name, **dots(style))


def dots(style: Style) -> dict[str, Any]:  # Any: keyword arguments of matplotlib
    """Keyword arguments for the points of a contender."""
    return {**line_style(style), "linestyle": "", "markersize": 6}


def label_ends(
    panel: Axes, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, Style], *, side: int
) -> None:
    """Label the lines at their ends, moving labels apart where they would overlap.

    Args:
        panel: axes with final limits.
        ends: label -> point beside which it is placed.
        styles: styles whose colours the labels use.
        side: 1 for the right of the points, -1 for the left.
    """
    ends = {name: point for name, point in ends.items() if np.isfinite(point).all()}
    low, high = panel.get_ylim()
    figure = panel.get_figure(root=True)
    assert figure is not None  # it was made by `sheet`
    points = figure.get_figheight() * 72 * 0.82 / ((high - low) or 1.0)
    wanted = [y * points for _, y in ends.values()]
    for (name, (x, y)), place in zip(ends.items(), spread(wanted, _LABEL_POINTS), strict=True):
        panel.annotate(
            name,
            xy=(x, y),
            xytext=(9 * side, place - y * points),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            color=styles[name].colour,
            fontweight="bold" if styles[name].is_strong else "normal",
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions at least ``gap`` apart, in the same order, as close to ``wanted`` as possible.

    >>> spread([0.0, 0.0, 50.0], 10.0)
    [-5.0, 5.0, 50.0]
    """
    order = np.argsort(wanted, kind="stable")
    # Blocks that touch are merged and moved together: their mean shift is zero.
    blocks: list[list[float]] = []
    for at in order:
        blocks.append([wanted[at]])
        while len(blocks) > 1 and _bottom(blocks[-1], gap) - _top(blocks[-2], gap) < gap:
            last = blocks.pop()
            blocks[-1] += last
    places = [_bottom(block, gap) + step * gap for block in blocks for step in range(len(block))]
    found = [0.0] * len(places)
    for at, place in zip(order, places, strict=True):
        found[at] = float(place)
    return found


def _bottom(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) + gap * (len(block) - 1) / 2


def legend_above(
    figure: Figure,
    styles: Mapping[str, Style],
    names: Iterable[str],
    *,
    handles: Sequence[Artist] = (),
) -> None:
    """Add a legend above all panels; pass ``handles`` if the contenders are not lines."""
    shown = list(names)
    handles = handles or [Line2D([], [], label=name, **line_style(styles[name])) for name in shown]
    longest = max(map(len, shown))
    figure.legend(
        handles=list(handles),
        loc="outside upper left",
        ncols=max(1, min(len(shown), int(88 / (longest + 7)))),
        handlelength=2.2,
        columnspacing=1.4,
    )


def zero_line(panel: Axes, *, vertical: bool = False) -> None:
    """Draw the line of f in a figure of gains."""
    draw = panel.axvline if vertical else panel.axhline
    draw(0, color=INK, linewidth=0.9, zorder=2)


def remark(panel: Axes, text: str, *, x: float, y: float, ha: str, va: str) -> None:
    """Write a small note inside a panel, at a fraction of its width and height."""
    panel.text(x, y, text, transform=panel.transAxes, ha=ha, va=va, color=SOFT, fontsize=8)
