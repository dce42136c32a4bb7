"""Figures as SVG that stands alone: small, the same bytes every time, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from pipeline.terminal import printable
from stages.report.palette import SETTINGS, VARIABLES

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def svg_of(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element that a page can hold beside others.

    Args:
        figure: drawn in the colours of ``palette``.
        name: told apart by it, the marks of one figure are never those of another.
        description: what a reader who does not see it is told.
    """
    sink = io.StringIO()
    with rc_context(SETTINGS):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(printable(sink.getvalue()))  # no XML has control characters
    _strip(root)
    _rename_marks(root, name)
    for element in root.iter():
        _follow_the_page(element)
    return _written(root, description)


def standalone(svg: str) -> str:
    """The element as a file of its own, which follows the reader's system into the dark."""
    style = f"<style>{css_variables('svg')}svg{{background:var(--paper)}}</style>"
    head, _, rest = svg.partition(">")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{style}{rest}\n'


def css_variables(selector: str) -> str:
    """The colours of ``palette`` as CSS variables of a selector; paper is light."""
    light, dark = (
        ";".join(f"--{name}:{colours[at]}" for name, colours in VARIABLES.items()) for at in (0, 1)
    )
    in_the_dark = f"@media screen and (prefers-color-scheme:dark){{{selector}{{{dark}}}}}"
    return f"{selector}{{{light}}}{in_the_dark}"


def _strip(root: ElementTree.Element) -> None:
    """Take away what nobody reads: metadata, and styles that would leak into the page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("stroke-linejoin", "round")


def _rename_marks(root: ElementTree.Element, name: str) -> None:
    """Keep the ids that something refers to, under names of this figure's own."""
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
