"""The page of estimated accuracies: how near they are, and estimates against true accuracies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.terminal import counted
from stages.estimation.estimation_result import Estimated, open_estimated
from stages.estimation.estimators import ESTIMATORS, QUALITY
from stages.report.comparison import strong_one
from stages.report.content import Content, title_of
from stages.report.drawing import WIDTH, legend_above, line_style, name_scales, sheet
from stages.report.kinds import PageKind
from stages.report.page import Cell, Drawing, Grid, Line, Page
from stages.report.palette import SETTINGS, Style, styles_of
from stages.report.provenance import Row
from stages.report.results import Entry
from stages.report.svg import svg_of
from stages.sheets.theme import INK
from store.catalog import FeatureStore

ACCURACIES, RANKINGS = "estimated-accuracy", "accuracy-rankings"
MAX_LINES = 200
Results = Sequence[tuple[str, Estimated]]
"""Name on the page, empty for a single result, and result."""


def estimation_page(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame]:
    """The page of results of the stage estimate-accuracy, and the estimates of all groups.

    Raises ``NotFoundError`` if a result is not finished.
    """
    del store
    found = _opened(content.entries)
    cards = [each.card for _, each in found]
    labels = [label for card in cards for label in card.seeds]
    page = Page(
        title=title_of(content, cards[0].title),
        about=content.about,
        strong=strong_one(labels) or "f",
        sentences=[line for name, each in found for line in _sentences(name, each)],
        comparison=None,
        table=None,
        shortcomings=[*_shortcomings(found), *content.notes],
        drawings=_drawings(found, content.figures),
        definitions={key: text for card in cards for key, text in card.definitions.items()},
        provenance={"Results": [_used(each) for _, each in found]},
        versions=dict(cards[0].versions),
        command=content.command,
        tables=dict(_tables(found)),
    )
    return page, pd.concat([each.by_group.assign(result=name) for name, each in found])


def _opened(entries: Sequence[Entry]) -> Results:
    names = [" · ".join(map(str, each.axes.values())) for each in entries]
    return [(name, open_estimated(each.result)) for name, each in zip(names, entries, strict=True)]


def _sentences(name: str, found: Estimated) -> Iterator[str]:
    at = f"{name}: " if name else ""
    quality: list[Any] = found.quality.to_dict(orient="records")
    for label in found.card.seeds:
        rows = [row for row in quality if row["predictor"] == label]
        errors = [row for row in rows if row["mae"] == row["mae"]]
        ranks = [row for row in rows if row["spearman"] == row["spearman"]]
        parts = []
        if errors:
            best = min(errors, key=lambda row: row["mae"])
            parts.append(f"{best['method']} is nearest, {best['mae']:.2f} points off on average")
        if ranks:
            best = max(ranks, key=lambda row: row["spearman"])
            parts.append(f"{best['method']} ranks best (Spearman {best['spearman']:.3f})")
        if parts:
            n_groups = max(row["n_groups"] for row in rows)
            yield f"{at}For {label}, over {counted(n_groups, 'group')}, {' and '.join(parts)}."


def _shortcomings(found: Results) -> Iterator[str]:
    for name, each in found:
        at = f"{name}: " if name else ""
        if not len(each.quality):
            yield f"{at}No row has a label, so the estimates are not judged."
        if n := each.card.left_out_rows:
            yield f"{at}{n:,} rows left out whose image could not be read."


def _tables(found: Results) -> Iterator[tuple[str, Grid]]:
    for name, each in found:
        after = f", {name}" if name else ""
        strong = strong_one(each.card.seeds)
        if len(each.quality):
            rows = each.quality.sort_values("mae", kind="stable")
            by_label = rows.groupby("predictor", sort=False)
            lines = tuple(
                Line((label, row["method"]), tuple(_quality(row)), label == strong)
                for label in each.card.seeds
                for row in by_label.get_group(label).to_dict(orient="records")
            )
            heads = ("error, points", "R²", "Spearman")
            yield f"Quality{after}", Grid(("predictor", "estimator"), heads, lines)
        if len(each.by_group) <= MAX_LINES and not len(each.quality):
            yield f"Estimates{after}", _estimates(each)


def _quality(row: dict[Any, Any]) -> Iterator[Cell]:
    for key, digits in zip(QUALITY, (2, 3, 3), strict=True):
        yield Cell("" if row[key] != row[key] else f"{row[key]:.{digits}f}")


def _estimates(found: Estimated) -> Grid:
    names = [name for name in ESTIMATORS if name in found.by_group]
    lines = tuple(
        Line(
            (row["predictor"], " ".join(str(row[column]) for column in found.card.cells) or "all"),
            tuple(Cell(f"{row[name]:.4g}") for name in names),
        )
        for row in found.by_group.to_dict(orient="records")
    )
    return Grid(("predictor", "group"), tuple(names), lines)


def _drawings(found: Results, names: Sequence[str]) -> list[Drawing]:
    by_group = pd.concat([each.by_group for _, each in found])
    keys = ["predictor", *found[0][1].card.cells]
    points = by_group.dropna(subset=["accuracy"]).groupby(keys, sort=False, dropna=False)
    frame = points.mean().reset_index()
    drawings = []
    for name in dict.fromkeys(names):
        is_accuracy = name == ACCURACIES
        shown = [
            each
            for each, kind in ESTIMATORS.items()
            if each in frame and kind.is_accuracy == is_accuracy
        ]
        with rc_context(SETTINGS):
            figure = (_draw_accuracies if is_accuracy else _draw_rankings)(frame, shown)
        title = "Estimated against true accuracy" if is_accuracy else "Rankings against accuracy"
        caption = "A point is a group of rows, mean over seeds." + (
            " On the diagonal, the estimate is right; above it, too high." * is_accuracy
        )
        drawings.append(Drawing(name, title, caption, svg_of(figure, name, title)))
    return drawings


def _draw_accuracies(frame: pd.DataFrame, names: Sequence[str]) -> Figure:
    styles = styles_of(frame["predictor"])
    figure, panels = sheet(len(names), height=2.9, wide=2)
    ends = [frame["accuracy"].min(), frame["accuracy"].max()]
    for panel, name in zip(panels, names, strict=True):
        panel.plot(ends, ends, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
        _scatter(panel, frame, name, styles)
    name_scales(panels, x="accuracy", y="estimate")
    legend_above(figure, styles, styles)
    return figure


def _draw_rankings(frame: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Every ranking has a scale of its own; of gdscore, which spans decades, the logarithm."""
    styles = styles_of(frame["predictor"])
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(1, len(names))).flat)
    for panel, name in zip(panels, names, strict=True):
        is_long = not ESTIMATORS[name].is_high_if_accurate
        _scatter(
            panel, frame.assign(**{name: np.log10(frame[name])}) if is_long else frame, name, styles
        )
        panel.set_title(f"{name}, log10" if is_long else name)
        panel.set_xlabel("accuracy")
    legend_above(figure, styles, styles)
    return figure


def _scatter(panel: Axes, frame: pd.DataFrame, name: str, styles: dict[str, Style]) -> None:
    for label, rows in frame.groupby("predictor", sort=False):
        style: dict[str, Any] = {**line_style(styles[str(label)]), "linestyle": ""}
        panel.plot(rows["accuracy"], rows[name], **{**style, "markersize": 3.5, "alpha": 0.8})
    panel.set_title(name)


def _used(found: Estimated) -> Row:
    card = found.card
    return {
        "result": found.artifact.name,
        "source": card.source,
        "estimated": f"{card.features}, {card.rows:,} rows",
        "groups": f"{card.n_groups:,} of {' and '.join(card.cells) or 'all rows'}",
        "heads": ", ".join(f"{label} = {head}" for label, head in card.heads.items()),
        "source accuracy": ", ".join(
            f"{label} {each.accuracy:.4f}" for label, each in card.sources.items()
        ),
    }


def _figures(store: FeatureStore, entries: Sequence[Entry]) -> tuple[str, ...]:
    del store
    found = [each for _, each in _opened(entries)]
    if not all(each.by_group["accuracy"].notna().any() for each in found):
        return ()
    kinds = {ESTIMATORS[name].is_accuracy for name in ESTIMATORS if name in found[0].by_group}
    return tuple(name for name, kind in ((ACCURACIES, True), (RANKINGS, False)) if kind in kinds)


ESTIMATION = PageKind((), estimation_page, _figures)
