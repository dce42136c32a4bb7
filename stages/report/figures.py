"""The figures of a report, as pure functions from data frames to drawings.

Each takes ``by_group`` or ``bins`` from ``results.frame_over`` and the names of the axes, and
returns a figure for a width of 700 pixels. If there are several entries, each has its own panel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator

from stages.errors import InputError
from stages.report.comparison import spoken, strong_one
from stages.report.drawing import (
    MAX_PANELS,
    dot,
    dots,
    draw_line,
    label_ends,
    legend_above,
    name_panel,
    name_scales,
    over_seeds,
    panels_of,
    sheet,
    with_gain,
    zero_line,
)
from stages.report.gain_maps import draw_gain_cells, draw_gain_map
from stages.report.palette import SETTINGS, Style, styles_of
from stages.report.ranking import draw_by_detector
from stages.report.reliability import draw_reliability
from stages.report.results import varying
from stages.report.trade_off import draw_accuracy_vs_ece
from stages.sheets.theme import INK

EPOCH, INFORMATION = "epoch", "mutual_information"
_SPREAD = "Bands and whiskers run from the lowest to the highest seed."


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Attributes:
        title: heading of the figure.
        caption: text below the figure.
        draw: draws it from a frame and the names of the axes.
        part: the frame from which it is drawn.
        needs: columns that it requires.
        shows: metrics whose definitions are listed with it.
        is_default: whether it is drawn if no figure is named.
    """

    title: str
    caption: str
    draw: Callable[[pd.DataFrame, tuple[str, ...]], Figure]
    part: Literal["by_group", "bins", "detections"] = "by_group"
    needs: tuple[str, ...] = ()
    shows: tuple[str, ...] = ("accuracy",)
    is_default: bool = True


def draw_figure(name: str, frames: dict[str, pd.DataFrame], axes: Sequence[str]) -> Figure:
    """Draw the figure with that name from the frames ``by_group`` and ``bins``.

    Raises:
        InputError: unknown figure, a required column is missing, or too many panels.
    """
    if name not in FIGURES:
        raise InputError(f"no figure '{name}': choose from {', '.join(FIGURES)}")
    kind = FIGURES[name]
    if missing := [column for column in kind.needs if column not in frames[kind.part].columns]:
        missing_names = " and ".join(missing)
        raise InputError(f"figure '{name}' needs {missing_names}, which these results lack")
    frame = frames[kind.part]
    with rc_context(SETTINGS):
        return kind.draw(frame, varying(frame, axes))


def fitting_figures(by_group: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """Figures that are informative for these results, in order."""
    n_entries = len(by_group[list(axes)].drop_duplicates()) if axes else 1
    if "accuracy" not in by_group:
        return ["auroc-by-detector"] if n_entries > 1 else []
    is_alone = by_group["predictor"].nunique() == 1
    return [
        name
        for name, kind in FIGURES.items()
        if kind.is_default
        and kind.part != "detections"
        and all(column in by_group.columns for column in kind.needs)
        and (n_entries <= MAX_PANELS or name == "by-epoch")
        and not (is_alone and name.startswith("gain"))
    ]


def _gain_by_corruption(frame: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    gains = with_gain(frame, axes, "accuracy")
    names = sorted(gains["corruption"].unique(), reverse=True)
    found = panels_of(gains, axes)
    styles = styles_of(["f", *gains["predictor"]])
    figure, panels = sheet(len(found), height=0.9 + 0.2 * len(names))
    for panel, (title, rows) in zip(panels, found, strict=True):
        _bars(panel, over_seeds(rows, ["corruption"], "gain"), names, styles)
        name_panel(panel, title)
    name_scales(panels, x="accuracy minus that of f", y="")
    shown = [name for name in styles if name != "f"]
    legend_above(figure, styles, shown, handles=[_handle(name, styles[name]) for name in shown])
    return figure


def _handle(name: str, style: Style) -> Artist:
    if style.is_strong:
        return Patch(color=style.colour, label=name)
    return dot(name, style)


def _bars(panel: Axes, gains: pd.DataFrame, names: Sequence[str], styles: dict[str, Style]) -> None:
    strong = strong_one(styles)
    for name, found in gains.groupby("predictor", sort=False):
        style, means = styles[str(name)], found["mean"]
        rows = [names.index(corruption) for corruption in found["corruption"]]
        if name == strong:
            panel.barh(rows, means, height=0.62, color=style.colour, alpha=0.9, zorder=2)
            panel.hlines(rows, found["low"], found["high"], color=INK, linewidth=1.1, zorder=6)
        else:
            panel.plot(means, rows, **dots(style))
    zero_line(panel, vertical=True)
    _name_rows(panel, names)


def _accuracy_by_class(frame: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    known = frame[frame["class"].fillna("") != ""]
    names = sorted(known["class"].unique(), reverse=True)
    found = panels_of(known, varying(known, axes))
    styles = styles_of(known["predictor"])
    figure, panels = sheet(len(found), height=0.9 + 0.2 * len(names))
    for panel, (title, rows) in zip(panels, found, strict=True):
        points = over_seeds(rows, ["class"], "accuracy")
        for name, part in points.groupby("predictor", sort=False):
            places = [names.index(each) for each in part["class"]]
            panel.plot(part["mean"], places, **dots(styles[str(name)]))
        _name_rows(panel, names)
        name_panel(panel, title)
    name_scales(panels, x="accuracy", y="")
    legend_above(figure, styles, styles, handles=[dot(*each) for each in styles.items()])
    return figure


def _name_rows(panel: Axes, names: Sequence[str]) -> None:
    """Name the rows of a panel, from the bottom to the top."""
    panel.set_yticks(range(len(names)), [str(name).replace("_", " ") for name in names])
    panel.set_ylim(-0.7, len(names) - 0.3)
    panel.grid(visible=False, axis="y")
    panel.spines["left"].set_visible(False)


def _by_level(value: str, label: str, *, of_gain: bool) -> Callable[..., Figure]:
    def draw(frame: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
        rows = with_gain(frame, axes, value) if of_gain else frame
        found = panels_of(rows, axes)
        styles = styles_of(["f", *rows["predictor"]])
        figure, panels = sheet(len(found), height=3.4 if len(found) == 1 else 2.3)
        ends: dict[str, tuple[float, float]] = {}
        for panel, (title, part) in zip(panels, found, strict=True):
            ends |= _lines(panel, part, "severity", "gain" if of_gain else value, styles)
            panel.xaxis.set_major_locator(FixedLocator(sorted(part["severity"].unique())))
            name_panel(panel, title)
        for panel in panels:
            if of_gain:
                zero_line(panel)
            else:
                panel.set_ylim(bottom=0)
        name_scales(panels, x="severity", y=label)
        _name_lines(figure, panels, styles, ends)
        return figure

    return draw


def _by_epoch(frame: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    by = [name for name in axes if name != EPOCH]
    if "corruption" in frame.columns:
        # An axis that the corruption already implies (clean or corrupted) would be redundant.
        values = frame.groupby("corruption")
        by = [*(name for name in by if values[name].nunique().max() > 1), "corruption"]
    found = panels_of(frame, by)
    styles = styles_of(frame["predictor"])
    figure, panels = sheet(len(found), height=3.4 if len(found) == 1 else 2.3)
    ends: dict[str, tuple[float, float]] = {}
    for panel, (title, part) in zip(panels, found, strict=True):
        ends |= _lines(panel, part, EPOCH, "accuracy", styles)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        name_panel(panel, title.replace("_", " "))
    name_scales(panels, x="epoch of f", y="accuracy")
    _name_lines(figure, panels, styles, ends)
    return figure


def _lines(
    panel: Axes, rows: pd.DataFrame, x: str, value: str, styles: dict[str, Style]
) -> dict[str, tuple[float, float]]:
    """Draw a line for each contender, and return the end point of each."""
    ends = {}
    for name, found in over_seeds(rows, [x], value).groupby("predictor", sort=False):
        draw_line(panel, found, x, styles[str(name)], markers=len(found) <= 12)
        ends[str(name)] = (float(found[x].iloc[-1]), float(found["mean"].iloc[-1]))
    return ends


def _name_lines(
    figure: Figure,
    panels: Sequence[Axes],
    styles: dict[str, Style],
    ends: dict[str, tuple[float, float]],
) -> None:
    """Label the lines at their ends in a single panel, or with a legend above several."""
    if len(panels) == 1:
        label_ends(panels[0], ends, styles, side=1)
    else:
        legend_above(figure, styles, [name for name in styles if name in ends])


FIGURES: dict[str, Kind] = {
    "accuracy-vs-ece": Kind(
        "Accuracy against calibration error",
        "Mean over the cells. For a single result, a line connects its severities, numbered on "
        "the thick lines; for several results, a line connects f and H of each.",
        draw_accuracy_vs_ece,
        needs=("accuracy", "ece"),
        shows=("accuracy", "ece"),
    ),
    "gain-by-corruption": Kind(
        "Gain in accuracy by corruption",
        f"Mean over severities of the accuracy minus that of f in the same cell. {_SPREAD}",
        _gain_by_corruption,
        needs=("corruption", "accuracy"),
    ),
    "gain-by-level": Kind(
        "Gain in accuracy by severity",
        f"Mean over corruptions of the accuracy minus that of f in the same cell. {_SPREAD}",
        _by_level("accuracy", "accuracy minus that of f", of_gain=True),
        needs=("severity", "accuracy"),
    ),
    "gain-map": Kind(
        "Gain in accuracy by corruption, for each contender",
        "Points of accuracy over f, mean over severities and seeds; on the right the mean of all.",
        draw_gain_map,
        needs=("corruption", "accuracy"),
        is_default=False,
    ),
    "gain-cells": Kind(
        "Gain by corruption and severity",
        "Points over f, mean over seeds, of the contender of the report and of the one with the "
        "largest gain in accuracy. Blue is better, also where the ECE is lower.",
        draw_gain_cells,
        needs=("corruption", "severity", "accuracy", "ece"),
        shows=("accuracy", "ece"),
        is_default=False,
    ),
    "ece-by-level": Kind(
        "Calibration error by severity",
        f"Mean over corruptions. {_SPREAD}",
        _by_level("ece", spoken("ece"), of_gain=False),
        needs=("severity", "ece"),
        shows=("ece",),
    ),
    "nll-by-level": Kind(
        "Likelihood by severity",
        f"Mean over corruptions of the negative log-likelihood in nats; lower is better. {_SPREAD}",
        _by_level("nll", spoken("nll"), of_gain=False),
        needs=("severity", "nll", INFORMATION),
        shows=("nll",),
    ),
    "entropy-by-level": Kind(
        "Entropy by severity",
        "Mean over corruptions of the predictive entropy in nats: it should rise with the severity "
        f"as accuracy falls. {_SPREAD}",
        _by_level("entropy", "entropy", of_gain=False),
        needs=("severity", "entropy", INFORMATION),
        shows=("entropy",),
    ),
    "information-by-level": Kind(
        "Mutual information by severity",
        "Mean over corruptions, in nats: the part of the entropy that comes from not knowing the "
        f"weights. Predictors with one set of weights have none. {_SPREAD}",
        _by_level(INFORMATION, "mutual information", of_gain=False),
        needs=("severity", INFORMATION),
        shows=(INFORMATION,),
    ),
    "accuracy-by-class": Kind(
        "Accuracy by class",
        "Share of the images of each class that are recognised, mean over seeds.",
        _accuracy_by_class,
        needs=("class", "accuracy"),
    ),
    "reliability": Kind(
        "Reliability",
        "Accuracy against mean confidence by confidence bin; below, the share of rows in each bin, "
        "unless many contenders share a diagram. Rows of all cells and seeds are pooled. Points on "
        "the diagonal are calibrated, points below it overconfident. Hollow: below 0.5 % of rows.",
        draw_reliability,
        part="bins",
    ),
    "auroc-by-detector": Kind(
        "AUROC by detector",
        "Large dots are means over the sets that all detectors were compared on, small dots are "
        "those sets; means over seeds. At the line, a detector separates nothing. Best on top.",
        draw_by_detector,
        part="detections",
        needs=("detector", "auroc"),
        shows=("auroc",),
    ),
    "by-epoch": Kind(
        "Across the training of f",
        f"Accuracy with f after each epoch of its training, mean over severities. {_SPREAD}",
        _by_epoch,
        needs=(EPOCH, "accuracy"),
    ),
}
"""Figures by name."""
