"""Parse conditions such as ``severity=3,5`` with the types of the columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.schema import Schema


def conditions(texts: Sequence[str], schema: Schema) -> dict[str, list[Any]]:
    """Column -> values; raises ``InputError`` for an invalid condition."""
    from stages.errors import InputError

    kinds = dict(schema.columns)
    found: dict[str, list[Any]] = {}
    for text in texts:
        column, separator, values = text.partition("=")
        if not separator or column not in kinds:
            raise InputError(
                f"--where {text}: expected COLUMN=VALUE, with one of {', '.join(kinds)}"
            )
        make = {"int64": int, "float64": float}.get(kinds[column], str)
        try:
            found.setdefault(column, []).extend(make(value) for value in values.split(","))
        except ValueError as error:
            wanted = "a whole number" if make is int else "a number"
            raise InputError(
                f"--where {text}: expected {wanted} for {column}, found {values!r}{_hint(column)}"
            ) from error
    return found


def _hint(column: str) -> str:
    """How to look up the number of a class, for columns of class numbers."""
    if column not in ("label", "prediction"):
        return ""
    return "; classes are given by number, `intro-pipe extract --dry-run` lists them"
