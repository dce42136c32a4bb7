"""Commands with plain help: paragraphs as wide as the terminal, short placeholders for types.

A list that is given in two options is refused, because the first would be lost without a word.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperOption

LIST = "LIST"
"""Placeholder of the value of every option that takes a list, separated by commas."""


class PlainCommand(TyperCommand):
    """A command whose options have short placeholders, and flags none."""

    def __init__(self, *args: Any, **options: Any) -> None:  # Any: whatever typer passes
        super().__init__(*args, **options)
        self.help = _unwrapped(self.help or "")

    def get_params(self, ctx: Any) -> list[Any]:  # Any: click's home varies
        """The options and arguments, ``--help`` included."""
        return with_placeholders(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Any: click's home varies
        """Parse the arguments; refuses a list that is given in two options."""
        if not ctx.resilient_parsing:  # that is, not for completion
            given = self.make_parser(ctx).parse_args(args=[*args])[2]
            _refuse_repeated(ctx, given)
        return super().parse_args(ctx, args)


def with_placeholders(params: list[Any]) -> list[Any]:  # Any: click's home varies
    """The same parameters: options with a placeholder, arguments without a type."""
    for param in params:
        if isinstance(param, TyperOption) and param.metavar is None:
            param.metavar = _placeholder(param)
        elif isinstance(param, TyperArgument):
            param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # noqa: ARG005 - typer's
    return params


def _refuse_repeated(ctx: Any, given: list[Any]) -> None:  # Any: click's home varies
    """Fail if one of the given options takes a list and is there twice.

    Of other options the last one counts, as in most programs.
    """
    for param, n in Counter(given).items():
        if n > 1 and isinstance(param, TyperOption) and param.metavar == LIST:
            ctx.fail(f"{param.opts[0]}: expected once, found {n} times; give A,B for A and B")


def _unwrapped(text: str) -> str:
    """Each paragraph on a line of its own, for the terminal to wrap."""
    return "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))


def _placeholder(option: TyperOption) -> str:
    if option.is_flag or option.opts == ["--help"]:
        return ""
    kind = str(getattr(option, "type_descriptor", None) or getattr(option, "type", ""))
    return "N" if "int" in kind.lower() else "X" if "float" in kind.lower() else "TEXT"
