"""Appearance of pages and figures: light and dark colours, and the style of text."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

INK, SOFT, GRID, PAPER = "#1f2329", "#5c6570", "#dfe3e8", "#ffffff"
SENSING, STRONG = "#4a525c", "#c2410c"
MUTED = ("#3f7fb5", "#3d9483", "#9b6fb3", "#a3862d", "#7486a6", "#b3688a")

VARIABLES = {
    "ink": (INK, "#e8eaed"),
    "soft": (SOFT, "#a3acb8"),
    "grid": (GRID, "#353b44"),
    "paper": (PAPER, "#15181c"),
    "sensing": (SENSING, "#c3cad3"),
    "strong": (STRONG, "#ff8b4d"),
    "muted-1": (MUTED[0], "#6fb0e6"),
    "muted-2": (MUTED[1], "#5fc0ad"),
    "muted-3": (MUTED[2], "#c49adb"),
    "muted-4": (MUTED[3], "#d1b455"),
    "muted-5": (MUTED[4], "#9fb0cf"),
    "muted-6": (MUTED[5], "#dd94b4"),
}
"""CSS variable -> (light colour, dark colour)."""


def css_variables(selector: str) -> str:
    """The colours as CSS variables of a selector; light when printed."""
    light, dark = (
        ";".join(f"--{name}:{colours[at]}" for name, colours in VARIABLES.items()) for at in (0, 1)
    )
    in_the_dark = f"@media screen and (prefers-color-scheme:dark){{{selector}{{{dark}}}}}"
    return f"{selector}{{{light}}}{in_the_dark}"


def page_style(css: str) -> Markup:
    """The style of a page: colours, text, and then ``css``, the rules of this kind of page."""
    theme = (files("stages.sheets") / "theme.css").read_text(encoding="utf-8")
    return Markup(css_variables(":root") + theme + css)


@cache
def page_template(package: str, name: str) -> Template:
    """A page template of a package. Values are escaped, and a missing one is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string((files(package) / name).read_text(encoding="utf-8"))
