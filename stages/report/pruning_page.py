"""The page of pruned training sets: accuracy by score and share, beside random subsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from stages.errors import InputError
from stages.pruning.pruned import ALL, MEANS, RANDOM, PruningCard
from stages.report.comparison import signed
from stages.report.content import Content
from stages.report.drawing import draw_line, legend_above, name_panel, name_scales, sheet
from stages.report.kinds import PageKind
from stages.report.page import Cell, Drawing, Grid, Line, Page
from stages.report.palette import SETTINGS, styles_of
from stages.report.provenance import Row
from stages.report.results import Entry
from stages.report.svg import svg_of
from store.catalog import FeatureStore

CURVES = "accuracy-by-share"
Read = Sequence[tuple[Entry, PruningCard, pd.DataFrame]]


def pruning_page_of(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame | None]:
    """The page of results of the stage prune, and the numbers of its table.

    Raises:
        InputError: metrics are asked for.
    """
    del store
    if content.table is not None:
        raise InputError("pruned training sets have one table, and no metrics to choose")
    read = [
        (each, PruningCard.of(each.result), each.result.read_frame(MEANS))
        for each in content.entries
    ]
    cards = [card for _, card, _ in read]
    page = Page(
        title=content.title,
        about=content.about,
        strong="",
        sentences=[_sentence(*each) for each in read],
        comparison=None,
        table=_grid(read),
        shortcomings=[
            "Features are those of f, which was trained on all rows: pruning for f itself may "
            "differ.",
            *content.notes,
        ],
        drawings=[_drawn(read) for name in content.figures if name == CURVES],
        definitions={name: text for card in cards for name, text in card.definitions.items()},
        provenance={"Results": [_used(entry, card) for entry, card, _ in read]},
        versions=dict(cards[0].versions),
        command=content.command,
    )
    return page, pd.concat([frame.assign(**entry.axes) for entry, _, frame in read])


def _sentence(entry: Entry, card: PruningCard, means: pd.DataFrame) -> str:
    where = "".join(f"{value}: " for value in entry.axes.values())
    scored = means[~means["score"].isin([ALL, RANDOM])].sort_values("gain", kind="stable")
    ends = [
        f"{signed(each['gain'])} ({each['score']} at {_percent(each['keep'])})"
        for each in scored.iloc[[0, -1]].to_dict(orient="records")
    ]
    span = ends[0] if len(scored) == 1 else f"between {' and '.join(ends)}"
    return (
        f"{where}{card.features.rpartition('-')[0]}, {card.order} rows kept: the accuracy less "
        f"that of random subsets of the same size is {span}."
    )


def _percent(share: float) -> str:
    """A share with as many digits as it has, because two columns may differ in the last one."""
    return f"{100 * share:g}%"


def _grid(read: Read) -> Grid:
    shares = sorted({share for _, _, means in read for share in means["keep"]})
    lines = []
    for entry, _, means in read:
        for score, rows in means.groupby("score", sort=False):
            of_share: dict[Any, Any] = {row["keep"]: row for _, row in rows.iterrows()}
            cells = tuple(_cell(of_share.get(share)) for share in shares)
            lines.append(Line((*map(str, entry.axes.values()), str(score)), cells))
    notes = (
        "Test accuracy, mean over seeds; below it the mean difference to random subsets of the "
        "same size.",
    )
    return Grid((*read[0][0].axes, "score"), tuple(map(_percent, shares)), tuple(lines), notes)


def _cell(row: Any) -> Cell:  # Any: a row of a frame, or None
    if row is None:
        return Cell("")
    gain = "" if row["score"] in (ALL, RANDOM) else signed(row["gain"])
    return Cell(f"{row['accuracy']:.4f}", gain)


def _drawn(read: Read) -> Drawing:
    names = list(dict.fromkeys(str(score) for _, _, means in read for score in means["score"]))
    names.remove(ALL)
    with rc_context(SETTINGS):
        figure = _figure(read, names)
    title = "Accuracy by the share of rows that is kept"
    caption = (
        "Mean over seeds, and its range of one standard deviation; the right end has all rows."
    )
    return Drawing(CURVES, title, caption, svg_of(figure, CURVES, title))


def _figure(read: Read, names: Sequence[str]) -> Figure:
    styles = styles_of(names)
    figure, panels = sheet(len(read), height=3.0, wide=2)
    for panel, (entry, _, means) in zip(panels, read, strict=True):
        whole = means[means["score"] == ALL]
        for name in names:
            points = pd.concat([means[means["score"] == name], whole]).sort_values("keep")
            std = points["std"].fillna(0)
            ends = {"low": points["accuracy"] - std, "high": points["accuracy"] + std}
            line = points.rename(columns={"accuracy": "mean"}).assign(**ends)
            draw_line(panel, line, "keep", styles[name], markers=True)
        name_panel(panel, " · ".join(map(str, entry.axes.values())))
    name_scales(panels, x="share of the rows", y="test accuracy")
    legend_above(figure, styles, styles)
    return figure


def _used(entry: Entry, card: PruningCard) -> Row:
    return {
        **{name: str(value) for name, value in entry.axes.items()},
        "result": entry.result.name,
        "features": f"{card.features}, {card.rows:,} rows",
        "test": f"{card.test}, {card.tested:,} rows",
        "order": card.order,
        "epochs": str(card.epochs),
        "seeds": ", ".join(map(str, card.seeds)),
        "accuracy of f": f"{card.test_accuracy:.4f}",
        "seconds": f"{card.seconds:,.1f}",
    }


def _figures(store: FeatureStore, entries: Sequence[Entry]) -> tuple[str, ...]:
    del store, entries
    return (CURVES,)


PRUNING = PageKind((), pruning_page_of, _figures)
