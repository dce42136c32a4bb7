"""The table of contents of the site, from the lists of links that a reader of the files sees too.

A page that lists others (`index.md`, and each `README.md` of a folder) is an ordinary page of
Markdown. Each of its sections becomes a group of the sidebar, in the order of its links.
"""

import re

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#:]+)\.md\)")
"""A link to a page, as the path to it without suffix; not an image, an anchor or a URL."""

SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


def with_toctrees(page: str, text: str) -> str:
    """Add hidden toctrees to a page that lists others; return any other page unchanged."""
    if page == "index":
        _, *parts = SECTION.split(text)
        groups = list(zip(parts[::2], map(_pages, parts[1::2]), strict=True))
    elif page.endswith("/README"):
        groups = [("", [each for each in _pages(text) if not each.startswith("..")])]
    else:
        return text
    return text + "".join(_toctree(caption, pages) for caption, pages in groups if pages)


def _pages(text: str) -> list[str]:
    return list(dict.fromkeys(LINK.findall(text)))


def _toctree(caption: str, pages: list[str]) -> str:
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["\n```{toctree}", *options, "", *pages, "```\n"])
