"""Parquet files of tables whose size in memory is checked before reading and before writing."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Sequence
from typing import IO, TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import pandas as pd

MAX_TABLE_BYTES = 2**30
"""Maximum memory of the columns read from one file: five million rows of typical samples.

A file of kilobytes can expand to gigabytes, since a repeated string is stored only once.
"""

_OFFSET_BYTES, _MIN_ROW_BYTES = 4, 8


def read_table(
    data: bytes,
    columns: Sequence[str] | None = None,
    *,
    n_rows: int | None = None,
    expected: pa.Schema | None = None,
    is_decoded: bool = True,
) -> pa.Table:
    """Read a Parquet file as a table, without the file's key-value metadata.

    Args:
        data: the whole file.
        columns: read only these, in this order.
        n_rows: number of rows that the file must have.
        expected: names and types, in their order, that the columns to read must have in the file.
        is_decoded: False leaves text as the file has it: the distinct values, and the number of one
            of them for each row.

    Raises:
        ValueError: a column is missing, occurs twice or has a type other than numbers, times or
            text, the number of rows or the columns differ from those expected, or the table would
            take more than ``MAX_TABLE_BYTES``.
        pa.ArrowException, OSError: not a Parquet file, or a page checksum mismatch.
    """
    metadata = pq.read_metadata(pa.BufferReader(data))
    return _read(data, metadata, columns, n_rows, expected=expected, is_decoded=is_decoded)


def read_plain_columns(
    source: str | IO[bytes], but: Collection[str] = (), *, pre_buffer: bool = False
) -> pa.Table:
    """The numbers, times and texts of any Parquet file, with the file's key-value metadata.

    Columns of other types, whose size in memory is known only after they are read, are null.

    Args:
        source: path of the file, or the open file.
        but: leave out these columns.
        pre_buffer: request all bytes at once, for a file that is not on a disk.

    Raises:
        ValueError: a column occurs twice, the file contradicts itself, or the table would take
            more than ``MAX_TABLE_BYTES``.
        pa.ArrowException, OSError: not a Parquet file, or damaged.
    """
    metadata = pq.read_metadata(source)
    found = metadata.schema.to_arrow_schema()
    _check_distinct(found.names)
    schema = pa.schema([each for each in found if each.name not in but], found.metadata)
    plain = pa.schema([each for each in schema if _is_plain(each.type)])
    table = _encoded(source, metadata, plain, pre_buffer=pre_buffer).cast(plain)
    table.validate(full=True)
    columns = [
        table[each.name] if _is_plain(each.type) else pa.nulls(metadata.num_rows, each.type)
        for each in schema
    ]
    return pa.table(columns, schema=schema)


def read_frame(data: bytes) -> pd.DataFrame:
    """Read a Parquet file as a data frame with the column types that pandas wrote.

    Raises what `read_table` raises, and ``ValueError`` if the metadata for pandas is damaged or
    turns a column into an index.
    """
    metadata = pq.read_metadata(pa.BufferReader(data))
    table = _read(data, metadata).replace_schema_metadata(metadata.metadata)
    try:
        frame: pd.DataFrame = table.to_pandas()
    except (ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"its metadata for pandas is damaged: {error!r}") from error
    if list(frame.columns) != table.column_names:
        raise ValueError("its metadata for pandas turns a column into an index")
    return frame


def write_table(table: pa.Table) -> bytes:
    """Write a Parquet file with page checksums; raises ``ValueError`` if it would be too large."""
    _check_bytes(table.nbytes)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    _check_bytes(_stored_bytes(pq.read_metadata(sink), table.schema))
    return sink.getvalue()


def _read(
    data: bytes,
    metadata: pq.FileMetaData,
    columns: Sequence[str] | None = None,
    n_rows: int | None = None,
    *,
    expected: pa.Schema | None = None,
    is_decoded: bool = True,
) -> pa.Table:
    schema = metadata.schema.to_arrow_schema().remove_metadata()
    _check_distinct(schema.names)
    if columns is not None:
        if missing := set(columns) - set(schema.names):
            raise ValueError(f"there is no column {', '.join(sorted(missing))}")
        schema = pa.schema([schema.field(name) for name in columns])
    if n_rows is not None and metadata.num_rows != n_rows:
        raise ValueError(f"expected {n_rows} rows, found {metadata.num_rows}")
    _check_kinds(schema)
    if expected is not None and schema != expected:
        raise ValueError(f"expected the columns {_listed(expected)}, found {_listed(schema)}")
    encoded = _encoded(pa.BufferReader(data), metadata, schema)
    return encoded.cast(schema) if is_decoded else encoded


def _encoded(
    source: str | IO[bytes] | pa.NativeFile,
    metadata: pq.FileMetaData,
    schema: pa.Schema,
    *,
    pre_buffer: bool = False,
) -> pa.Table:
    """The columns of a schema, with text as the file has it, whose size decoded is checked."""
    _check_bytes(max(_MIN_ROW_BYTES * metadata.num_rows, _stored_bytes(metadata, schema)))
    strings = [field.name for field in schema if _is_string(field.type)]
    # Without Arrow's threads: a thread that releases a Python buffer at exit aborts Python.
    file = pq.ParquetFile(
        source,
        metadata=metadata,
        pre_buffer=pre_buffer,
        read_dictionary=strings,
        page_checksum_verification=True,
    )
    encoded = file.read(schema.names, use_threads=False, use_pandas_metadata=False)
    encoded = encoded.select(schema.names)
    if sum(_most_bytes(column) for column in encoded.columns) > MAX_TABLE_BYTES:
        _check_bytes(sum(_decoded_bytes(column) for column in encoded.columns))
    return encoded.replace_schema_metadata()


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _check_distinct(names: Sequence[str]) -> None:
    if twice := sorted(name for name, n in Counter(names).items() if n > 1):
        raise ValueError(f"expected columns of different names, found {', '.join(twice)} twice")


def _check_kinds(schema: pa.Schema) -> None:
    """Refuse columns whose size in memory is known only after they are read."""
    for field in schema:
        if not _is_plain(field.type):
            raise ValueError(
                f"column {field.name} is {field.type}: expected numbers, times or text"
            )


def _is_plain(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_primitive(kind) or pa.types.is_null(kind) or _is_string(kind))


def _is_string(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string))


def _stored_bytes(metadata: pq.FileMetaData, schema: pa.Schema) -> int:
    """Minimum size of the columns, according to the file's own metadata.

    Raises ``ValueError`` if the file gives different numbers of rows in different places.
    """
    width = sum(_width(field.type) for field in schema)
    names, stored, n_rows = set(schema.names), 0, 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        n_rows += group.num_rows
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema.partition(".")[0] not in names:
                continue
            stored += chunk.total_uncompressed_size
            if chunk.num_values != group.num_rows:  # Arrow reads this many values
                raise ValueError(
                    f"column {chunk.path_in_schema}: expected {group.num_rows} values in a part, "
                    f"found {chunk.num_values}"
                )
    if n_rows != metadata.num_rows:
        raise ValueError(f"expected parts of {metadata.num_rows} rows together, found {n_rows}")
    return max(width * int(n_rows), int(stored))


def _width(kind: pa.DataType) -> int:
    """Bytes of a value; for a string, without its characters."""
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:  # a type without a fixed width
        return _OFFSET_BYTES


def _most_bytes(column: pa.ChunkedArray) -> int:
    """At least the bytes after decoding: no text is longer than all distinct ones together."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return sum(
        len(chunk) * (int(chunk.dictionary.nbytes) + _OFFSET_BYTES) for chunk in column.chunks
    )


def _decoded_bytes(column: pa.ChunkedArray) -> int:
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return sum(_string_bytes(chunk) for chunk in column.chunks)


def _string_bytes(chunk: pa.DictionaryArray) -> int:
    """Bytes of an array of strings after decoding."""
    import pyarrow.compute as pc  # importing it takes long, and a query rarely needs it

    lengths = pc.binary_length(chunk.dictionary)
    return int(pc.sum(pc.take(lengths, chunk.indices)).as_py() or 0) + _OFFSET_BYTES * len(chunk)


def _check_bytes(n_bytes: int) -> None:
    if n_bytes > MAX_TABLE_BYTES:
        raise ValueError(
            f"expected a table of at most {MAX_TABLE_BYTES / 2**30:g} GiB, found one of "
            f"{n_bytes / 2**30:.1f} GiB"
        )
