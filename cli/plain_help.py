"""Help of commands: paragraphs as wide as the terminal; N, X, TEXT or nothing in place of types."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperOption


class PlainCommand(TyperCommand):
    """A command whose options have short placeholders, and flags none."""

    def __init__(self, *args: Any, **options: Any) -> None:  # Any: whatever typer passes
        super().__init__(*args, **options)
        self.help = _unwrapped(self.help or "")

    def get_params(self, ctx: Any) -> list[Any]:  # Any: click's home varies
        """The options and arguments, ``--help`` included."""
        return with_placeholders(super().get_params(ctx))


def with_placeholders(params: list[Any]) -> list[Any]:  # Any: click's home varies
    """The same parameters: options with a placeholder, arguments without a type."""
    for param in params:
        if isinstance(param, TyperOption) and param.metavar is None:
            param.metavar = _placeholder(param)
        elif isinstance(param, TyperArgument):
            param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # noqa: ARG005 - typer's
    return params


def _unwrapped(text: str) -> str:
    """Each paragraph on a line of its own, for the terminal to wrap."""
    return "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))


def _placeholder(option: TyperOption) -> str:
    if option.is_flag or option.opts == ["--help"]:
        return ""
    kind = str(getattr(option, "type_descriptor", None) or getattr(option, "type", ""))
    return "N" if "int" in kind.lower() else "X" if "float" in kind.lower() else "TEXT"
