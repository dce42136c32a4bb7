"""Configure Sphinx: `make docs` builds the pages of this folder into a site."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

import command_line
import contents
import python_api

project = "intro-pipe"
author = "the authors of intro-pipe"
version = release = version_of("intro-pipe")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of libraries, whose pages are not part of the site

# Headings get the anchors that GitHub gives them, so that a link works in both places.
myst_heading_anchors = 4

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"intro-pipe {release}"
html_show_sphinx = False
html_show_copyright = False


def _complete(_app: Sphinx, page: str, source: list[str]) -> None:
    """Add what a page does not hold on disk: its table of contents, what is generated."""
    source[0] = contents.with_toctrees(page, source[0])
    for generated in (command_line, python_api):
        if generated.MARK in source[0]:
            source[0] = source[0].replace(generated.MARK, generated.reference())


def setup(app: Sphinx) -> None:
    """Register the hook that completes the pages."""
    app.connect("source-read", _complete)
