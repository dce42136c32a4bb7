"""A contact sheet as one HTML file, which refers to nothing outside it."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from stages.sheets.encoding import EXACT_SIDE, data_uri, shrunk
from stages.sheets.overlays import Pixels, coloured
from stages.sheets.sheet import Sheet
from stages.sheets.theme import page_style, page_template

MAX_SIDE = 288
"""Larger pictures are shrunk to this many pixels."""


def sheet_html(sheet: Sheet) -> str:
    """The sheet as a self-contained page, for wide and narrow screens, light and dark."""
    css = (files("stages.sheets") / "sheet.css").read_text(encoding="utf-8")
    template = page_template("stages.sheets", "sheet.html.jinja")
    return template.render(
        sheet=sheet,
        style=page_style(css),
        source=lambda picture: data_uri(shrunk(picture, MAX_SIDE)),
        is_small=_is_small,
        key=_key(sheet.colour_map),
    )


def _is_small(picture: Pixels) -> bool:
    """Whether a picture is enlarged on the page, where each of its pixels stays a square."""
    return bool(max(picture.shape[:2]) <= EXACT_SIDE)


def _key(colour_map: str | None) -> str:
    """The colour map as a CSS gradient."""
    if colour_map is None:
        return ""
    stops = coloured(np.linspace(0, 1, 17), colour_map)
    return f"linear-gradient(90deg,{','.join(f'#{stop.tobytes().hex()}' for stop in stops)})"
