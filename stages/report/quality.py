"""The report of image quality: agreement with people, and with the level of a distortion."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.errors import InputError
from stages.metrics.agreement import METRICS, logistic
from stages.quality.measures import MEASURES, column_of
from stages.quality.quality_result import MONOTONY, QualityCard, read_table, titles
from stages.report.comparison import BETTER, EQUAL, WORSE
from stages.report.content import Content
from stages.report.drawing import WIDTH
from stages.report.kinds import PageKind
from stages.report.page import Cell, Drawing, Grid, Line, Page
from stages.report.palette import SETTINGS
from stages.report.provenance import Row
from stages.report.results import Entry
from stages.report.svg import svg_of
from stages.sheets.theme import MUTED, SENSING, SOFT, STRONG
from store.catalog import FeatureStore

FIGURES = SCATTER, MONOTONE = ("quality-scatter", "quality-monotony")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
STRONG_MEASURE = "paper_w1"
"""The measure of the paper, with which the others are compared."""

_MARKS = (
    "✓ significantly higher than the correlation of Introspective-UNIQUE, ✗ lower, ≈ neither, by "
    "Fisher's z at 5 %."
)
_MOST_POINTS = 1_000
"""Points of a scatter plot, which keeps the page small; they are evenly spaced in the list."""


def quality_page_of(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame | None]:
    """The page of the results of iqa, and the numbers of its tables.

    Raises:
        InputError: a figure is not of quality.
    """
    del store  # the results have everything
    entries = content.entries
    _check(content)
    cards = [QualityCard.of(entry.result) for entry in entries]
    agreements = _over(entries, "agreement")
    monotony = _over(entries, "monotony")
    shown = titles([name for card in cards for name in card.measures])
    page = Page(
        title=content.title,
        about=content.about,
        strong="measures",
        sentences=[*_sentences(monotony, shown)],
        comparison=None,
        table=_agreement_grid(agreements, _verdicts(entries)) if len(agreements) else None,
        shortcomings=[*_shortcomings(cards), *content.notes],
        drawings=[
            drawing
            for name in content.figures
            for drawing in _drawings(name, entries, cards, monotony)
        ],
        definitions=_definitions(cards, has_opinions=bool(len(agreements))),
        provenance={"Results": [_used(*each) for each in zip(entries, cards, strict=True)]},
        versions={each: version(each) for each in ("intro-pipe", "numpy", "scipy", "scikit-image")},
        command=content.command,
        tables={"Monotony": _monotony_grid(monotony)} if len(monotony) else {},
    )
    numbers = pd.concat([agreements, monotony], ignore_index=True)
    return page, numbers if len(numbers) else None


def _check(content: Content) -> None:
    if content.table is not None:
        raise InputError("the report of iqa has a table of its own: omit --metrics and --paper")
    if other := [name for name in content.figures if name not in FIGURES]:
        raise InputError(
            f"no figure '{other[0]}' for image quality: expected {' or '.join(FIGURES)}"
        )


def _over(entries: Sequence[Entry], table: str) -> pd.DataFrame:
    """A table of all results, with the data set as its first column."""
    frames = []
    for entry in entries:
        frame = read_table(entry.result, table)
        frame.insert(0, "dataset", QualityCard.of(entry.result).dataset)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


Key = tuple[str, str, str, str]
"""Data set, measure, start of the mapping, and metric."""


def _verdicts(entries: Sequence[Entry]) -> dict[Key, str]:
    """Whether a correlation is significantly higher or lower than Introspective-UNIQUE's."""
    words = {1: BETTER, -1: WORSE, 0: EQUAL}
    rows = _over(entries, "significance").to_dict("records")
    return {
        (row["dataset"], row["measure"], row["start"], row["metric"]): words[row["verdict"]]
        for row in rows
        if row["other"] == STRONG_MEASURE
    }


def _agreement_grid(rows: pd.DataFrame, verdicts: Mapping[Key, str]) -> Grid:
    """One line per data set, measure and start of the mapping."""
    lines = []
    for key, part in rows.groupby(["dataset", "measure", "start"], sort=False):
        dataset, measure, start = map(str, key)
        by_metric = {row["metric"]: row for row in part.to_dict("records")}
        cells = [
            _cell(by_metric[metric], verdicts.get((dataset, measure, start, metric), ""))
            for metric in METRICS
        ]
        names = (dataset, MEASURES[measure].title, start)
        lines.append(Line(names, tuple(cells), measure == STRONG_MEASURE))
    notes = (
        "Below each number its 95 % bootstrap interval; the mapping is fitted once.",
        "“paper”: the logistic mapping fitted from the start of the published code; "
        "“multistart”: the best of many starts. Rank correlations do not depend on it.",
        *([_MARKS] if verdicts else []),
    )
    return Grid(("data set", "measure", "mapping"), tuple(METRICS), tuple(lines), notes)


def _cell(row: Mapping[Hashable, Any], verdict: str) -> Cell:  # Any: numbers and names
    if pd.isna(row["value"]):
        return Cell("")
    ends = "" if pd.isna(row["low"]) else f"[{row['low']:.3f}, {row['high']:.3f}]"
    return Cell(f"{row['value']:.4f}", "", ends, verdict)


def _monotony_grid(rows: pd.DataFrame) -> Grid:
    """One line per distortion, one column per measure."""
    names = list(rows["measure"].unique())
    lines = []
    for kind, part in rows.groupby("distortion", sort=False):
        values = part.set_index("measure")["monotony"]
        cells = [Cell(_number(values.get(name, np.nan))) for name in names]
        lines.append(Line((str(kind).replace("_", " "),), tuple(cells)))
    means = rows.groupby("measure", sort=False)["monotony"].mean()
    lines.append(Line(("mean",), tuple(Cell(_number(means[name])) for name in names), True))
    heads = tuple(MEASURES[name].title for name in names)
    return Grid(("distortion",), heads, tuple(lines), (f"Monotony: {MONOTONY}.",))


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def _sentences(monotony: pd.DataFrame, shown: Mapping[str, str]) -> list[str]:
    """Mean monotony of each measure, one sentence."""
    if not len(monotony):
        return []
    means = monotony.groupby("measure", sort=False)["monotony"].mean()
    values = ", ".join(f"{shown[str(name)]} {value:.3f}" for name, value in means.items())
    n = monotony["distortion"].nunique()
    return [f"Mean monotony with the level over {n} distortions: {values}."]


def _shortcomings(cards: Sequence[QualityCard]) -> list[str]:
    found = []
    for card in cards:
        if card.n_failed:
            found.append(
                f"{card.dataset}: {card.n_failed:,} of {card.n_pairs:,} pairs could not be "
                "compared by every measure; each measure uses the pairs that it could compare."
            )
        if not card.opinions:
            found.append(
                f"{card.dataset}: no opinions of people. Monotony shows that a measure orders the "
                "levels of one distortion, not that it agrees with people between distortions."
            )
        elif card.resampled == "pairs":
            found.append(
                f"{card.dataset}: only {card.n_references} references, so intervals resample "
                "pairs and are too narrow for other references."
            )
    return found


def _definitions(cards: Sequence[QualityCard], *, has_opinions: bool) -> dict[str, str]:
    names = dict.fromkeys(name for card in cards for name in card.measures)
    found = {MEASURES[name].title: MEASURES[name].definition for name in names}
    return {**found, **(METRICS if has_opinions else {}), "monotony": MONOTONY}


def _used(entry: Entry, card: QualityCard) -> Row:
    return {
        "result": entry.result.name,
        "scores": card.scores,
        "pairs": f"{card.n_pairs:,} of {card.n_references:,} references",
        "opinions": card.opinions or "none",
    }


def _drawings(
    name: str, entries: Sequence[Entry], cards: Sequence[QualityCard], monotony: pd.DataFrame
) -> list[Drawing]:
    """The drawings of a figure: scatter plots for each result, or one of all distortions."""
    with rc_context(SETTINGS):
        if name == MONOTONE:
            title = "Monotony with the level, by distortion"
            caption = f"{MONOTONY[0].upper()}{MONOTONY[1:]}."
            if not len(monotony):
                raise InputError(f"figure {MONOTONE}: no result has three levels of a distortion")
            return [Drawing(name, title, caption, svg_of(_draw_monotony(monotony), name, title))]
        (entry, card), title = _first(entries, cards), "Scores and opinions"
        figure = _draw_scatter(read_table(entry.result, "pairs"), card)
    caption = (
        f"{card.dataset}: mean opinion of each pair ({card.opinions}) by score, at most "
        f"{_MOST_POINTS:,} pairs. Lines: the mapping from the paper's start (dashed) and the best "
        "of many starts (solid)."
    )
    return [Drawing(name, title, caption, svg_of(figure, name, title))]


def _first(entries: Sequence[Entry], cards: Sequence[QualityCard]) -> tuple[Entry, QualityCard]:
    """The first result with opinions."""
    for entry, card in zip(entries, cards, strict=True):
        if card.opinions:
            return entry, card
    raise InputError(f"figure {SCATTER}: no result has opinions of people")


def _draw_scatter(pairs: pd.DataFrame, card: QualityCard) -> Figure:
    """One panel per measure; the scales of their scores differ."""
    n_rows = -(-len(card.measures) // 2)
    figure = Figure(figsize=(WIDTH, 2.2 * n_rows + 0.3), layout="constrained")
    grid = figure.subplots(n_rows, 2, sharey=True, squeeze=False)
    for panel in grid.flat[len(card.measures) :]:
        panel.set_axis_off()
    for panel, name in zip(grid.flat, card.measures, strict=False):
        kept = pairs[np.isfinite(pairs[column_of(name)]) & pairs["mos"].notna()]
        points = kept.iloc[:: max(1, len(kept) // _MOST_POINTS)]
        panel.scatter(
            points[column_of(name)], points["mos"], s=6, color=SOFT, alpha=0.4, linewidths=0
        )
        _draw_mappings(panel, kept[column_of(name)].to_numpy(np.float64), card.mappings[name])
        panel.set_title(MEASURES[name].title)
    figure.supxlabel("score", fontsize=8.5, color=SOFT)
    figure.supylabel("mean opinion", fontsize=8.5, color=SOFT)
    return figure


def _draw_mappings(
    panel: Axes, scores: np.ndarray, mappings: Mapping[str, Sequence[float | None]]
) -> None:
    if not len(scores):
        return
    places = np.linspace(scores.min(), scores.max(), 120)
    for start, dashes in (("paper", (4.0, 1.6)), ("multistart", ())):
        parameters = np.array([np.nan if each is None else each for each in mappings[start]])
        style = (0, dashes) if dashes else "-"
        panel.plot(places, logistic(parameters, places), color=STRONG, lw=1.4, linestyle=style)


def _draw_monotony(monotony: pd.DataFrame) -> Figure:
    """A dot per measure and distortion, the distortions ordered by their mean."""
    order = monotony.groupby("distortion")["monotony"].mean().sort_values().index.to_list()
    names = list(monotony["measure"].unique())
    figure = Figure(figsize=(WIDTH, 0.24 * len(order) + 1.1), layout="constrained")
    panel = figure.subplots()
    colours = _colours(names)
    for at, name in enumerate(names):
        values = monotony[monotony["measure"] == name].groupby("distortion")["monotony"].mean()
        shift = 0.5 * ((at + 0.5) / len(names) - 0.5)
        places = [order.index(kind) - shift for kind in values.index]
        panel.plot(
            values, places, _MARKERS[at % len(_MARKERS)], color=colours[name], ms=5,
            label=MEASURES[name].title, alpha=0.9, mew=0,
        )  # fmt: skip
    panel.set_yticks(range(len(order)), [str(kind).replace("_", " ") for kind in order])
    panel.set_ylim(-0.7, len(order) - 0.3)
    panel.set_xlabel("monotony with the level (1: the score falls at every level)")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _colours(names: Sequence[str]) -> dict[str, str]:
    """The strong colour for the paper's measure, grey for feed-forward UNIQUE."""
    fixed = {"unique": SENSING, "paper_w1": STRONG}
    muted = iter(MUTED * 2)
    return {name: fixed.get(name) or next(muted) for name in names}


def _figures(store: FeatureStore, entries: Sequence[Entry]) -> tuple[str, ...]:
    """The figures for which the results have numbers."""
    del store
    files = {name for entry in entries for name in entry.result.files()}
    found = {SCATTER: "agreement.parquet", MONOTONE: "monotony.parquet"}
    return tuple(name for name, key in found.items() if key in files)


QUALITY = PageKind((), quality_page_of, _figures)
