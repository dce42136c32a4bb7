"""Encoding and decoding of rows."""

import json
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from store import tables
from store.encoding import (
    chunk_key,
    decode_chunk,
    encode_chunk,
    encode_rows,
    encode_samples,
    metadata_files,
    samples_key,
)
from store.errors import ShardSizeError
from store.schema import ArraySpec, Schema
from store.shards import Shard
from store.tables import read_table

SCHEMA = Schema((ArraySpec("features", (3,)),), (("sample_id", "string"), ("label", "int64")))
SPEC = SCHEMA.arrays[0]
COLUMNS = {"sample_id": ["a", "ü", "c"], "label": [1, 2, 3]}

arrays = st.sampled_from(["float32", "float64", "int64"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5)
    )
)


@settings(max_examples=50, deadline=None)
@given(arrays, st.integers(0, 3))
def test_a_chunk_read_back_is_bit_for_bit_what_was_written(
    values: NDArray[Any], n_short: int
) -> None:
    spec = ArraySpec("values", values.shape[1:], str(values.dtype))
    chunk_rows = len(values) + n_short
    found = decode_chunk(spec, encode_chunk(spec, values, chunk_rows), chunk_rows)
    assert found[: len(values)].tobytes() == values.tobytes()
    assert found.shape == (chunk_rows, *values.shape[1:])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 51), st.integers(1, 255))
def test_a_flipped_byte_of_a_chunk_is_noticed(offset: int, mask: int) -> None:
    data = bytearray(encode_chunk(SPEC, np.ones((4, 3), np.float32), 4))
    data[offset] ^= mask
    with pytest.raises(ValueError, match="checksum"):
        decode_chunk(SPEC, bytes(data), 4)


@pytest.mark.parametrize("n_bytes", [0, 1, 3, 4, 48, 51])
def test_a_truncated_chunk_is_noticed(n_bytes: int) -> None:
    data = encode_chunk(SPEC, np.ones((4, 3), np.float32), 4)
    with pytest.raises(ValueError, match=r".+"):
        decode_chunk(SPEC, data[:n_bytes], 4)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_chunk_of_one_value_has_all_its_bytes(value: float) -> None:
    data = encode_chunk(SPEC, np.full((4, 3), value, np.float32), 4)
    assert len(data) == 4 * 3 * 4 + 4


def test_a_short_shard_is_filled_up_with_nan() -> None:
    data = encode_chunk(SPEC, np.ones((2, 3), np.float32), 4)
    assert np.isnan(decode_chunk(SPEC, data, 4)[2:]).all()


def test_the_same_rows_give_the_same_bytes() -> None:
    values = {"features": np.ones((3, 3), np.float32)}
    first, again = (encode_rows(SCHEMA, Shard(0, 0, 3), 3, values, COLUMNS) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    "values", [np.ones((4, 2), np.float32), np.ones((4, 3), np.float64), np.ones(4, np.float32)]
)
def test_rows_of_another_shape_or_type_are_refused(values: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"'features' is .* the schema says \(rows, 3\) float32"):
        encode_chunk(SPEC, values, 4)


def test_columns_of_another_length_are_refused_with_the_name() -> None:
    values = {"features": np.ones((3, 3), np.float32)}
    with pytest.raises(ValueError, match="shard 7: 'label' has 2 rows, not 3"):
        encode_rows(SCHEMA, Shard(7, 0, 3), 3, values, {**COLUMNS, "label": [1, 2]})


def test_samples_keep_the_types_of_the_schema() -> None:
    table = read_table(encode_samples(SCHEMA, COLUMNS))
    assert table.schema == SCHEMA.arrow
    assert table.to_pydict() == COLUMNS


def test_a_flipped_value_of_a_sample_is_noticed() -> None:
    columns = {"sample_id": [f"sample-{row}" for row in range(50)], "label": range(50)}
    data = bytearray(encode_samples(SCHEMA, columns))
    data[60] ^= 1
    with pytest.raises((pa.ArrowException, OSError)):
        read_table(bytes(data))


def test_samples_that_would_be_refused_when_read_are_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = {"sample_id": ["x" * 1_000] * 50, "label": range(50)}
    data = encode_samples(SCHEMA, columns)
    assert len(data) < 10_000
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 50_000)
    with pytest.raises(ValueError, match="expected a table of at most"):
        read_table(data)
    with pytest.raises(ShardSizeError, match=r"shard: expected .*; use smaller shards"):
        encode_samples(SCHEMA, columns)


@pytest.mark.parametrize("length", [0, 1, 7, 100])
def test_samples_that_are_written_can_be_read(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """The limit applies to the same bytes on both sides, up to the marks of missing values."""
    columns = {"sample_id": [f"{row:0{length}}" for row in range(50)], "label": range(50)}
    n_read = n_written = 0
    for limit in range(200, 8_000, 50):
        monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 10**9)
        data = encode_samples(SCHEMA, columns)
        monkeypatch.setattr(tables, "MAX_TABLE_BYTES", limit)
        with suppress(ValueError):
            n_read += read_table(data).num_rows
        with suppress(ValueError):
            encode_samples(SCHEMA, columns)
            n_written += 50
        assert n_written <= n_read <= n_written + 100
    assert n_written


def test_a_column_missing_from_a_part_is_reported() -> None:
    data = encode_samples(SCHEMA, COLUMNS)
    name = SCHEMA.columns[0][0]
    assert read_table(data, [name]).column_names == [name]
    with pytest.raises(ValueError, match="there is no column weather"):
        read_table(data, [name, "weather"])


def test_names_of_parts_sort_as_rows_do() -> None:
    keys = [samples_key(Shard(index, 0, 1)) for index in (0, 9, 10, 99_999)]
    assert keys == sorted(keys)


def test_zarr_finds_the_chunk_under_its_key(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    files = metadata_files(SCHEMA, 4, 2)
    for shard in (Shard(0, 0, 2), Shard(1, 2, 4)):
        files[chunk_key(SPEC, shard)] = encode_chunk(SPEC, values[shard.start : shard.stop], 2)
    for key, data in files.items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(data)
    np.testing.assert_array_equal(zarr.open_group(tmp_path, mode="r")["features"][:], values)


def test_metadata_says_one_chunk_a_shard_and_nan_where_nothing_is() -> None:
    metadata = json.loads(metadata_files(SCHEMA, 10, 4)["features/zarr.json"])
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [4, 3]
    assert metadata["fill_value"] == "NaN"
    assert metadata["dimension_names"] == ["row", "features_0"]


def test_a_schema_survives_its_json() -> None:
    schema = Schema((ArraySpec("a", (2, 5), "int64", ("x", "y")),), (("label", "int64"),))
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


@pytest.mark.parametrize(("dtype", "n_bytes"), [("float32", 40), ("int64", 80), ("uint8", 10)])
def test_a_row_has_as_many_bytes_as_its_values(dtype: str, n_bytes: int) -> None:
    assert ArraySpec("a", (2, 5), dtype).row_bytes == n_bytes


def test_an_unknown_array_is_refused_with_those_there_are() -> None:
    with pytest.raises(KeyError, match="no array 'logit'; there are features"):
        SCHEMA.array("logit")


def test_a_chunk_is_encoded_by_one_copy() -> None:
    values = np.ones((1_000, 3_000), np.float32)
    spec = ArraySpec("wide", (3_000,))
    encode_chunk(spec, values[:1], 1)  # what is loaded the first time
    tracemalloc.start()
    data = encode_chunk(spec, values, 1_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) < peak < 1.1 * len(data)
