"""Parquet tables that hold the images themselves, as Hugging Face's data sets do.

A column ``image`` (or ``img``) has the bytes of an image file, or ``{bytes, path}``; ``label`` and
further columns are those of a manifest. One row group of a file is read at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.memory import limit_bytes
from stages.data.anywhere import files_at, is_url, open_file, reached, version_of
from stages.data.encoded import EncodedReader
from stages.data.fingerprint import file_content
from stages.data.regular import refused, require_regular
from stages.data.resize import Resize
from stages.data.sample_table import check_columns, sample_table, splits_in, table_source
from stages.data.source import ReaderSource
from stages.errors import InputError
from store.tables import read_plain_columns

IMAGE_COLUMNS = ("image", "img")
_GROUPS_KEPT = 2
_MOST_REPEATED = 16
_ONE_READS = Lock()
"""Else each thread that needs rows of a row group would unpack it."""
_SPLIT = re.compile(r"(.+?)(-\d+-of-\d+.*|-\d+)?")


@dataclass(frozen=True, slots=True)
class ParquetImages:
    """A column of encoded images in one or several Parquet files with consecutive rows.

    Attributes:
        files: the files.
        column: name of the column of images.
        versions: text that identifies the version of each file; not part of the content.
        groups: file (its index) and row group, in the order of the rows.
        starts: first row of each row group, int64.
        group_bytes: unpacked size of the largest row group.
    """

    files: tuple[str, ...]
    versions: tuple[str, ...]
    column: str
    groups: tuple[tuple[int, int], ...]
    starts: NDArray[np.int64]
    group_bytes: int

    def encoded(self, numbers: NDArray[np.int64]) -> list[bytes]:
        """The bytes of the images in these rows; empty where there are none."""
        found = [b""] * len(numbers)
        group_of = np.searchsorted(self.starts, numbers, side="right") - 1
        for group in np.unique(group_of).tolist():
            at = np.flatnonzero(group_of == group)
            file, index = self.groups[group]
            with _ONE_READS:
                images = _row_group(self.files[file], self.versions[file], index, self.column)
            if isinstance(images, str):
                raise InputError(images)
            values = images.take(numbers[at] - self.starts[group]).to_pylist()
            for row, value in zip(at.tolist(), values, strict=True):
                found[row] = value or b""
        return found

    def held_bytes(self) -> int:
        """Memory of the row groups that are kept."""
        return _GROUPS_KEPT * self.group_bytes

    def content(self) -> str:
        """Hash of the files, hex."""
        return file_content({f"{at:06d}": path for at, path in enumerate(self.files)})


@lru_cache(maxsize=_GROUPS_KEPT)  # blocks of rows are smaller than row groups
def _row_group(place: str, version: str, index: int, column: str) -> pa.ChunkedArray | str:
    """The bytes of the images of a row group, or why it is refused, which is found out once.

    The version invalidates the cache on a rewrite.
    """
    facts = _metadata(place, version)
    with reached(place), refused(place), _parquet(place, facts) as file:
        try:
            images = _bounded(file, facts.row_group(index), index, column)
        except (pa.ArrowException, ValueError, MemoryError) as error:
            return (
                f"{place}: its row group {index} is damaged or too large "
                f"({' '.join(str(error).split())}): write the table again, with smaller row groups"
            )
    return pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images


def _bounded(
    file: pq.ParquetFile, group: pq.RowGroupMetaData, index: int, column: str
) -> pa.ChunkedArray:
    """A column of a row group; a few bytes may stand for an image that is repeated in each row.

    Raises:
        ValueError: it takes more memory than row groups may take, or than this one says.
    """
    most = min(_most_bytes(), _MOST_REPEATED * group.total_byte_size + 2**26)
    found, n_bytes = [], 0
    n_rows = max(1, min(most // max(group.total_byte_size, 1), group.num_rows))
    for batch in file.iter_batches(n_rows, row_groups=[index], columns=[column]):
        found.append(batch.column(0))
        if (n_bytes := n_bytes + batch.nbytes) > most:
            raise ValueError(f"unpacks to more than {most:,} bytes")
    return pa.chunked_array(found, file.schema_arrow.field(column).type)


def _most_bytes() -> int:
    """Largest size in memory of a row group."""
    return limit_bytes() // 2 // _GROUPS_KEPT


@contextmanager
def _parquet(place: str, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; at a URL, all ranges of a read are requested at once."""
    if not is_url(place):
        require_regular(place)
        with pq.ParquetFile(place, metadata=metadata) as file:
            yield file
        return
    with (
        open_file(place, reads_ahead=False) as raw,
        pq.ParquetFile(raw, metadata=metadata, pre_buffer=True) as file,
    ):
        yield file


@lru_cache(maxsize=4096)
def _metadata(place: str, version: str) -> pq.FileMetaData:
    """The footer of a file; the version invalidates the cache on a rewrite."""
    del version
    with reached(place), _parquet(place) as file:
        return file.metadata


def parquet_source(path: Path | str, name: str, split: str, resizing: Resize) -> ReaderSource:
    """A source over one split of a Parquet file, or of a folder of them; also at a URL.

    In a folder the names of the files have the splits: ``train-00000-of-00002.parquet``,
    ``test.parquet``, ``validation/0000.parquet``. If ``resizing`` leaves it to the layout, images
    are cropped.

    Raises:
        InputError: a file is damaged, a row group does not fit into memory, files have different
            columns, or labels or columns are invalid.
    """
    files = tables_at(path)
    is_folder = (str(path),) != files
    column, table = _tables(files, is_folder=is_folder)
    found = sample_table(table, column, split, str(path))
    numbers = found.rows
    if is_folder:  # each file belongs to one split
        files = tuple(file for file in files if _split_of(file) == split)
        numbers = np.arange(len(found.rows))
    images = _images(files, column)
    reader = EncodedReader(images, numbers, split)
    return table_source(
        found, reader, name, split, resizing, how_to_label="add a column 'label' to the tables"
    )


def has_image_bytes(path: Path | str) -> bool:
    """Whether a Parquet file, or the first one in a folder, has a column of encoded images."""
    files = tables_at(path)
    if not files:
        return False
    with suppress(pa.ArrowException, OSError), _parquet(files[0]) as file:
        return bool(_image_column(file.schema_arrow))
    return False


def parquet_splits(path: Path) -> tuple[str, ...]:
    """The splits of a Parquet file or of a folder of them."""
    files = tables_at(path)
    return splits_in(_tables(files, is_folder=(str(path),) != files)[1])


def tables_at(path: Path | str) -> tuple[str, ...]:
    """The Parquet file at a path or URL, or those in a folder or in its subfolders, sorted."""
    return files_at(str(path), ".parquet")


def _tables(files: Sequence[str], *, is_folder: bool) -> tuple[str, pa.Table]:
    """Name of the column of images, and all other columns of all files, with their splits."""
    tables: list[pa.Table] = []
    for file in files:
        with refused(file), reached(file):
            try:
                column, table = _columns_of(file)
                if is_folder:
                    splits = pa.array([_split_of(file)] * len(table), pa.string())
                    table = table.append_column("split", splits)
                tables = [pa.concat_tables([*tables, table], promote_options="permissive")]
            except InputError:
                raise
            except (pa.ArrowException, ValueError, MemoryError) as error:
                raise InputError(
                    f"{file}: expected a complete Parquet file with the columns of "
                    f"{PurePosixPath(files[0]).name} ({' '.join(str(error).split())})"
                ) from error
        if not column:
            raise InputError(
                f"{file}: has no images in a column {' or '.join(IMAGE_COLUMNS)}, expected the "
                f"columns of {PurePosixPath(files[0]).name}: move it away"
            )
    return column, tables[0]


def _columns_of(place: str) -> tuple[str, pa.Table]:
    """Name of the column of images of a file, and its other columns."""
    with _parquet(place) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
    check_columns(schema.names, place)
    column = _image_column(schema)
    with open_file(place, reads_ahead=False) as raw:
        others = read_plain_columns(raw, (column,), pre_buffer=is_url(place))
    # A table without columns has no rows.
    return column, others if others.num_columns else pa.table({"label": pa.nulls(n_rows)})


def _image_column(schema: pa.Schema) -> str:
    """Name of the column of encoded images; empty if there is none."""
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.types[schema.names.index(name)]
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind = kind.field("bytes").type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
    return ""


def _split_of(file: str) -> str:
    """The split in the name of a file, or the name of its folder if the file's is a number."""
    path = PurePosixPath(file)
    if path.stem.isdecimal():
        return path.parent.name
    found = _SPLIT.fullmatch(path.stem)
    return found[1] if found else path.stem


def _images(files: tuple[str, ...], column: str) -> ParquetImages:
    groups: list[tuple[int, int]] = []
    n_rows: list[int] = []
    largest = 0
    versions = tuple(map(version_of, files))
    for at, file in enumerate(files):
        facts = _metadata(file, versions[at])
        for index in range(facts.num_row_groups):
            group = facts.row_group(index)
            groups.append((at, index))
            n_rows.append(group.num_rows)
            largest = max(largest, group.total_byte_size)
    if largest > _most_bytes():
        raise InputError(
            f"{files[0]}: a row group has {largest:,} bytes and is read at once, expected "
            f"at most {_most_bytes():,}: write the tables with smaller row "
            "groups, such as 100 rows"
        )
    starts = np.cumsum([0, *n_rows[:-1]]).astype(np.int64)
    return ParquetImages(files, versions, column, tuple(groups), starts, largest)
