"""The page of prediction sets: coverage and size, by set, severity and class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from stages.conformal.conformal_result import HELD_OUT, Conformity, open_conformity
from stages.report.comparison import strong_one
from stages.report.content import Content, title_of
from stages.report.drawing import (
    draw_line,
    legend_above,
    line_style,
    name_panel,
    name_scales,
    over_seeds,
    panels_of,
    sheet,
)
from stages.report.kinds import PageKind
from stages.report.page import Cell, Drawing, Grid, Line, Page
from stages.report.palette import SETTINGS, styles_of
from stages.report.provenance import Row
from stages.report.results import Entry
from stages.report.svg import svg_of
from stages.sheets.theme import INK
from store.catalog import FeatureStore

SHOWN = ("coverage", "size", "empty", "worst_class", "size_gap")
LEVELS = {
    "coverage-by-level": ("Coverage by severity", "coverage"),
    "set-size-by-level": ("Size of sets by severity", "size"),
}
BY_CLASS = "coverage-by-class"
Results = Sequence[tuple[str, Conformity]]
"""Name on the page, empty for a single result, and result."""


def conformity_page(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame]:
    """The page of results of the stage conformal, and the numbers of its table.

    Raises ``NotFoundError`` if a result is not finished.
    """
    del store
    found = _opened(content.entries)
    numbers = pd.concat([each.average.assign(result=name) for name, each in found])
    labels = list(dict.fromkeys(numbers["predictor"]))
    cards = [each.card for _, each in found]
    page = Page(
        title=title_of(content, cards[0].title),
        about=content.about,
        strong=strong_one(labels) or "f",
        sentences=[line for name, each in found for line in _sentences(name, each)],
        comparison=None,
        table=_grid(numbers, cards[0].alpha),
        shortcomings=[*_shortcomings(found), *content.notes],
        drawings=_drawings(found, content.figures),
        definitions={key: text for card in cards for key, text in card.definitions.items()},
        provenance={"Results": [_used(each) for _, each in found]},
        versions=dict(cards[0].versions),
        command=content.command,
        tables=_tables(found),
    )
    return page, numbers


def _opened(entries: Sequence[Entry]) -> Results:
    names = [" · ".join(map(str, each.axes.values())) for each in entries]
    return [(name, open_conformity(each.result)) for name, each in zip(names, entries, strict=True)]


def _grid(numbers: pd.DataFrame, alpha: float) -> Grid:
    strong = strong_one(numbers["predictor"].unique())
    lines = [
        Line(
            (*([row["result"]] if row["result"] else []), *_place(row)),
            (*(_cell(row, name) for name in SHOWN),),
            row["predictor"] == strong,
        )
        for row in numbers.to_dict(orient="records")
    ]
    names = ("result",) if len(lines[0].names) == 4 else ()
    notes = (
        f"Level {1 - alpha:.0%}; below a coverage, the interval that 95 % of exchangeable sets of "
        "rows would have. Means over seeds.",
    )
    heads = tuple(name.replace("_", " ") for name in SHOWN)
    return Grid((*names, "set", "score", "predictor"), heads, tuple(lines), notes)


def _place(row: Mapping[Any, Any]) -> tuple[str, str, str]:
    return row["set"], row["method"], row["predictor"]


def _cell(row: Mapping[Any, Any], name: str) -> Cell:
    text = f"{row[name]:.2f}" if name == "size" else f"{row[name]:.4f}"
    if name != "coverage" or row["low"] != row["low"]:
        return Cell(text)
    return Cell(text, interval=f"[{row['low']:.4f}, {row['high']:.4f}]")


def _sentences(name: str, found: Conformity) -> Iterator[str]:
    at = f"{name}: " if name else ""
    level = 1 - found.card.alpha
    for set_name, rows in found.average.groupby("set", sort=False):
        low, high = rows["coverage"].min(), rows["coverage"].max()
        if set_name == HELD_OUT:
            smallest = rows.sort_values("size", kind="stable").iloc[0]
            yield (
                f"{at}On held-out rows, sets cover {low:.4f} to {high:.4f} of the labels, for a "
                f"level of {level:.2f}. The smallest have {smallest['size']:.2f} classes on "
                f"average: {smallest['method']} of {smallest['predictor']}."
            )
            continue
        by_label = [
            f"{own['coverage'].min():.4f} to {own['coverage'].max():.4f} with {label}"
            for label, own in rows.groupby("predictor", sort=False)
        ]
        yield f"{at}On {set_name}, they cover {', '.join(by_label)}, depending on the score."
    yield from _by_severity(at, found)


def _by_severity(at: str, found: Conformity) -> Iterator[str]:
    if "severity" not in found.by_group:
        return
    rows = found.by_group.dropna(subset=["severity"])
    worst = rows[rows["severity"] == rows["severity"].max()]
    means = worst.groupby(["method", "predictor"], sort=False)["coverage"].mean()
    sizes = worst.groupby(["method", "predictor"], sort=False)["size"].mean()
    parts = []
    for predictor in dict.fromkeys(worst["predictor"]):
        own = means.xs(predictor, level="predictor")
        method = str(own.idxmax())
        size = sizes.loc[(method, predictor)]
        parts.append(f"{own.max():.4f} with {predictor} ({method}, {size:.2f} classes)")
    yield f"{at}At severity {worst['severity'].iloc[0]:g}, the most is {', '.join(parts)}."


def _shortcomings(found: Results) -> Iterator[str]:
    for name, each in found:
        at = f"{name}: " if name else ""
        card = each.card
        for label, scores in card.unbounded.items():
            yield (
                f"{at}{label}: too few calibration rows for {', '.join(scores)}: its sets hold "
                "every class."
            )
        for set_name, n_rows in card.left_out_rows.items():
            if n_rows:
                yield f"{at}{n_rows:,} rows of {set_name} left out: no label, or not read."
        if card.features:
            yield (
                f"{at}The level holds for rows like those of {card.calibration}. Rows of "
                f"{card.features} are not, so nothing is guaranteed there."
            )


def _tables(found: Results) -> dict[str, Grid]:
    """Coverage by size of the set, for each result."""
    tables = {}
    for name, each in found:
        rows = each.by_size.drop(columns="seed")
        keys = ["set", "method", "predictor"]
        shares = rows.groupby([*keys, "sizes"], sort=False)[["coverage", "n_rows"]].mean()
        wide: pd.DataFrame = pd.DataFrame(shares.unstack("sizes"))
        heads = tuple(dict.fromkeys(rows["sizes"]))
        found_rows: list[Any] = [*zip(wide.index, wide.to_dict(orient="records"), strict=True)]
        lines = tuple(
            Line(
                key,
                tuple(_share(row.get(("coverage", at)), row.get(("n_rows", at))) for at in heads),
            )
            for key, row in found_rows
        )
        title = f"Coverage by size of the set{f', {name}' if name else ''}"
        notes = ("Below each coverage, the number of rows whose sets have this size.",)
        tables[title] = Grid(("set", "score", "predictor"), heads, lines, notes)
    return tables


def _share(coverage: float | None, n_rows: float | None) -> Cell:
    if coverage is None or n_rows is None or coverage != coverage:
        return Cell("")
    return Cell(f"{coverage:.4f}", interval=f"{n_rows:,.0f}")


def _drawings(found: Results, names: Sequence[str]) -> list[Drawing]:
    frames = {
        part: pd.concat([getattr(each, part).assign(result=name) for name, each in found])
        for part in ("by_group", "by_class")
    }
    alpha = found[0][1].card.alpha
    axes = ("result",) if len(found) > 1 else ()
    drawings = []
    for name in dict.fromkeys(names):
        with rc_context(SETTINGS):
            if name == BY_CLASS:
                figure = _draw_classes(frames["by_class"], axes, alpha)
                title = "Coverage by class"
                caption = "Share of the rows with each label whose set holds it, mean over seeds."
            else:
                title, value = LEVELS[name]
                figure = _draw_levels(frames["by_group"], axes, value, alpha)
                caption = (
                    "Mean over corruptions and seeds, held-out clean rows at 0; bands and whiskers "
                    "run from the lowest to the highest seed."
                )
            if name != "set-size-by-level":
                caption += " Dashed: the level."
        drawings.append(Drawing(name, title, caption, svg_of(figure, name, title)))
    return drawings


def _draw_levels(frame: pd.DataFrame, axes: tuple[str, ...], value: str, alpha: float) -> Figure:
    rows = frame.assign(severity=frame["severity"].fillna(0).astype(int))
    found = panels_of(rows, [*axes, "method"])
    styles = styles_of(rows["predictor"])
    figure, panels = sheet(len(found), height=2.3, wide=2)
    for panel, (title, part) in zip(panels, found, strict=True):
        for label, points in over_seeds(part, ["severity"], value).groupby("predictor", sort=False):
            draw_line(panel, points, "severity", styles[str(label)], markers=True)
        panel.xaxis.set_major_locator(FixedLocator(sorted(part["severity"].unique())))
        name_panel(panel, title)
        if value == "coverage":
            _level(panel.axhline, alpha)
    name_scales(panels, x="severity", y="classes in a set" if value == "size" else value)
    legend_above(figure, styles, styles)
    return figure


def _draw_classes(frame: pd.DataFrame, axes: tuple[str, ...], alpha: float) -> Figure:
    last = frame[frame["set"] == frame["set"].iloc[0]]
    names = list(dict.fromkeys(last["class"].where(last["class"] != "", last["label"].astype(str))))
    found = panels_of(last, [*axes, "method"])
    styles = styles_of(last["predictor"])
    figure, panels = sheet(len(found), height=0.6 + 0.17 * len(names), wide=2)
    for panel, (title, part) in zip(panels, found, strict=True):
        for label, points in over_seeds(part, ["label"], "coverage").groupby(
            "predictor", sort=False
        ):
            style: dict[str, Any] = {**line_style(styles[str(label)]), "linestyle": ""}
            panel.plot(points["mean"], range(len(points)), **style)
        _name_rows(panel, names)
        name_panel(panel, title)
        _level(panel.axvline, alpha)
    name_scales(panels, x="coverage", y="")
    legend_above(figure, styles, styles)
    return figure


def _name_rows(panel: Axes, names: Sequence[str]) -> None:
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(-0.7, len(names) - 0.3)
    panel.grid(visible=False, axis="y")


def _level(draw: Callable[..., Any], alpha: float) -> None:
    draw(1 - alpha, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=2)


def _used(found: Conformity) -> Row:
    card = found.card
    seeds = {label: ", ".join(map(str, each)) for label, each in card.seeds.items()}
    return {
        "result": found.artifact.name,
        "calibrated on": f"{card.calibration}, {card.calibration_rows:,} rows",
        "judged on": ", ".join(f"{name}, {n:,} rows" for name, n in card.rows.items()),
        "heads": ", ".join(
            f"{label} = {head} (seeds {seeds[label]})" for label, head in card.heads.items()
        ),
        "parameters": ", ".join(
            f"{key} {value}" for key, value in card.method.items() if key != "names"
        ),
    }


def _figures(store: FeatureStore, entries: Sequence[Entry]) -> tuple[str, ...]:
    del store
    found = [each for _, each in _opened(entries)]
    has_levels = all("severity" in each.by_group for each in found)
    n_classes = max(each.by_class["label"].nunique() for each in found)
    return (*(LEVELS if has_levels else ()), *((BY_CLASS,) if n_classes <= 40 else ()))


CONFORMITY = PageKind((), conformity_page, _figures)
