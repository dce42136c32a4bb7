"""Manifests: tables, as CSV or Parquet, that name an image file in each row.

The column ``path`` (or ``image``) has paths relative to the manifest, or absolute ones; ``label``
has classes; ``split``, if there is one, has the name of each row's split; further columns become
columns of the samples. Rows stay in the order of the manifest.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from stages.data.arrays import check_memory
from stages.data.folder import FolderReader
from stages.data.regular import refused, require_regular, size_of_regular
from stages.data.resize import Resize
from stages.data.sample_table import (
    check_columns,
    sample_table,
    splits_in,
    table_source,
    with_numbers,
)
from stages.data.source import ReaderSource
from stages.errors import DataNotFoundError, InputError
from store.tables import read_plain_columns

SUFFIXES = (".csv", ".parquet")
IMAGE_COLUMNS = ("path", "image")
"""Names of the column of paths; the first that exists is used."""


def manifest_source(path: Path, name: str, split: str, resizing: Resize) -> ReaderSource:
    """A source over the image files that a manifest names; a missing file is a failed row.

    If ``resizing`` leaves it to the layout, images are cropped.

    Raises:
        InputError: it cannot be read, lacks the column of paths, names a file twice, none of its
            files exists, or labels or columns are invalid.
    """
    table = read_table_file(path)
    column = _image_column(table)
    if not column:
        raise DataNotFoundError(
            f"{path}: expected a column 'path' (or 'image') of image files, found "
            f"{', '.join(table.column_names[:8])}"
        )
    found = sample_table(table, column, split, str(path))
    files = _files(table[column].take(found.rows), path, column)
    reader = FolderReader(path.parent, files, (-1,) * len(files))
    return table_source(
        found, reader, name, split, resizing, how_to_label=f"add a column 'label' to {path.name}"
    )


def manifest_splits(path: Path) -> tuple[str, ...]:
    """The splits of a manifest; none for a table that has no column of paths."""
    table = read_table_file(path)
    return splits_in(table) if _image_column(table) else ()


def _image_column(table: pa.Table) -> str:
    return next((each for each in IMAGE_COLUMNS if each in table.column_names), "")


def read_table_file(path: Path, texts: Sequence[str] = (*IMAGE_COLUMNS, "split")) -> pa.Table:
    """The whole table of a CSV or Parquet file.

    Columns of a CSV are numbers if all their values are, except those of ``texts``.

    Raises:
        InputError: it cannot be read, or is not a complete table.
    """
    with refused(path):
        require_regular(path)
        try:
            if path.suffix.lower() == ".csv":
                check_memory(path.stat().st_size, path)
                return _read_csv(path, texts)
            check_columns(pq.read_schema(path).names, str(path))
            return read_plain_columns(str(path))
        except InputError:
            raise
        except (pa.ArrowException, ValueError, MemoryError, csv.Error) as error:
            raise InputError(
                f"{path}: expected a complete {path.suffix[1:]} table in UTF-8 "
                f"({' '.join(str(error).split())})"
            ) from error


def _read_csv(path: Path, texts: Sequence[str]) -> pa.Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    check_columns(header, str(path))
    kinds = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()))
    return with_numbers(pa.csv.read_csv(path, convert_options=kinds), texts)


def _files(column: pa.ChunkedArray, path: Path, name: str) -> tuple[str, ...]:
    """The paths in a column, checked to be distinct."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise InputError(f"{path}: its column '{name}' is {column.type}, expected paths as text")
    files = tuple(file or "" for file in column.to_pylist())
    first: dict[str, int] = {}
    for row, file in enumerate(files, start=1):
        if first.setdefault(file, row) != row:
            raise InputError(
                f"{path}: rows {first[file]} and {row} name the same file, {file!r}, expected "
                "every image once"
            )
    if not files:
        raise InputError(f"{path}: has no rows, expected one per image")
    if row := next((row for row, file in enumerate(files, start=1) if "\0" in file), 0):
        raise InputError(f"{path}: row {row}: expected the path of a file, found a zero byte in it")
    if not any(size_of_regular(path.parent / file) >= 0 for file in files):
        raise InputError(
            f"{path}: none of its {len(files):,} files exists, the first is "
            f"{path.parent / files[0]}; relative paths start at the folder of the manifest"
        )
    return files
