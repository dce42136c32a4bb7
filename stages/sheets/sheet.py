"""The content of a contact sheet: one row of pictures for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.sheets.overlays import Numbers, Pixels, dimmed, overlay

ZERO, CONSTANT = "zero everywhere", "the same everywhere"
"""What is written over a map that has nothing to show."""


@dataclass(frozen=True)
class Tile:
    """A picture of a sheet.

    Attributes:
        heading: what the picture is: "image", "Why cat?".
        picture: RGB.
        text: description for those who cannot see it.
        caption: a line below the picture, or none.
        mark: short text over the picture, or none.
    """

    heading: str
    picture: Pixels
    text: str
    caption: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """The pictures of a sample, with a title and lines of text beside them."""

    title: str
    lines: Sequence[str]
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Sheet:
    """A contact sheet.

    Attributes:
        title: title of the page.
        about: a sentence below it.
        rows: the samples, in order.
        notes: what a reader must know, one sentence each, below the rows.
        colour_map: colour map of the overlays, for the key; none if there are no maps.
        command: command that makes the sheet again, or none.
    """

    title: str
    about: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    colour_map: str | None = None
    command: str = ""


def map_tile(heading: str, image: Pixels, values: Numbers, colour_map: str = "viridis") -> Tile:
    """The tile of a map over an image, scaled from the lowest to the highest of its values.

    A map that is zero everywhere, or the same everywhere, is not scaled: its tile says so.

    Args:
        heading: what the map is: "Why cat?".
        image: RGB, shape ``(height, width, 3)``.
        values: the map, finite, shape ``(h, w)``.
        colour_map: a name in `stages.sheets.colour_maps`.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        mark = CONSTANT if high else ZERO
        return Tile(heading, dimmed(image), f"{heading} The map is {mark}.", mark=mark)
    scaled = (values - low) / (high - low)
    text = f"{heading} Map over the image, highest {_place(values)}."
    return Tile(heading, overlay(image, scaled, colour_map), text)


def _place(values: Numbers) -> str:
    """Where the highest value of a map is, in words: "at the top left"."""
    height, width = values.shape
    row, column = divmod(int(values.argmax()), width)
    words = [
        _third(row, height, ("top", "", "bottom")),
        _third(column, width, ("left", "", "right")),
    ]
    return f"at the {' '.join(filter(None, words))}" if any(words) else "in the centre"


def _third(index: int, size: int, names: tuple[str, str, str]) -> str:
    return names[int(3 * (index + 0.5) / size)]
