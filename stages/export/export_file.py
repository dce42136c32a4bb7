"""Write exported rows to a file, one table at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.csv_text import csv_of
from stages.errors import InputError
from stages.export.exported_rows import Exported
from stages.export.fiftyone import check_fields, dataset_of, samples_of
from stages.export.label_studio import tasks_of
from store.disk import replaced

Tables = Iterator[pa.Table]
Write = Callable[[Exported, pa.Schema, Tables, Path], None]
"""Writes tables of one schema, of which there is at least one, to a file."""

OF_IMAGES = ("label-studio", "fiftyone")
"""Formats whose items are images; they need paths."""


def write_rows(
    exported: Exported,
    path: Path,
    form: str,
    *,
    escape_formulas: bool = False,
    tick: Callable[[int], None] = lambda _: None,
) -> int:
    """Write the rows to a file, which is replaced if it exists; returns the number of rows.

    The file appears once it is complete. Memory does not grow with the number of rows.

    Args:
        exported: the rows.
        path: the file.
        form: a key of `WRITERS`.
        escape_formulas: for CSV, see `csv_of`.
        tick: called with the number of rows of each finished shard.

    Raises:
        InputError: the rows cannot be exported in this format, or there are none.
    """
    if form in OF_IMAGES and exported.images is None:
        raise InputError(f"--format {form}: expected --images with the folder or URL of the images")
    exported.check()
    if form == "fiftyone":
        check_fields(exported)
    tables = exported.tables(tick)
    if (first := next(tables, None)) is None:
        raise InputError(f"{exported.feature_set.name}: no row matches, expected at least one")
    n_rows = 0

    def counted() -> Tables:
        nonlocal n_rows
        for table in chain([first], tables):
            n_rows += table.num_rows
            yield table

    write = partial(_csv, escape_formulas=True) if escape_formulas else WRITERS[form]
    with replaced(path) as unfinished:
        write(exported, first.schema, counted(), unfinished)
    return n_rows


def _csv(
    _: Exported, __: pa.Schema, tables: Tables, path: Path, *, escape_formulas: bool = False
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for at, table in enumerate(tables):
            frame = table.to_pandas()
            file.write(csv_of(frame, escape_formulas=escape_formulas, header=at == 0))


def _parquet(_: Exported, schema: pa.Schema, tables: Tables, path: Path) -> None:
    with pq.ParquetWriter(path, schema) as file:
        for table in tables:
            file.write_table(table)


def _tasks(exported: Exported, _: pa.Schema, tables: Tables, path: Path) -> None:
    _write_json(path, "[", tasks_of(_rows(tables), exported), "]")


def _samples(exported: Exported, schema: pa.Schema, tables: Tables, path: Path) -> None:
    start = json.dumps(dataset_of(schema, exported), ensure_ascii=False).removesuffix("}")
    _write_json(path, f'{start}, "samples": [', samples_of(_rows(tables), exported), "]}")


WRITERS: dict[str, Write] = {
    "csv": _csv,
    "parquet": _parquet,
    "label-studio": _tasks,
    "fiftyone": _samples,
}
"""Writers by format."""


def _rows(tables: Tables) -> Iterator[dict[str, Any]]:  # Any: JSON
    """Yield the rows; numbers that JSON cannot write are null."""
    for table in tables:
        for row in table.to_pylist():
            yield {name: None if _is_not_finite(value) else value for name, value in row.items()}


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _write_json(path: Path, start: str, items: Iterator[Mapping[str, Any]], end: str) -> None:
    """Write items of a list, one per line, between two parts of JSON."""
    with path.open("w", encoding="utf-8") as file:
        file.write(start)
        for at, item in enumerate(items):
            text = json.dumps(item, ensure_ascii=False, allow_nan=False)
            file.write(f"{',' if at else ''}\n{text}")
        file.write(f"\n{end}\n")
