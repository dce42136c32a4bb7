"""The contact sheet of influences: an explained row beside the training rows that matter most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from stages.data.picked import images_of
from stages.data.registry import SourceSpec
from stages.influence.influence_result import SIDES
from stages.sheets.overlays import Pixels
from stages.sheets.sheet import Row, Sheet, Tile

MAX_TILES = 4
"""Training rows on each side of an explained row."""

NOTES = (
    "A training row that supports made the explained class more probable, and one that opposes "
    "less; the number is its score, on a scale of its own for each method.",
    "f was trained on these rows too. The scores speak of its last layer alone.",
)
HEADINGS = dict(zip(SIDES, ("Supports", "Opposes"), strict=True))


class Images(NamedTuple):
    """Where the images of the explained rows and of the training rows are."""

    rows: SourceSpec
    training: SourceSpec


def influence_sheet(
    influences: pd.DataFrame, images: Images, names: Sequence[str], title: str, command: str
) -> Sheet:
    """The sheet of explained rows, by the first method of the table."""
    method = influences["method"].iloc[0]
    shown = influences[(influences["method"] == method) & (influences["rank"] <= MAX_TILES)]
    image_of = images_of(images.rows.open(), shown["row"].to_numpy())
    training_of = images_of(images.training.open(), shown["training_row"].to_numpy())
    drawn = []
    for row, listed in shown.groupby("row", sort=False):
        first = listed.iloc[0]
        tiles = [Tile("Image", image_of(int(str(row))), f"The image {first['sample_id']}.")]
        for _, each in listed.iterrows():
            tiles.append(_tile(each, training_of(each["training_row"]), names))
        drawn.append(Row(f"Row {row}", _lines(first, names), tiles))
    about = (
        f"{len(drawn):,} rows, and the training rows with the highest and lowest {method} scores."
    )
    return Sheet(title, about, drawn, NOTES, command=command)


def _tile(each: pd.Series[Any], image: Pixels, names: Sequence[str]) -> Tile:
    heading = HEADINGS[each["side"]]
    label = names[each["training_label"]]
    caption = f"{label}, {each['score']:+.2g}"
    text = f"{heading}: training row {each['training_sample_id']}, {caption}."
    return Tile(heading, image, text, caption)


def _lines(first: pd.Series[Any], names: Sequence[str]) -> list[str]:
    label, prediction, of_class = first["label"], first["prediction"], first["class"]
    lines = [
        str(first["sample_id"]),
        f"label: {names[label]}" if label >= 0 else "no label",
        f"f: {names[prediction]} {first['confidence']:.2f}",
    ]
    if of_class != prediction:
        lines.append(f"explained: {names[of_class]}")
    return lines
