"""Conditions as people write them: ``severity=3,5`` with the types of the columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.schema import Schema


def conditions(texts: Sequence[str], schema: Schema) -> dict[str, list[Any]]:
    """Column -> values; raises ``InputError`` for what cannot be one."""
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
            raise InputError(f"--where {text}: {column} is {kinds[column]}") from error
    return found
