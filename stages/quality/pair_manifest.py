"""Manifests of pairs: tables with the columns reference, distorted, mos and std."""

from __future__ import annotations

from math import isfinite, nan
from pathlib import Path

import pyarrow as pa

from stages.data.manifest import SUFFIXES, read_table_file
from stages.data.registry import name_of
from stages.errors import DataNotFoundError, InputError
from stages.quality.pairs import UNKNOWN, Pair, Pairs

FILES = ("reference", "distorted")
MOST_LEVEL = 10**6


def manifest_pairs(path: Path) -> Pairs:
    """The pairs that a CSV or Parquet file lists; paths are relative to it, or absolute.

    ``mos``, ``std``, ``distortion`` and ``level`` are optional. A pair without a ``mos`` is scored
    and left out of the agreement with people. A missing image is a failed row.

    Raises:
        DataNotFoundError, InputError: no such file, it is not a table, lacks a column, or a value
            is not of its type.
    """
    if not path.exists():
        raise DataNotFoundError(f"{path}: no such file, expected a CSV or Parquet table of pairs")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: expected a table in a .csv or .parquet file")
    table = read_table_file(path, (*FILES, "distortion"))
    if missing := [name for name in FILES if name not in table.column_names]:
        raise InputError(
            f"{path}: expected the columns reference and distorted, and mos if people rated the "
            f"images, found no {missing[0]} (columns: {', '.join(table.column_names[:8])})"
        )
    if table.num_rows == 0:
        raise InputError(f"{path}: expected a pair per row below the header, found no rows")
    references, distorted = (_texts(table, name, path) for name in FILES)
    distortions = _texts(table, "distortion", path)
    mos, std = (_numbers(table, name, path) for name in ("mos", "std"))
    levels = _levels(table, path)
    rows = zip(references, distorted, mos, std, distortions, levels, strict=True)
    opinions = "mos of the manifest" if "mos" in table.column_names else ""
    return Pairs(
        name_of(path), path.parent, tuple(Pair(*row) for row in rows), "manifest", opinions
    )


def _texts(table: pa.Table, name: str, path: Path) -> list[str]:
    """A column of text; empty texts if it does not exist and is optional."""
    if name not in table.column_names:
        return [""] * table.num_rows
    kind = table[name].type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{path}: its column '{name}' is {kind}, expected text")
    values = [value or "" for value in table[name].to_pylist()]
    if name in FILES and "" in values:
        raise InputError(f"{path}: row {values.index('') + 1} has no {name}, expected a path")
    return values


def _numbers(table: pa.Table, name: str, path: Path) -> list[float]:
    """A column of numbers; NaN where there is none."""
    if name not in table.column_names:
        return [nan] * table.num_rows
    values = table[name].to_pylist()
    for row, value in enumerate(values, start=1):
        if not _is_missing(value) and not (isinstance(value, int | float) and isfinite(value)):
            raise InputError(f"{path}: row {row} has {name} {value!r}, expected a finite number")
    return [nan if _is_missing(value) else float(value) for value in values]


def _is_missing(value: object) -> bool:
    return value is None or value == "" or value != value  # NaN


def _levels(table: pa.Table, path: Path) -> list[int]:
    """The column level; `UNKNOWN` where there is none."""
    values = _numbers(table, "level", path)
    for row, value in enumerate(values, start=1):
        if isfinite(value) and not (value.is_integer() and 0 <= value <= MOST_LEVEL):
            raise InputError(
                f"{path}: row {row} has level {value:g}, expected a whole number from 0 to "
                f"{MOST_LEVEL:,}"
            )
    return [int(value) if isfinite(value) else UNKNOWN for value in values]
