"""Figures as small, reproducible, self-contained SVG for light and dark backgrounds."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from pipeline.terminal import printable
from stages.report.palette import SETTINGS
from stages.sheets.theme import VARIABLES, css_variables

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def svg_of(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element that can be embedded in a page with others.

    Args:
        figure: figure drawn in the light colours of the theme.
        name: prefix of the ids of this figure, so that they do not collide with those of others.
        description: text for screen readers.
    """
    sink = io.StringIO()
    with rc_context(SETTINGS), warnings.catch_warnings():
        # The reader's browser draws the text, in fonts of its own.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(printable(sink.getvalue()))  # XML forbids control characters
    _strip(root)
    _rename_marks(root, name)
    for element in root.iter():
        _follow_the_page(element)
    for element in root.iter():
        _shorten(element)
    return _written(root, description)


def standalone(svg: str) -> str:
    """The element as a separate file that follows the dark mode of the reader's system."""
    style = f"<style>{css_variables('svg')}svg{{background:var(--paper)}}</style>"
    head, _, rest = svg.partition(">")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{style}{rest}\n'


def _strip(root: ElementTree.Element) -> None:
    """Remove metadata, and styles that would leak into the page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("stroke-linejoin", "round")


def _rename_marks(root: ElementTree.Element, name: str) -> None:
    """Remove ids that nothing refers to, and make the others unique to this figure."""
    used = {mark for element in root.iter() for mark in _references(element.attrib)}
    new = {mark: f"{_plain(name)}-{at}" for at, mark in enumerate(sorted(used))}
    for element in root.iter():
        mark = element.attrib.pop("id", None)
        if mark in new:
            element.set("id", new[mark])
        if (target := element.attrib.pop(_HREF, None)) is not None:
            element.set("href", f"#{new[target[1:]]}")
        for key, value in element.attrib.items():
            element.set(key, _REFERENCE.sub(lambda found: f"url(#{new[found[1]]})", value))


def _references(attributes: Mapping[str, str]) -> Iterator[str]:
    for key, value in attributes.items():
        if key == _HREF:
            yield value[1:]
        yield from _REFERENCE.findall(value)


def _follow_the_page(element: ElementTree.Element) -> None:
    for key in ("style", "fill", "stroke"):
        value = element.get(key)
        if value is None:
            continue
        for name, (light, _) in VARIABLES.items():
            value = value.replace(light, f"var(--{name},{light})")
        if element.tag == f"{{{_SVG}}}text":
            value = re.sub(r"'DejaVu Sans'(, sans-serif)?", _FONT, value)
        element.set(key, value)


def _shorten(element: ElementTree.Element) -> None:
    """Round coordinates to hundredths of a point, and remove what does nothing or is repeated.

    These are spaces, rotations by 0, and the style that all children of an element have.
    """
    for key in element.attrib.keys() & {"d", "height", "points", "transform", "width", "x", "y"}:
        short = _DECIMALS.sub(lambda found: f"{float(found[0]):.2f}", element.attrib[key])
        element.set(key, " ".join(short.split()))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    styles = {child.get("style") for child in element}
    if len(element) > 1 and len(styles) == 1 and None not in styles and not element.get("style"):
        element.set("style", styles.pop() or "")
        for child in element:
            del child.attrib["style"]


def _written(root: ElementTree.Element, description: str) -> str:
    title = ElementTree.Element(f"{{{_SVG}}}title")
    title.text = description
    root.insert(0, title)
    root.set("role", "img")
    ElementTree.register_namespace("", _SVG)
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r">\s+<", "><", text)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())
