"""Conditions on sample columns, such as ``severity=3,5`` or ``prediction != label``.

This module does not import numpy: the command line shows `WHERE` in its help.
"""

from __future__ import annotations

import csv
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from store.schema import Schema

WHERE = (
    "Filter rows by a condition on a column: severity=3,5, prediction!=label, confidence<0.5; may "
    "be repeated, and then all must hold."
)
"""Help of the option."""

OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
"""Comparisons; those of two characters first, for parsing."""

CLASSES = ("label", "prediction")
"""Columns of class numbers, in which -1 is an unknown class."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of a column with values, or with another column.

    Attributes:
        column: name of the column.
        values: one value; ``=`` and ``!=`` take several: any of them, and none of them.
        comparison: a key of `OPERATORS`.
        other: name of a column to compare with, in place of values.
    """

    column: str
    values: tuple[Any, ...] = ()
    comparison: str = "="
    other: str | None = None

    def __str__(self) -> str:
        wanted = self.other or ",".join(map(str, self.values))
        return f"{self.column}{self.comparison}{wanted}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return (self.column,) if self.other is None else (self.column, self.other)

    def holds(self, samples: pd.DataFrame) -> NDArray[np.bool_]:
        """Flag the rows that satisfy it, shape ``(n,)``.

        A missing number satisfies no comparison. Neither does an unknown class, -1, where two
        columns are compared.
        """
        ours = samples[self.column]
        is_known = ours.notna().to_numpy()
        if self.other is None and self.comparison in ("=", "!="):
            found: NDArray[np.bool_] = ours.isin(list(self.values)).to_numpy()
            return found if self.comparison == "=" else ~found & is_known
        compare = OPERATORS[self.comparison]
        if self.other is None:
            flags: NDArray[np.bool_] = compare(ours, self.values[0]).to_numpy(bool)
            return flags & is_known
        found = compare(ours, samples[self.other]).to_numpy(bool)
        for name in self.columns:
            found = found & samples[name].notna().to_numpy()
            if name in CLASSES:
                found = found & (samples[name] != -1).to_numpy()
        return found


def conditions(texts: Sequence[str], schema: Schema) -> tuple[Condition, ...]:
    """Parse conditions with the types of the columns; raises ``InputError`` for an invalid one.

    What follows the comparison is a column if it is the name of one and both hold numbers or both
    hold text; quotes make it a value: ``site="label"``. Quoted values may contain commas.
    """
    return tuple(_condition(text, dict(schema.columns)) for text in texts)


def matching(samples: pd.DataFrame, where: Sequence[Condition]) -> NDArray[np.bool_]:
    """Flag the rows that satisfy all conditions, shape ``(n,)``."""
    import numpy as np

    keep = np.ones(len(samples), dtype=bool)
    for each in where:
        keep &= each.holds(samples)
    return keep


def columns_of(where: Sequence[Condition]) -> list[str]:
    """The columns that conditions read, each once."""
    return list(dict.fromkeys(name for each in where for name in each.columns))


def _condition(text: str, kinds: Mapping[str, str]) -> Condition:
    pattern = rf"(.*?)\s*({'|'.join(OPERATORS)})=?(.*)"
    parts = re.fullmatch(pattern, text, re.DOTALL)
    column = parts[1].strip() if parts else ""
    if parts is None or column not in kinds:
        raise InputError(
            f"--where {text}: expected COLUMN=VALUE, or another comparison (!=, <, <=, >, >=) of a "
            f"column with a value or a column; the columns are {', '.join(kinds)}"
        )
    comparison, wanted = parts[2], parts[3].strip()
    if wanted in kinds and _is_text(kinds[wanted]) == _is_text(kinds[column]):
        return Condition(column, (), comparison, wanted)
    values = tuple(_value(text, column, kinds[column], each) for each in _items(wanted))
    if len(values) != 1 and comparison not in ("=", "!="):
        raise InputError(f"--where {text}: expected one value after {comparison}")
    return Condition(column, values, comparison)


def _items(text: str) -> list[str]:
    """The values of a list that is separated by commas."""
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error:
        return text.split(",")
    return rows[0] if len(rows) == 1 and rows[0] else [text]


def _value(text: str, column: str, kind: str, word: str) -> Any:  # Any: of the column's type
    make = {"int64": int, "float64": float}.get(kind, str)
    try:
        return make(word)
    except ValueError as error:
        wanted = "a whole number" if make is int else "a number"
        raise InputError(
            f"--where {text}: expected {wanted} for {column}, found {word!r}{_hint(column)}"
        ) from error


def _is_text(kind: str) -> bool:
    return kind not in ("int64", "float64")


def _hint(column: str) -> str:
    """How to look up the number of a class, for columns of class numbers."""
    if column not in CLASSES:
        return ""
    return "; classes are given by number, `intro-pipe extract --dry-run` lists them"
