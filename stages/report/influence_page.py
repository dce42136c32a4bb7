"""The page of influences: what the strongest training rows have in common, by method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from stages.errors import InputError
from stages.influence.influence_result import METHODS, SIDES, InfluenceCard
from stages.report.content import Content
from stages.report.kinds import PageKind
from stages.report.page import Cell, Grid, Line, Page
from stages.report.provenance import Row
from stages.report.results import Entry
from store.catalog import FeatureStore

Read = Sequence[tuple[Entry, InfluenceCard, pd.DataFrame]]


def influence_page_of(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame | None]:
    """The page of results of the stage influence, and the numbers of its table.

    Raises:
        InputError: a table or a figure is asked for.
    """
    del store
    if content.table is not None or content.figures:
        raise InputError("influences have one table, and no metrics or figures to choose")
    read = [
        (each, InfluenceCard.of(each.result), each.result.read_frame(METHODS))
        for each in content.entries
    ]
    cards = [card for _, card, _ in read]
    page = Page(
        title=content.title,
        about=content.about,
        strong="f",
        sentences=[line for each in read for line in _sentences(*each)],
        comparison=None,
        table=_grid(read),
        shortcomings=[*_shortcomings(cards), *content.notes],
        drawings=[],
        definitions={name: text for card in cards for name, text in card.definitions.items()},
        provenance={"Results": [_used(entry, card) for entry, card, _ in read]},
        versions=dict(cards[0].versions),
        command=content.command,
    )
    return page, pd.concat([frame.assign(**entry.axes) for entry, _, frame in read])


def _sentences(entry: Entry, card: InfluenceCard, methods: pd.DataFrame) -> list[str]:
    where = "".join(f"{value}: " for value in entry.axes.values())
    if not len(methods):
        return [f"{where}no training row has a score other than 0."]
    return [
        f"{where}{row['method']}: {row['own_class']:.0%} of the rows that support a "
        f"{card.explained} are labelled with its class "
        f"({card.rows:,} rows of {card.features.rpartition('-')[0]})."
        for row in methods.to_dict(orient="records")
        if row["side"] == SIDES[0]
    ]


def _grid(read: Read) -> Grid:
    lines = [
        Line((*map(str, entry.axes.values()), row["method"], row["side"]), _cells(row))
        for entry, _, methods in read
        for row in methods.to_dict(orient="records")
    ]
    notes = (
        "Mean over the listed training rows of all explained rows. Scores of different methods "
        "have different scales.",
    )
    heads = ("listed", "own class", "overlap", "mean score")
    return Grid((*read[0][0].axes, "method", "side"), heads, tuple(lines), notes)


def _cells(row: dict[Any, Any]) -> tuple[Cell, ...]:
    return (
        Cell(f"{row['n_listed']:,}"),
        Cell(f"{row['own_class']:.1%}"),
        Cell(f"{row['overlap']:.1%}"),
        Cell(f"{row['mean_score']:+.3g}"),
    )


def _shortcomings(cards: Sequence[InfluenceCard]) -> list[str]:
    found = ["Scores are of the last layer alone, as if the features did not depend on the rows."]
    if any("tracin" in card.definitions and len(card.snapshots) == 1 for card in cards):
        found.append("tracin is a sum over one snapshot, the network itself.")
    return found


def _used(entry: Entry, card: InfluenceCard) -> Row:
    damping = ", ".join(f"{name} {value:.4g}" for name, value in card.damping.items())
    return {
        **{name: str(value) for name, value in entry.axes.items()},
        "result": entry.result.name,
        "features": card.features,
        "training": f"{card.training}, {card.training_rows:,} rows",
        "explained": f"{card.explained} of {card.rows:,} rows",
        "damping": damping or "none",
        "snapshots": ", ".join(card.snapshots),
        "seconds": f"{card.seconds:,.1f}",
    }


def _no_figures(store: FeatureStore, entries: Sequence[Entry]) -> tuple[str, ...]:
    del store, entries
    return ()


INFLUENCE = PageKind((), influence_page_of, _no_figures)
