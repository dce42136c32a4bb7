"""Heat maps of gains over f: contenders by corruption, and cells by severity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stages.report.comparison import strong_one
from stages.report.drawing import CELL, WIDTH, name_panel, with_gain

_LOSS, _NONE, _GAIN = "#b4541a", "#f3f2ef", "#2a689e"
_DARK, _LIGHT = "#15191e", "#fdfdfd"
"""Colours of cells and numbers, the same on light and dark pages."""

_COLOURS = LinearSegmentedColormap.from_list("gain", [_LOSS, _NONE, _GAIN])
_LEAST_POINTS, _MOST_POINTS = 2.0, 12.0
"""Ends of the scale: noise does not look like a result, and a collapsed head hides no other."""

_LONGEST = 40
"""Most characters of a label."""


def draw_gain_map(frame: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    """Gains in accuracy in points: a row for each contender, a column for each corruption."""
    gains = with_gain(frame, axes, "accuracy")
    names = ["predictor", *axes]
    rows = gains.groupby([*names, "corruption"], sort=False)["gain"].mean().unstack("corruption")
    rows = rows[sorted(rows.columns)]
    rows["mean"] = gains.groupby(names, sort=False)["gain"].mean()
    rows = 100 * rows.sort_values("mean", ascending=False, kind="stable")
    labels = [" · ".join(map(str, key if isinstance(key, tuple) else (key,))) for key in rows.index]
    columns = [_spoken(each) for each in rows.columns]
    height = 0.3 + 0.06 * max(map(len, columns)) + 0.21 * len(rows)
    figure = Figure(figsize=(WIDTH * 1.25, height), layout="constrained")
    _map(figure.subplots(), rows.to_numpy(), labels, columns)
    return figure


def draw_gain_cells(frame: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    """Gains in accuracy and ECE by corruption and severity, of two contenders at most."""
    accuracy, ece = (with_gain(frame, axes, metric) for metric in ("accuracy", "ece"))
    shown = _shown(accuracy, axes)
    n_corruptions = frame["corruption"].nunique()
    figure = Figure(
        figsize=(WIDTH, len(shown) * (0.8 + 0.19 * n_corruptions)), layout="constrained"
    )
    panels = figure.subplots(len(shown), 2, sharey=True, squeeze=False)
    for row, key in zip(panels, shown, strict=True):
        for panel, gains, sign, metric in (
            (row[0], accuracy, 100, "accuracy"),
            (row[1], ece, -100, "ECE, lower by"),
        ):
            own = _rows_of(gains, key, axes)
            cells = sign * own.groupby(list(CELL))["gain"].mean().unstack("severity")
            columns = [str(level) for level in cells.columns]
            _map(panel, cells.to_numpy(), [_spoken(each) for each in cells.index], columns)
            name_panel(panel, f"{' · '.join(map(str, key))}: {metric}")
            panel.set_xlabel("severity")
            panel.xaxis.set_tick_params(rotation=0)
    return figure


def _shown(gains: pd.DataFrame, axes: Sequence[str]) -> list[tuple[object, ...]]:
    """The contender that the report is about, and the one with the largest mean gain."""
    means = gains.groupby(["predictor", *axes], sort=False)["gain"].mean()
    keys = [key if isinstance(key, tuple) else (key,) for key in means.index]
    strong = strong_one(["f", *gains["predictor"]])
    first = next(key for key in keys if key[0] == strong)
    return list(dict.fromkeys([first, keys[int(means.to_numpy().argmax())]]))


def _rows_of(gains: pd.DataFrame, key: Sequence[object], axes: Sequence[str]) -> pd.DataFrame:
    for name, value in zip(["predictor", *axes], key, strict=True):
        gains = gains[gains[name] == value]
    return gains


def _map(
    panel: Axes, values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Draw a matrix of points with its numbers; white text on dark cells."""
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    end = min(max(_LEAST_POINTS, largest), _MOST_POINTS)
    scale = Normalize(-end, end)
    shown = np.ma.masked_invalid(values)
    panel.pcolormesh(shown, cmap=_COLOURS, norm=scale, edgecolors=_LIGHT, linewidth=0.4)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = _LIGHT if abs(value) > 0.62 * end else _DARK
            place = (column + 0.5, row + 0.5)
            text = f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
            text = "0.0" if float(f"{value:.1f}") == 0 else text
            panel.text(*place, text, color=colour, fontsize=5.8, ha="center", va="center")
    panel.set_yticks(np.arange(len(rows)) + 0.5, rows)
    panel.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90)
    panel.set_ylim(len(rows), 0)  # inverting would toggle axes that two panels share
    panel.grid(visible=False)
    for spine in panel.spines.values():
        spine.set_visible(False)


def _spoken(name: object) -> str:
    """The name of a corruption; that of a file can be so long that it leaves no room for cells."""
    spoken = str(name).replace("_", " ")
    return spoken if len(spoken) <= _LONGEST else f"{spoken[: _LONGEST - 1]}…"
