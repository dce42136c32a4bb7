"""The reference of the Python API: an autodoc directive for each name of `intro_pipe`."""

import inspect

import intro_pipe

MARK = "<!-- Generated when the site is built: every public name, from its docstring. -->"
"""The line of a page that the reference replaces."""


def reference() -> str:
    """A section for each name, with signature, arguments and, for classes, members."""
    return "\n".join(f"## {name}\n\n{_documented(name)}\n" for name in intro_pipe.__all__)


def _documented(name: str) -> str:
    is_class = inspect.isclass(getattr(intro_pipe, name))
    kind = "autoclass" if is_class else "autofunction"
    members = ["   :members:"] if is_class else []
    return "\n".join(["```{eval-rst}", f".. {kind}:: intro_pipe.{name}", *members, "```"])
