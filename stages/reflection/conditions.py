"""Conditions on sample columns, such as ``severity=3,5`` or ``prediction != label``.

This module imports neither numpy nor pyarrow: the command line shows `WHERE` in its help.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from store.schema import Schema

WHERE = (
    "Filter rows by a condition on a column: severity=3,5, prediction!=label, confidence<0.5; may "
    "be repeated, and then all must hold."
)
"""Help of the option."""

COMPARISONS: Mapping[str, str] = {
    "!=": "not_equal",
    "<=": "less_equal",
    ">=": "greater_equal",
    "=": "equal",
    "<": "less",
    ">": "greater",
}
"""Comparisons and Arrow's names of them; those of two characters first, for parsing."""

CLASSES = ("label", "prediction")
"""Columns of class numbers, in which -1 is an unknown class."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of a column with values, or with another column.

    Attributes:
        column: name of the column.
        values: one value; ``=`` and ``!=`` take several: any of them, and none of them.
        comparison: a key of `COMPARISONS`.
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

    def holds(self, samples: pa.Table) -> pa.ChunkedArray:
        """Flag the rows that satisfy it, shape ``(n,)``.

        A missing number satisfies no comparison. Neither does an unknown class, -1, where two
        columns are compared.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        ours = samples[self.column]
        if self.other is None and self.comparison in ("=", "!="):
            found = pc.is_in(ours, value_set=pa.array(self.values, ours.type))
            return found if self.comparison == "=" else pc.and_not(_is_known(ours), found)
        theirs = samples[self.other] if self.other else pa.scalar(self.values[0], ours.type)
        found = pc.call_function(COMPARISONS[self.comparison], [ours, theirs])
        for name in self.columns:
            found = pc.and_(found, _is_known(samples[name]))
            if name in CLASSES and self.other is not None:
                found = pc.and_(found, pc.not_equal(samples[name], -1))
        return pc.fill_null(found, False)


def conditions(texts: Sequence[str], schema: Schema) -> tuple[Condition, ...]:
    """Parse conditions with the types of the columns; raises ``InputError`` for an invalid one.

    What follows the comparison is a column if it is the name of one and both hold numbers or both
    hold text; quotes make it a value: ``site="label"``. Quoted values may contain commas.
    """
    return tuple(_condition(text, dict(schema.columns)) for text in texts)


def matching(samples: pa.Table, where: Sequence[Condition]) -> NDArray[np.bool_]:
    """Flag the rows that satisfy all conditions, shape ``(n,)``."""
    import numpy as np
    import pyarrow as pa

    from stages.reflection.groups import numbers

    keep = np.ones(samples.num_rows, dtype=bool)
    for each in where:
        keep &= numbers(each.holds(samples).cast(pa.uint8())).astype(bool)
    return keep


def _is_known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    return pc.invert(column.is_null(nan_is_null=True))


def columns_of(where: Sequence[Condition]) -> list[str]:
    """The columns that conditions read, each once."""
    return list(dict.fromkeys(name for each in where for name in each.columns))


def _condition(text: str, kinds: Mapping[str, str]) -> Condition:
    pattern = rf"(.*?)\s*({'|'.join(COMPARISONS)})=?(.*)"
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
