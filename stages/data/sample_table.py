"""Tables with one row per image: labels, class names, splits, and columns of the samples."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.data.arrays import MAX_UNNAMED_CLASSES, check_label_range
from stages.data.class_names import numbers
from stages.data.listing import tally
from stages.data.resize import Resize
from stages.data.source import Reader, ReaderSource, Rows
from stages.errors import DataNotFoundError, InputError

TAKEN = ("row", "sample_id", "prediction", "confidence", "status")
"""Columns that every feature set has."""

OWN_NAMES = "columns with a name that the store uses itself"
OTHER_TYPES = "columns that are neither numbers nor text"
MAX_COLUMNS = 1_000
_HASHED_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class SampleTable:
    """The labels and further columns of images.

    Attributes:
        columns: one row per image: ``label``, int64 with -1 = unknown, then further columns of
            type int64, float64 or string.
        class_names: name of each label; empty if no label is known.
        is_named: whether the table names its classes.
        rows: position of each row in the table that was read, int64.
        left_out: reason and name of each column that is not read.
    """

    columns: pa.Table
    class_names: tuple[str, ...]
    is_named: bool
    rows: NDArray[np.int64]
    left_out: tuple[tuple[str, str], ...]

    @property
    def extra_columns(self) -> tuple[tuple[str, str], ...]:
        """``(name, type)`` of the columns beside the label."""
        schema = self.columns.schema
        kinds = {pa.int64(): "int64", pa.float64(): "float64", pa.string(): "string"}
        return tuple((each.name, kinds[each.type]) for each in schema if each.name != "label")


@dataclass(frozen=True, slots=True)
class TableReader:
    """The images of another reader with the columns of a table, label included."""

    reader: Reader
    columns: pa.Table

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``, resized."""
        rows = self.reader.read(start, stop, resizing)
        part = self.columns.slice(start, stop - start)
        columns = {name: _values(part[name]) for name in part.column_names}
        return replace(rows, columns={**rows.columns, **columns})

    def labels(self) -> NDArray[np.int64]:
        """Label of each row, int64; -1 = unknown."""
        return _values(self.columns["label"])

    def held_bytes(self) -> int:
        """Memory in bytes that the data takes while a process reads from it."""
        return self.reader.held_bytes() + int(self.columns.nbytes)

    def content(self) -> str:
        """Hash of the images and of all columns, hex."""
        digest = hashlib.sha256(self.reader.content().encode())
        for name in self.columns.column_names:
            digest.update(f"\n{name} {self.columns.schema.field(name).type}\n".encode())
            for start in range(0, self.columns.num_rows, _HASHED_ROWS):
                values = self.columns[name].slice(start, _HASHED_ROWS)
                digest.update(json.dumps(values.to_pylist()).encode())
        return digest.hexdigest()


def sample_table(table: pa.Table, images: str, split: str, where: str) -> SampleTable:
    """Labels and columns of the rows of one split; the column ``images`` is not among them.

    A column ``label`` has class numbers or the names of classes, which are numbered in string
    order. If there is a column ``split``, only rows of that split are taken, but the classes are
    those of all rows. Missing labels are -1, missing numbers NaN, and missing texts empty.

    Raises:
        InputError: a label is invalid, two columns have the same name, or the split has no rows.
    """
    check_columns(table.column_names, where)
    labels, class_names, is_named = _labels(table, where)
    rows = _rows_of(split, table, where)
    others = [name for name in table.column_names if name not in ("label", "split", images)]
    left_out = [(OWN_NAMES, name) for name in others if name in TAKEN]
    found = {name: _sample_column(table[name]) for name in others if name not in TAKEN}
    columns = {name: column for name, column in found.items() if column is not None}
    left_out += [(OTHER_TYPES, name) for name in found.keys() - columns.keys()]
    return SampleTable(
        pa.table({"label": labels, **columns}).take(rows),
        class_names,
        is_named,
        rows,
        tuple(sorted(left_out)),
    )


def table_source(
    table: SampleTable,
    reader: Reader,
    name: str,
    split: str,
    resizing: Resize,
    *,
    how_to_label: str,
    left_out: Sequence[tuple[str, str]] = (),
) -> ReaderSource:
    """A source over images with a table; images are cropped if the layout decides.

    Args:
        table: one row per image.
        reader: reads the images in the order of the table.
        name: name of the source, and of its family.
        split: the split.
        resizing: how images become those of ``read``.
        how_to_label: where labels are expected, for a table without them.
        left_out: reason and name of what is left out beside columns.
    """
    return ReaderSource(
        name=name,
        split=split,
        family=name,
        class_names=table.class_names,
        resizing=resizing.in_layout(stretches=False),
        native=None,
        n_rows=len(table.rows),
        reader=TableReader(reader, table.columns),
        extra_columns=table.extra_columns,
        is_named=table.is_named,
        left_out=tally([*left_out, *table.left_out]),
        how_to_label="" if table.class_names else how_to_label,
    )


def check_columns(names: Collection[str], where: str) -> None:
    """Refuse too many columns, and two of the same name; call before a table is read.

    Raises:
        InputError: as the message says.
    """
    if len(names) > MAX_COLUMNS:
        raise InputError(
            f"{where}: has {len(names):,} columns, expected at most {MAX_COLUMNS:,}: leave some out"
        )
    if twice := [name for name, n in Counter(list(names)).items() if n > 1]:
        raise InputError(f"{where}: has two columns {twice[0]!r}, expected one: rename the other")


def splits_in(table: pa.Table) -> tuple[str, ...]:
    """The splits in the column ``split``; ``test`` if there is none."""
    if "split" not in table.column_names:
        return ("test",)
    return tuple(sorted(set(_splits(table).to_pylist()) - {""}))


def _splits(table: pa.Table, where: str = "the table") -> pa.ChunkedArray:
    """The column ``split`` as text."""
    text = _text(_plain(table["split"]))
    if text is None:
        kind = table.schema.field("split").type
        raise InputError(f"{where}: its column 'split' is {kind}, expected names of splits as text")
    return text


def _rows_of(split: str, table: pa.Table, where: str) -> NDArray[np.int64]:
    """Positions of the rows of a split; all if the table has no column of splits."""
    if "split" not in table.column_names:
        return np.arange(table.num_rows)
    rows = np.flatnonzero(pc.equal(_splits(table, where), split))
    if not len(rows):
        raise DataNotFoundError(
            f"{where}: its column 'split' has no {split!r}, only {', '.join(splits_in(table))}: "
            "give one of these with --split"
        )
    return rows


def _labels(table: pa.Table, where: str) -> tuple[pa.Array, tuple[str, ...], bool]:
    """Labels as int64, the class names, and whether these are names rather than numbers."""
    if "label" not in table.column_names:
        return pa.array(np.full(table.num_rows, -1)), (), True
    column = _plain(table["label"])
    known = _class_names_in(table.schema)
    values = _integers(column)
    if values is not None:
        labels = np.asarray(values.fill_null(-1))
        check_label_range(labels, len(known) or MAX_UNNAMED_CLASSES, where)
        class_names = known or numbers(int(labels.max(initial=-1)) + 1)
        return pa.array(labels), class_names, bool(known)
    text = _text(column)
    if text is None:
        raise InputError(
            f"{where}: its labels are {column.type}, expected class numbers or names of classes"
        )
    class_names = tuple(sorted(set(text.to_pylist()) - {""}))
    labels = pc.index_in(text, value_set=pa.array(class_names, pa.string())).fill_null(-1)
    return labels.cast(pa.int64()).combine_chunks(), class_names, True


def _class_names_in(schema: pa.Schema) -> tuple[str, ...]:
    """Class names that Hugging Face's `datasets` writes into the metadata of a Parquet file."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        facts = json.loads((schema.metadata or {})[b"huggingface"])
        names = tuple(map(str, facts["info"]["features"]["label"]["names"]))
        "".join(names).encode()  # JSON may have lone surrogates, which cannot be stored
        return names
    return ()


def with_numbers(table: pa.Table, but: Collection[str]) -> pa.Table:
    """The table, with text columns as numbers if all their values are; not those in ``but``."""
    found = [
        None if name in but else _numbers(column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    columns = [old if new is None else new for new, old in zip(found, table.columns, strict=True)]
    return pa.table(columns, names=table.column_names)


def _sample_column(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column as int64, float64 or string; ``None`` if it is neither numbers nor text."""
    column = _plain(column)
    return _numbers(column) if _is_number(column.type) else _text(column)


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column of numbers or text as int64, or as float64 with NaN for missing values."""
    values = _integers(column)
    if values is not None and not values.null_count:
        return values
    with suppress(pa.ArrowInvalid):
        return _without_empty(column).cast(pa.float64()).fill_null(float("nan"))
    return None


def _integers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column as int64; ``None`` if it has other values. Text and 3.0 may be integers."""
    if not (_is_number(column.type) or _is_text(column.type)):
        return None
    column = _without_empty(column)
    for kinds in ((pa.int64(),), (pa.float64(), pa.int64())):
        with suppress(pa.ArrowInvalid):
            found = column
            for kind in kinds:
                found = found.cast(kind)
            return found if found.null_count < len(found) else None
    return None


def _without_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with null in place of empty text and NaN."""
    is_empty = pc.equal(column, "") if _is_text(column.type) else pc.is_nan(column)
    return pc.if_else(is_empty, pa.scalar(None, column.type), column)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without a dictionary, and with text as ``string``."""
    kind = column.type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return column.cast(pa.string() if pa.types.is_large_string(kind) else kind)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column as text; ``None`` if its values have no usual form as text."""
    kind = column.type
    is_plain = _is_number(kind) or _is_text(kind) or pa.types.is_boolean(kind)
    if is_plain or pa.types.is_temporal(kind) or pa.types.is_null(kind):
        with suppress(pa.ArrowInvalid):  # such as an unknown time zone
            return column.cast(pa.string()).fill_null("")
    return None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind))


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    if column.type == pa.string():
        return np.array(column.to_pylist(), dtype=np.str_)
    return np.array(column)
