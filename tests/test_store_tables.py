"""Parquet files that need much more memory than their size are refused before they are read."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store import tables
from store.catalog import FeatureStore
from store.errors import DamagedError
from store.featureset import FeatureSet
from store.tables import read_frame, read_table

TEXT = "dictionary<values=string, indices=int32, ordered=0>"
SMALL_BYTES = 64 * 2**20
"""Far below what the files here would need, far above what their parts need."""


Bomb = Callable[[], bytes]


def parquet(*parts: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, parts[0].schema, compression="zstd", store_schema=False) as writer:
        for part in parts:
            writer.write_table(part)
    return sink.getvalue()


def repeated(value: str, n_rows: int) -> pa.Array:
    """One string, stored once, in every row."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n_rows, np.int32)), pa.array([value]))


def long_string() -> bytes:
    return parquet(pa.table({"sample_id": repeated("x" * 700_000, 10_000)}))


def long_string_in_several_groups() -> bytes:
    part = pa.table({"sample_id": repeated("x" * 700_000, 1_000)})
    return parquet(*[part] * 10)


def several_long_columns() -> bytes:
    column = repeated("é" * 50_000, 2_000)
    return parquet(pa.table({f"c{at}": column for at in range(6)}))


def many_rows() -> bytes:
    part = pa.table({"row": pa.array(np.zeros(5_000_000, np.int64))})
    return parquet(*[part] * 30)


def many_empty_strings() -> bytes:
    part = pa.table({"status": repeated("", 10_000_000)})
    return parquet(*[part] * 30)


BOMBS = [
    long_string,
    long_string_in_several_groups,
    several_long_columns,
    many_rows,
    many_empty_strings,
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_of_a_large_table_is_refused(bomb: Bomb) -> None:
    data = bomb()
    assert len(data) < 3 * 2**20
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(ValueError, match="expected a table of at most 1 GiB, found one of"):
        read_table(data)
    assert pa.default_memory_pool().max_memory() <= max(peak, SMALL_BYTES)


@pytest.mark.parametrize(
    "column",
    [
        pa.DictionaryArray.from_arrays(pa.array([0] * 20), pa.array([b"x" * 1000])),
        pa.DictionaryArray.from_arrays(pa.array([0] * 20), pa.array([b"x" * 9], pa.binary(9))),
        pa.ListArray.from_arrays(pa.array(range(21), pa.int32()), repeated("x" * 1000, 20)),
        pa.StructArray.from_arrays([repeated("x" * 1000, 20)], ["inner"]),
    ],
    ids=["binary", "fixed binary", "list", "struct"],
)
def test_columns_whose_size_is_known_only_after_reading_are_refused(column: pa.Array) -> None:
    data = parquet(pa.table({"a": column}))
    with pytest.raises(ValueError, match=r"column a is .*: expected numbers, times or text"):
        read_table(data)


@pytest.mark.parametrize("place", [0, 1, -1], ids=["rows", "values", "rows of a part"])
def test_a_file_with_contradictory_row_counts_is_refused(place: int) -> None:
    n_rows = 654_321
    data = bytearray(parquet(pa.table({"a": pa.array(np.zeros(n_rows, np.int8))})))
    said, ten = varint(n_rows), bytes([20 | 128, 128, 0])
    assert len(said) == len(ten)
    at, places = data.rfind(b"schema"), []
    while (at := data.find(said, at + 1)) >= 0:
        places.append(at)
    assert len(places) >= 3  # of the file, of its column, ..., of its part
    data[places[place] : places[place] + len(ten)] = ten
    with pytest.raises(ValueError, match=r"expected .* found"):
        read_table(bytes(data))


def varint(number: int) -> bytes:
    """A number as Thrift's compact protocol writes it."""
    number, out = 2 * number, bytearray()
    while number > 127:
        number, low = divmod(number, 128)
        out.append(low | 128)
    return bytes([*out, number])


def test_only_the_columns_that_are_read_count() -> None:
    columns = {"sample_id": repeated("x" * 700_000, 10_000), "label": np.arange(10_000)}
    data = parquet(pa.table(columns))
    assert read_table(data, ["label"]).column("label").to_pylist() == list(range(10_000))


def test_other_rows_than_expected_are_refused_before_they_are_read() -> None:
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(ValueError, match="expected 10 rows, found 150000000"):
        read_table(many_rows(), n_rows=10)
    assert pa.default_memory_pool().max_memory() <= max(peak, SMALL_BYTES + 5_000_000 * 8)


@pytest.mark.parametrize("is_decoded", [True, False])
@pytest.mark.parametrize("stored", [pa.array([1.0, 2.0]), pa.array(["a", "b"]).dictionary_encode()])
def test_columns_of_other_types_than_expected_are_refused(
    stored: pa.Array, is_decoded: bool
) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"kind": ["fog", "snow"], "level": stored}), sink)
    expected = pa.schema({"kind": pa.string(), "level": pa.string()})
    message = (
        "expected the columns kind (string), level (string), "
        f"found kind (string), level ({stored.type})"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        read_table(sink.getvalue(), expected=expected, is_decoded=is_decoded)


def test_a_table_up_to_the_limit_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["", "fog", None, "ünïcode", "fog"]
    table = pa.table(
        {
            "word": pa.array(words),
            "large": pa.array(words, pa.large_string()),
            "row": pa.array(range(5), pa.int64()),
            "score": pa.array([0.5, None, float("nan"), 1.0, -0.0]),
            "flag": pa.array([True, False, None, True, False]),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    found = read_table(sink.getvalue(), n_rows=5)
    assert found.schema == table.schema
    assert found.drop_columns("score") == table.drop_columns("score")
    np.testing.assert_array_equal(found["score"].to_numpy(), table["score"].to_numpy())
    encoded = read_table(sink.getvalue(), n_rows=5, is_decoded=False)
    assert [str(kind) for kind in encoded.schema.types[:3]] == [*[TEXT] * 2, "int64"]
    assert encoded["word"].to_pylist() == words
    assert encoded.cast(table.schema).drop_columns("score") == table.drop_columns("score")
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 100)
    for is_decoded in (True, False):
        with pytest.raises(ValueError, match="at most"):
            read_table(sink.getvalue(), is_decoded=is_decoded)


def test_pandas_metadata_in_a_file_is_not_obeyed() -> None:
    table = pa.table({"a": [1, 2]}).replace_schema_metadata({"pandas": '{"index_columns": ["a"]}'})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    assert read_table(sink.getvalue()).to_pandas().columns.tolist() == ["a"]


@pytest.mark.parametrize("columns", [None, ["a"], ["b"]])
def test_a_file_with_two_columns_of_one_name_is_refused(columns: list[str] | None) -> None:
    arrays = [pa.array([1]), pa.array([2]), pa.array([3])]
    data = parquet(pa.Table.from_arrays(arrays, ["a", "b", "a"]))
    with pytest.raises(ValueError, match="expected columns of different names, found a twice"):
        read_table(data, columns)


def test_a_set_with_two_columns_of_one_name_is_reported_as_damaged(numbers: FeatureSet) -> None:
    names = ["row", "corruption", "severity", "status", "row"]
    table = pa.Table.from_arrays([pa.array(range(4))] * len(names), names)
    place = numbers.shard_set.storage.location
    Path(place, "samples", "part-00000.parquet").write_bytes(parquet(table))
    with pytest.raises(DamagedError, match=r"part-00000.parquet is damaged \(.*found row twice"):
        numbers.samples()


def _column(**facts: object) -> dict[str, object]:
    column = {"name": "a", "field_name": "a", "pandas_type": "int64", "numpy_type": "int64"}
    return {**column, "metadata": None, **facts}


@pytest.mark.parametrize(
    "metadata",
    [
        1,
        [1],
        {"columns": 1},
        {"columns": [1]},
        {"columns": [], "index_columns": ["x"]},
        {"columns": [], "index_columns": [{"kind": "range"}]},
        {"columns": [], "index_columns": 1},
        {"columns": [_column()], "index_columns": ["a"], "column_indexes": []},
        {"columns": [_column(numpy_type="xyz")], "index_columns": [], "column_indexes": []},
        {"columns": [_column(numpy_type=3)], "index_columns": [], "column_indexes": []},
    ],
)
def test_damaged_metadata_for_pandas_is_reported_as_damage(
    store: FeatureStore, metadata: object
) -> None:
    check_refused(store, json.dumps(metadata).encode())


@pytest.mark.parametrize("metadata", [b"", b"{", b"\xff", b"[" * 100_000])
def test_metadata_for_pandas_that_is_not_json_is_reported_as_damage(
    store: FeatureStore, metadata: bytes
) -> None:
    check_refused(store, metadata)


def check_refused(store: FeatureStore, metadata: bytes) -> None:
    table = pa.table({"a": [1, 2]}).replace_schema_metadata({b"pandas": metadata})
    pq.write_table(table, sink := io.BytesIO())
    result = store.artifact("result", "r")
    result.claim({})
    result.write({"average.parquet": sink.getvalue()}, {}, plan={})
    with pytest.raises(DamagedError, match=r"average.parquet cannot be read \(.*remove the folder"):
        result.read_frame("average.parquet")


def test_a_frame_keeps_the_types_that_pandas_wrote() -> None:
    frame = pd.DataFrame({"a": [1, None], "b": [0.5, np.nan], "c": ["x", None], "d": [1, 2]})
    for written in (frame, frame.convert_dtypes()):
        pd.testing.assert_frame_equal(read_frame(written.to_parquet(index=False)), written)


def test_a_store_with_such_a_file_is_reported_as_damaged(numbers: FeatureSet) -> None:
    columns = {
        "row": np.arange(4),
        "corruption": repeated("x" * 400_000_000, 4),
        "severity": np.arange(4),
        "status": ["ok"] * 4,
    }
    place = numbers.shard_set.storage.location
    Path(place, "samples", "part-00000.parquet").write_bytes(parquet(pa.table(columns)))
    with pytest.raises(DamagedError, match=r"part-00000.parquet is damaged \(expected a table of"):
        numbers.where(corruption="fog")


COUNTS_THREADS = """
import os, sys
from store.tables import read_table
data = sys.stdin.buffer.read()
before = len(os.listdir("/proc/self/task"))
read_table(data)
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_reading_starts_no_threads() -> None:
    """One of Arrow's that releases a Python buffer while Python exits aborts the process."""
    n_rows = 10_000
    data = parquet(pa.table({name: np.arange(n_rows) for name in "abc"}))
    run = [sys.executable, "-c", COUNTS_THREADS]
    assert subprocess.run(run, input=data, capture_output=True, check=True).stdout == b"0\n"
