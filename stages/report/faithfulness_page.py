"""The page of an evaluation of maps: faithfulness of each map, and the sanity check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from stages.errors import InputError
from stages.explanation.evaluate_maps import AVERAGE, SANITY, MapsCard
from stages.explanation.faithfulness import MEASURES
from stages.report.comparison import BETTER, EQUAL, UNKNOWN, WORSE, interval, signed
from stages.report.content import Content
from stages.report.kinds import PageKind
from stages.report.page import Cell, Grid, Line, Page
from stages.report.provenance import Row
from stages.report.results import Entry
from store.artifacts import Artifact
from store.catalog import FeatureStore

SIGNS = {"deletion": -1, "insertion": 1, "drop": -1, "increase": 1}
"""1 if higher is better."""

STATISTICS = {
    "noise": "a map of uniform noise with the grid of the layer, one for each map",
    "interval": "95 % interval of the difference to noise, by the bootstrap over rows",
}


def faithfulness_page_of(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame | None]:
    """The page of evaluations of maps, and the numbers of its table.

    Raises:
        InputError: a table or a figure is asked for.
    """
    del store
    if content.table is not None or content.figures:
        raise InputError("an evaluation of maps has one table, and no metrics or figures to choose")
    cards = [_card(entry.result) for entry in content.entries]
    read = list(zip(content.entries, cards, strict=True))
    numbers = pd.concat([_numbers(*each) for each in read], ignore_index=True)
    return (
        Page(
            title=content.title,
            about=content.about,
            strong="f",
            sentences=[_sentence(card, rows) for card, rows in _by_entry(read)],
            comparison=None,
            table=_grid(read),
            shortcomings=[*_shortcomings(read), *content.notes],
            drawings=[],
            definitions={**cards[0].definitions, **STATISTICS},
            provenance={"Maps": [_used(*each) for each in read]},
            versions=dict(cards[0].versions),
            command=content.command,
            tables={"Sanity check": _sanity_grid(read)},
        ),
        numbers,
    )


Read = Sequence[tuple[Entry, MapsCard]]


def _card(result: Artifact) -> MapsCard:
    if AVERAGE not in result.files() or SANITY not in result.files():
        raise InputError(
            f"result {result.name} is not an evaluation of maps, but others are: use separate "
            "reports"
        )
    return MapsCard.of(result)


def _numbers(entry: Entry, card: MapsCard) -> pd.DataFrame:
    frame = entry.result.read_frame(AVERAGE)
    names = [card.questions[number] for number in frame["map"]]
    return frame.assign(map=names, **entry.axes)


def _by_entry(read: Read) -> list[tuple[MapsCard, pd.DataFrame]]:
    return [(card, entry.result.read_frame(AVERAGE)) for entry, card in read]


def _sentence(card: MapsCard, average: pd.DataFrame) -> str:
    """How often the maps are better than noise."""
    verdicts = [_verdict(row) for _, row in average.iterrows()]
    return (
        f"Maps of {card.model} on {card.maps.rpartition('-')[0]}: better than noise in "
        f"{verdicts.count(BETTER)}, worse in {verdicts.count(WORSE)}, not clearly different in "
        f"{verdicts.count(EQUAL)} of {len(verdicts)} measures."
    )


def _verdict(row: pd.Series[Any]) -> str:
    sign = SIGNS[row["measure"]]
    low, high = sorted((sign * row["low"], sign * row["high"]))
    if pd.isna(low):
        return UNKNOWN
    return BETTER if low > 0 else WORSE if high < 0 else EQUAL


def _grid(read: Read) -> Grid:
    lines = []
    for entry, card in read:
        average = entry.result.read_frame(AVERAGE)
        for number, rows in average.groupby("map"):
            name = card.questions[int(str(number))]
            cells = [_cell(row) for _, row in rows.iterrows()]
            counts = f"{rows['n_rows'].iloc[0]:,}", f"{rows['n_empty'].iloc[0]:,}"
            lines.append(Line((*_axes(entry), name), (*cells, *map(Cell, counts))))
    notes = (
        "Mean over rows; below it the difference to maps of noise with its 95 % interval. "
        "✓ better, ✗ worse, ≈ no clear difference. Deletion and drop are better if lower.",
        "empty: rows whose map is the same everywhere. It claims nothing, and is left out.",
    )
    heads = (*MEASURES, "rows", "empty")
    return Grid((*read[0][0].axes, "map"), heads, tuple(lines), notes)


def _cell(row: pd.Series[Any]) -> Cell:
    ends = row["low"], row["high"]
    return Cell(f"{row['mean']:.3f}", signed(row["difference"]), interval(*ends), _verdict(row))


def _sanity_grid(read: Read) -> Grid:
    """Rank correlation, and SSIM below it, of each map and number of randomised layers."""
    lines, heads = [], []
    for entry, card in read:
        for number, rows in entry.result.read_frame(SANITY).groupby("map"):
            cells = tuple(
                Cell(f"{rank:.2f}", f"SSIM {ssim:.2f}")
                for rank, ssim in zip(rows["rank_correlation"], rows["ssim"], strict=True)
            )
            lines.append(Line((*_axes(entry), card.questions[int(str(number))]), cells))
            heads = [f"{share:.0%} of layers" for share in rows["share"]]
    notes = (
        "Rank correlation of each map with that of the network whose last layers are randomised; "
        "below it their structural similarity. A map that depends on these layers is near 0.",
    )
    return Grid((*read[0][0].axes, "map"), tuple(heads), tuple(lines), notes)


def _axes(entry: Entry) -> tuple[str, ...]:
    return tuple(map(str, entry.axes.values()))


def _shortcomings(read: Read) -> list[str]:
    few = [f"{card.rows:,} of {card.maps}" for _, card in read if card.rows < 100]
    return [f"Few rows: {'; '.join(few)}."] if few else []


def _used(entry: Entry, card: MapsCard) -> Row:
    return {
        **{name: str(value) for name, value in entry.axes.items()},
        "result": entry.result.name,
        "maps": card.maps,
        "model": card.model,
        "layer": card.layer,
        "rows": f"{card.rows:,}",
        "steps": f"{card.steps:,}",
        "seed": str(card.seed),
        "seconds": f"{card.seconds:,.1f}",
    }


def _no_figures(store: FeatureStore, entries: Sequence[Entry]) -> tuple[str, ...]:
    del store, entries
    return ()


FAITHFULNESS = PageKind((), faithfulness_page_of, _no_figures)
