"""Prints results on stdout, as text or JSON, and notes on stderr."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.terminal import printable, printable_line

if TYPE_CHECKING:
    import pandas as pd


_NAMES_SHARE = 0.6
"""Share of the width that the names which each part of a table repeats may take."""


def emit(result: Any, text: str, *, as_json: bool) -> None:
    """Print the result as JSON, or its text."""
    print(json.dumps(plain(result), indent=2, allow_nan=False) if as_json else printable(text))


def note(line: str) -> None:
    """Print a line that is not a result, on stderr."""
    print(printable(line), file=sys.stderr)


def table(
    rows: Sequence[Mapping[str, Any]],  # Any: anything that can be printed
    columns: Sequence[str] = (),
    *,
    width: int | None = None,
) -> str:
    """Rows as an aligned text table; numbers are right-aligned, fractions have four digits.

    A table that is too wide becomes several below each other, each of which begins with the columns
    of names. It stays one table where these or a single column leave no room.

    Args:
        rows: values by column.
        columns: columns to show. (default: those of the first row)
        width: maximum number of characters of a line. (default: `terminal_width`)

    >>> print(table([{"name": "f", "accuracy": 0.5}]))
    name  accuracy
    f       0.5000
    >>> print(table([{"name": "f", "accuracy": 0.5, "error": 0.5}], width=15))
    name  accuracy
    f       0.5000
    <BLANKLINE>
    name   error
    f     0.5000
    """
    if not rows:
        return "(nothing)"
    shown = [_column(name, [row.get(name) for row in rows]) for name in columns or rows[0]]
    parts = _parts(shown, terminal_width() if width is None else width)
    return "\n\n".join(
        "\n".join("  ".join(line).rstrip() for line in zip(*part, strict=True)) for part in parts
    )


def terminal_width() -> int:
    """Columns of the terminal; output to a file or another program is as wide as it is."""
    is_known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return shutil.get_terminal_size().columns if is_known else sys.maxsize


def _column(name: str, values: Sequence[Any]) -> list[str]:
    """The header and the cells of a column, of one width."""
    cells = [printable_line(name), *map(_cell, values)]
    width, to_right = max(map(len, cells)), all(map(_is_number, values))
    return [cell.rjust(width) if to_right else cell.ljust(width) for cell in cells]


def _parts(columns: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """The columns in parts that fit into a width; each begins with the columns of names."""
    if _width_of(columns) <= width:
        return [list(columns)]
    names = [column for column in columns if any(cell[:1].isalpha() for cell in column[1:])]
    for leading in (names, names[:1]):
        parts = [leading]
        for column in (each for each in columns if each not in leading):
            if _width_of([*parts[-1], column]) > width and parts[-1] is not leading:
                parts.append(leading)
            parts[-1] = [*parts[-1], column]
        is_readable = _width_of(leading) <= _NAMES_SHARE * width
        if is_readable and all(_width_of(part) <= width for part in parts):
            return parts
    return [list(columns)]


def _width_of(columns: Sequence[list[str]]) -> int:
    return sum(len(column[0]) + 2 for column in columns) - 2


def frame_table(frame: pd.DataFrame) -> str:
    """A data frame as an aligned text table."""
    rows: list[Any] = frame.to_dict(orient="records")
    return table(rows, [str(name) for name in frame.columns])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else printable_line(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """The value as JSON types: numpy numbers as numbers, NaN as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
