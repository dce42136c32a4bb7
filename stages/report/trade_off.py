"""The figure of accuracy against calibration error."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.report.comparison import spoken, strong_one
from stages.report.drawing import (
    dot,
    dots,
    label_ends,
    legend_above,
    line_style,
    over_seeds,
    remark,
    sheet,
)
from stages.report.palette import Style, styles_of
from stages.sheets.theme import INK, SOFT


def draw_accuracy_vs_ece(frame: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    """Draw accuracy against ECE: paths over the severity, or points of several entries."""
    figure, (panel,) = sheet(1, height=4.2)
    styles = styles_of(frame["predictor"])
    draw = _points_of_entries if axes else _paths_over_severity
    draw(panel, frame, axes, styles)
    panel.set(xlabel="accuracy", ylabel=spoken("ece"))
    panel.set_ylim(bottom=0)
    remark(panel, "better ↘", x=0.995, y=0.015, ha="right", va="bottom")
    if axes:
        legend_above(figure, styles, styles, handles=[dot(*each) for each in styles.items()])
    return figure


def _paths_over_severity(
    panel: Axes, frame: pd.DataFrame, _: tuple[str, ...], styles: dict[str, Style]
) -> None:
    by = ["severity"] if "severity" in frame.columns else []
    points = _two_metrics(frame, by)
    ends = {}
    for name, found in points.groupby("predictor", sort=False):
        panel.plot(found["accuracy"], found["ece"], **line_style(styles[str(name)]))
        last = found.iloc[-1]
        ends[str(name)] = (float(last["accuracy"]), float(last["ece"]))
        if by and len(found) > 1 and styles[str(name)].is_thick:
            _number_levels(panel, found, styles[str(name)])
    left, right = panel.get_xlim()
    panel.set_xlim(left - 0.24 * (right - left), right)
    panel.set_ylim(0, panel.get_ylim()[1])
    label_ends(panel, ends, styles, side=-1)


def _number_levels(panel: Axes, points: pd.DataFrame, style: Style) -> None:
    for level, x, y in zip(points["severity"], points["accuracy"], points["ece"], strict=True):
        panel.annotate(
            str(level),
            (x, y),
            xytext=(4.5, 5),
            textcoords="offset points",
            color=style.colour,
            fontsize=7.5,
        )


def _points_of_entries(
    panel: Axes, frame: pd.DataFrame, axes: tuple[str, ...], styles: dict[str, Style]
) -> None:
    strong = strong_one(styles)
    points = _two_metrics(frame, axes)
    names = points[list(axes)].astype(str).agg(" · ".join, axis=1)
    # Entries with the same f are named at the contender that the figure is about.
    of_f = points[points["predictor"] == "f"]
    named_at = -1 if of_f.duplicated(["accuracy", "ece"]).any() else 0
    for entry, found in points.groupby(names, sort=False):
        pair = found[found["predictor"].isin(["f", strong])]
        panel.plot(pair["accuracy"], pair["ece"], color=SOFT, linewidth=0.8, zorder=1)
        for name, x, y in zip(found["predictor"], found["accuracy"], found["ece"], strict=True):
            panel.plot([x], [y], **dots(styles[name]))
        point = pair.iloc[named_at]
        panel.annotate(
            str(entry),
            (point["accuracy"], point["ece"]),
            xytext=(7, 5),
            textcoords="offset points",
            color=INK,
        )
    panel.margins(x=0.12, y=0.12)


def _two_metrics(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean accuracy and ECE by predictor and the columns of ``by``, where both exist."""
    keys = ["predictor", *by]
    accuracy, ece = (over_seeds(frame, by, name) for name in ("accuracy", "ece"))
    both = accuracy[[*keys, "mean"]].merge(ece[[*keys, "mean"]], on=keys, suffixes=("_a", "_e"))
    return both.rename(columns={"mean_a": "accuracy", "mean_e": "ece"})
