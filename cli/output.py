"""Prints results on stdout, as text or JSON, and notes on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.terminal import printable, printable_line

if TYPE_CHECKING:
    import pandas as pd


def emit(result: Any, text: str, *, as_json: bool) -> None:
    """Print the result as JSON, or its text."""
    print(json.dumps(plain(result), indent=2, allow_nan=False) if as_json else printable(text))


def note(line: str) -> None:
    """Print a line that is not a result, on stderr."""
    print(printable(line), file=sys.stderr)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Rows as an aligned text table; numbers are right-aligned, fractions have four digits.

    >>> print(table([{"name": "f", "accuracy": 0.5}]))
    name  accuracy
    f       0.5000
    """
    if not rows:
        return "(nothing)"
    columns = columns or list(rows[0])
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    right = [all(_is_number(row.get(name)) for row in rows) for name in columns]
    widths = [max(len(name), *(len(line[at]) for line in cells)) for at, name in enumerate(columns)]
    lines = [list(map(printable_line, columns)), *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


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
