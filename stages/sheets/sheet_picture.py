"""A contact sheet as PNG pictures, for documents and slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stages.sheets.encoding import png_of, shrunk
from stages.sheets.overlays import Pixels
from stages.sheets.sheet import Row, Sheet, Tile
from stages.sheets.theme import GRID, INK, PAPER, SOFT

SIDE = 160
"""Room of a picture, in pixels. Smaller ones are enlarged by a whole number."""
ROWS = 12
"""Rows of one PNG."""
_GAP, _MARGIN, _BESIDE = 14, 20, 230
_SIZE, _LINE = 15, 20


@dataclass(frozen=True)
class _Text:
    """Lines of text that fit a width."""

    lines: tuple[str, ...]
    is_bold: bool = False
    colour: str = INK

    @property
    def height(self) -> int:
        return _LINE * len(self.lines)

    def draw(self, canvas: ImageDraw.ImageDraw, left: int, top: int) -> None:
        for at, line in enumerate(self.lines):
            place = (left, top + at * _LINE)
            canvas.text(place, line, fill=self.colour, font=_font(self.is_bold))


def sheet_pngs(sheet: Sheet, rows: int = ROWS) -> list[bytes]:
    """The sheet as PNG files of at most ``rows`` rows each, in order."""
    parts = [sheet.rows[at : at + rows] for at in range(0, len(sheet.rows), rows)]
    return [png_of(_drawn(sheet.title, part)) for part in parts]


def _drawn(title: str, rows: Sequence[Row]) -> Pixels:
    n_columns = max(len(row.tiles) for row in rows)
    width = 2 * _MARGIN + _BESIDE + n_columns * (SIDE + _GAP)
    name = _Text(_wrapped(title, width - 2 * _MARGIN, is_bold=True), is_bold=True)
    heights = [_row_height(row) for row in rows]
    height = 2 * _MARGIN + name.height + sum(heights) + _GAP * len(rows)
    image = Image.new("RGB", (width, height), PAPER)
    canvas = ImageDraw.Draw(image)
    name.draw(canvas, _MARGIN, _MARGIN)
    top = _MARGIN + name.height + _GAP
    for row, row_height in zip(rows, heights, strict=True):
        canvas.line((_MARGIN, top - _GAP // 2, width - _MARGIN, top - _GAP // 2), GRID)
        _draw_row(image, row, top)
        top += row_height + _GAP
    return np.asarray(image, dtype=np.uint8)


def _draw_row(image: Image.Image, row: Row, top: int) -> None:
    canvas = ImageDraw.Draw(image)
    beside = top
    for text in _texts_beside(row):
        text.draw(canvas, _MARGIN, beside)
        beside += text.height
    above = max((_heading(tile).height for tile in row.tiles), default=0)
    for at, tile in enumerate(row.tiles):
        left = _MARGIN + _BESIDE + at * (SIDE + _GAP)
        heading = _heading(tile)
        heading.draw(canvas, left, top + above - heading.height)
        picture = Image.fromarray(_fitted(tile.picture))
        image.paste(picture, (left, top + above + 4))
        if tile.mark:
            _draw_mark(canvas, tile.mark, (left, top + above + 4), picture.size)
        _caption(tile).draw(canvas, left, top + above + 6 + SIDE)


def _draw_mark(
    canvas: ImageDraw.ImageDraw, mark: str, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    text = _Text(_wrapped(mark, size[0] - 8))
    left, bottom = corner[0], corner[1] + size[1]
    box = (left, bottom - text.height - 4, left + size[0] - 1, bottom - 1)
    canvas.rectangle(box, fill=PAPER, outline=SOFT)
    text.draw(canvas, left + 4, box[1] + 1)


def _row_height(row: Row) -> int:
    above = max((_heading(tile).height for tile in row.tiles), default=0)
    below = max((_caption(tile).height for tile in row.tiles), default=0)
    return max(above + 6 + SIDE + below, sum(text.height for text in _texts_beside(row))) + 6


def _texts_beside(row: Row) -> list[_Text]:
    width = _BESIDE - _GAP
    lines = [_Text(_wrapped(line, width), colour=SOFT) for line in row.lines]
    return [_Text(_wrapped(row.title, width, is_bold=True), is_bold=True), *lines]


def _heading(tile: Tile) -> _Text:
    return _Text(_wrapped(tile.heading, SIDE, is_bold=True), is_bold=True)


def _caption(tile: Tile) -> _Text:
    return _Text(_wrapped(tile.caption, SIDE), colour=SOFT)


def _fitted(picture: Pixels) -> Pixels:
    """The picture within ``SIDE``: large ones shrunk, small ones enlarged pixel by pixel."""
    small = shrunk(picture, SIDE)
    factor = SIDE // max(small.shape[:2])
    return small.repeat(factor, axis=0).repeat(factor, axis=1)


def _wrapped(text: str, width: int, *, is_bold: bool = False) -> tuple[str, ...]:
    """The text in lines of at most ``width`` pixels; longer words are broken."""
    font = _font(is_bold)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return tuple(lines)


@cache
def _font(is_bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", name), _SIZE)
