"""The contact sheet of maps: a row for each sample, its image and then a tile for each map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.explanation.questions import Question
from stages.explanation.stored_maps import Block, StoredMaps
from stages.out_folder import PAGE, PICTURE
from stages.sheets.sheet import Row, Sheet, Tile, map_tile
from stages.sheets.sheet_page import sheet_html
from stages.sheets.sheet_picture import sheet_pngs

NOTES = (
    "Each map is scaled to its own range, so that colours of different maps cannot be compared. A "
    "map that is zero everywhere has no evidence to show: it is marked, not scaled.",
    "f is the network, H the introspective head. The maps explain f; the number below a map is the "
    "probability that f gives the class that the map is about.",
)


def map_sheet(
    stored: StoredMaps, rows: NDArray[np.int64], *, title: str, colour_map: str, command: str
) -> Sheet:
    """The sheet of some rows of a set of maps."""
    drawn = [
        _row(stored, block, at, colour_map)
        for block in stored.blocks(rows)
        for at in range(len(block.rows))
    ]
    return Sheet(title, _about(stored, len(drawn)), drawn, NOTES, colour_map, command)


def sheet_files(sheet: Sheet) -> dict[str, bytes]:
    """The page and the pictures of a sheet, by file name."""
    pictures = enumerate(sheet_pngs(sheet), start=1)
    return {
        PAGE: sheet_html(sheet).encode(),
        **{PICTURE.format(number=number): png for number, png in pictures},
    }


def _about(stored: StoredMaps, n_drawn: int) -> str:
    n_all, params = stored.maps.n_rows, stored.params
    shown = f"{n_drawn:,} of {n_all:,} rows" if n_drawn < n_all else f"{n_all:,} rows"
    features = stored.maps.plan["inputs"]["features"]
    return f"Maps of layer {params['layer']} of {stored.card.name} for {shown} of {features}."


def _row(stored: StoredMaps, block: Block, at: int, colour_map: str) -> Row:
    names, image = stored.names, block.images[at]
    facts = {name: column[at].as_py() for name, column in _columns(block).items()}
    tiles = [Tile("Image", image, f"The image {facts['sample_id']}.")]
    explained = int(block.explained[at])
    for number, question in enumerate(stored.questions):
        asked = int(block.asked[at, number])
        heading = question.title(names, explained, asked)
        tile = map_tile(heading, image, block.maps[at, number], colour_map)
        caption = f"p({names[asked]}): {_probability(block.probabilities[at, number])}"
        tiles.append(_captioned(tile, question, caption))
    return Row(f"Row {facts['feature_row']}", _lines(facts, names, explained), tiles)


def _columns(block: Block) -> Mapping[str, Any]:  # Any: Arrow columns
    return {name: block.samples[name] for name in block.samples.column_names}


def _captioned(tile: Tile, question: Question, caption: str) -> Tile:
    if question.method == "voice":
        return tile
    return Tile(tile.heading, tile.picture, f"{tile.text} {caption}.", caption, tile.mark)


def _lines(facts: Mapping[str, Any], names: Sequence[str], explained: int) -> list[str]:
    """The sample, its label, and what f and H predict."""
    lines = [str(facts["sample_id"])]
    if "corruption" in facts:
        lines.append(f"{facts['corruption']}, severity {facts['severity']}")
    label, prediction = facts["label"], facts["prediction"]
    lines.append(f"label: {names[label]}" if label >= 0 else "no label")
    lines.append(f"f: {names[prediction]} {_probability(facts['confidence'])}")
    if "head_prediction" in facts:
        head = names[facts["head_prediction"]]
        lines.append(f"H: {head} {_probability(facts['head_confidence'])}")
    if explained != prediction:
        lines.append(f"explained: {names[explained]}")
    return lines


def _probability(value: float) -> str:
    """A probability with two digits: ``.07``, ``1.0``, ``<.01``, ``>.99``.

    >>> [_probability(value) for value in (0.071, 1.0, 0.0004, 0.9996)]
    ['.07', '1.0', '<.01', '>.99']
    """
    if value in (0, 1):
        return f"{value:.1f}"
    if value < 0.005:
        return "<.01"
    return ">.99" if value >= 0.995 else f"{value:.2f}".removeprefix("0")
