"""Feature sets: rows in order, by range, by condition; readable with standard libraries."""

import pickle
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr
import zarr
from conftest import Fill

from intro_pipe import reflect
from store.catalog import FeatureStore
from store.encoding import chunk_key, encode_rows, samples_key
from store.errors import DamagedError, FormatError, IncompleteError, PlanMismatchError
from store.featureset import FeatureSet, create_feature_set, load_view
from store.schema import ArraySpec, Schema
from store.shards import Shard

ROWS = np.arange(10)
EXPECTED = np.stack([ROWS, ROWS**2], axis=1).astype(np.float32)


def samples_glob(found: FeatureSet) -> str:
    return f"{found.shard_set.storage.location}/samples/*.parquet"


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (0, 4), (3, 9), (9, 99), (5, 5), (4, 8)])
def test_a_range_of_rows_is_that_of_the_whole(numbers: FeatureSet, start: int, stop: int) -> None:
    np.testing.assert_array_equal(numbers.read("square", start, stop), EXPECTED[start:stop])


def test_samples_are_one_row_a_sample_in_order(numbers: FeatureSet) -> None:
    assert numbers.samples()["row"].tolist() == list(ROWS)
    assert numbers.samples().index.tolist() == list(ROWS)
    assert len(numbers) == 10


def test_zarr_opens_the_arrays_plainly(numbers: FeatureSet) -> None:
    group: Any = zarr.open(numbers.shard_set.storage.location, mode="r")
    np.testing.assert_array_equal(np.asarray(group["square"]), EXPECTED)
    assert group["square"].chunks == (4, 2)


def test_zarr_opens_one_array_plainly(numbers: FeatureSet) -> None:
    array: Any = zarr.open(f"{numbers.shard_set.storage.location}/square", mode="r")
    np.testing.assert_array_equal(array[5:9], EXPECTED[5:9])


def test_xarray_opens_the_arrays_plainly(numbers: FeatureSet) -> None:
    with xr.open_zarr(numbers.shard_set.storage.location) as dataset:
        np.testing.assert_array_equal(dataset["square"].values, EXPECTED)
        assert dataset["square"].dims[0] == "row"
        assert dataset["square"].chunksizes["row"] == (4, 4, 2)


def test_pandas_opens_the_samples_plainly(numbers: FeatureSet) -> None:
    frame = pd.read_parquet(f"{numbers.shard_set.storage.location}/samples")
    pd.testing.assert_frame_equal(frame, numbers.samples())


def test_polars_opens_the_samples_plainly(numbers: FeatureSet) -> None:
    assert pl.read_parquet(samples_glob(numbers))["row"].to_list() == list(ROWS)


def test_duckdb_opens_the_samples_plainly(numbers: FeatureSet) -> None:
    query = f"select corruption, count(*) from '{samples_glob(numbers)}' group by 1 order by 1"
    assert duckdb.sql(query).fetchall() == [("fog", 5), ("snow", 5)]


def test_readers_ignore_what_a_kill_left_behind(numbers: FeatureSet) -> None:
    numbers.shard_set.storage.stage("samples/part-00000.parquet", b"torn")
    numbers.shard_set.storage.stage("square/c/0/0", b"torn")
    assert len(pd.read_parquet(f"{numbers.shard_set.storage.location}/samples")) == 10
    assert duckdb.sql(f"select * from '{samples_glob(numbers)}'").shape == (10, 4)
    with xr.open_zarr(numbers.shard_set.storage.location) as dataset:
        np.testing.assert_array_equal(dataset["square"].values, EXPECTED)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_chunks_of_one_value_are_really_written(begun: FeatureSet, value: float) -> None:
    schema = begun.schema
    for shard in begun.shard_set.shards:
        columns = {name: [0] * shard.n_rows for name, _ in schema.columns}
        columns |= {"corruption": ["fog"] * shard.n_rows, "status": ["ok"] * shard.n_rows}
        values = np.full((shard.n_rows, 2), value, np.float32)
        begun.shard_set.commit(
            shard, encode_rows(schema, shard, 4, {"square": values}, columns), {}
        )
    sizes = [
        begun.shard_set.storage.size(chunk_key(schema.arrays[0], shard))
        for shard in begun.shard_set.shards
    ]
    assert sizes == [4 * 2 * 4 + 4] * 3
    np.testing.assert_array_equal(begun.read("square"), np.full((10, 2), value, np.float32))


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"corruption": "fog"}, [1, 3, 5, 7, 9]),
        ({"severity": [1, 5]}, [0, 4, 5, 9]),
        ({"severity": range(1, 3)}, [0, 1, 5, 6]),
        ({"severity": np.array([1, 2])}, [0, 1, 5, 6]),
        ({"severity": {5}, "corruption": "fog"}, [9]),
    ],
)
def test_where_keeps_the_rows_with_these_values(
    numbers: FeatureSet, conditions: dict[str, Any], rows: list[int]
) -> None:
    chosen = numbers.where(**conditions)
    assert chosen.rows.tolist() == rows
    assert chosen.frame()["row"].tolist() == rows
    np.testing.assert_array_equal(chosen.array("square").compute(), EXPECTED[rows])
    assert len(chosen) == len(rows)


@pytest.mark.parametrize(
    ("conditions", "why"),
    [
        ({"corruption": "fogg"}, "no row has corruption fogg; existing values: fog, snow"),
        ({"severity": [7, 9]}, r"no row has severity \[7, 9\]; existing values: 1, 2, 3, 4, 5"),
        ({"row": 0, "corruption": "fog"}, "no row matches all of"),
    ],
)
def test_where_refuses_what_no_row_has(
    numbers: FeatureSet, conditions: dict[str, Any], why: str
) -> None:
    with pytest.raises(FormatError, match=why):
        numbers.where(**conditions)


def test_where_refuses_a_missing_column_and_lists_the_existing_ones(
    numbers: FeatureSet,
) -> None:
    with pytest.raises(FormatError, match="no column noise; it has row, corruption, severity"):
        numbers.where(noise=3)


def test_an_incomplete_set_is_refused_with_what_is_missing(begun: FeatureSet, fill: Fill) -> None:
    fill(begun, begun.shard_set.shards[:1])
    expected = r"2 of 3 shards missing \(first: 1\), expected a complete set"
    for read in (begun.samples, begun.where, lambda: begun.read("square")):
        with pytest.raises(IncompleteError, match=expected):
            read()


def test_data_without_a_receipt_is_not_read(numbers: FeatureSet) -> None:
    numbers.shard_set.discard([numbers.shard_set.shards[2]], lambda: None)
    with pytest.raises(IncompleteError):
        numbers.read("square")


def test_a_flipped_byte_of_a_chunk_is_not_read(numbers: FeatureSet) -> None:
    shard = numbers.shard_set.shards[1]
    key = chunk_key(numbers.schema.arrays[0], shard)
    data = bytearray(numbers.shard_set.storage.read(key))
    data[5] ^= 1
    numbers.shard_set.storage.write(key, bytes(data))
    with pytest.raises(DamagedError, match=r"square/c/1/0 is damaged "):
        numbers.read("square")


def test_a_missing_chunk_is_damage_not_rows_of_nan(numbers: FeatureSet) -> None:
    numbers.shard_set.storage.remove(chunk_key(numbers.schema.arrays[0], Shard(0, 0, 4)))
    with pytest.raises(DamagedError, match="is damaged"):
        numbers.read("square")


def test_a_torn_or_missing_part_of_the_samples_is_damage(numbers: FeatureSet) -> None:
    key = samples_key(numbers.shard_set.shards[0])
    numbers.shard_set.storage.write(key, numbers.shard_set.storage.read(key)[:-9])
    with pytest.raises(DamagedError, match="part-00000"):
        numbers.samples()
    numbers.shard_set.storage.remove(key)
    with pytest.raises(DamagedError, match="part-00000"):
        numbers.samples()


def test_another_plan_in_the_same_folder_is_refused(numbers: FeatureSet) -> None:
    other = {**numbers.plan, "inputs": {"source": {"name": "numbers"}, "model": {"name": "cube"}}}
    with pytest.raises(PlanMismatchError, match=r'inputs\.model\.name: "cube", found "square"'):
        create_feature_set(numbers.shard_set.storage, other)


def test_a_set_travels_to_other_processes(numbers: FeatureSet) -> None:
    there: FeatureSet = pickle.loads(pickle.dumps(numbers))
    np.testing.assert_array_equal(there.read("square"), EXPECTED)


@pytest.fixture
def factors(store: FeatureStore) -> FeatureSet:
    """Random features and logits of ten samples, the fifth of which could not be read."""
    schema = Schema((ArraySpec("features", (3,)), ArraySpec("logits", (2,))), (("label", "int64"),))
    found = store.create(
        {
            "name": "noise-test@net",
            "n_rows": 10,
            "shard_rows": 4,
            "schema": schema.to_json(),
            "inputs": {"source": {"name": "noise"}, "model": {"name": "net", "M": 4.0}},
        }
    )
    draw = np.random.default_rng(0)
    for shard in found.shard_set.shards:
        values = {
            spec.name: draw.normal(size=(shard.n_rows, *spec.row_shape)).astype(np.float32)
            for spec in schema.arrays
        }
        columns = {"label": np.arange(shard.start, shard.stop) % 2}
        found.shard_set.commit(shard, encode_rows(schema, shard, 4, values, columns), {})
    return found


@pytest.mark.parametrize("scaling", ["minmax", "none"])
def test_the_reflection_of_some_rows_is_those_rows_of_the_whole(
    factors: FeatureSet, scaling: str
) -> None:
    chosen = factors.where(label=1)
    whole = factors.reflection(loss="mse-m", scaling=scaling).compute()
    part = chosen.reflection(loss="mse-m", scaling=scaling).compute()
    np.testing.assert_array_equal(part, whole[chosen.rows])
    assert part.shape == (5, 6)


def test_a_missing_view_is_refused_with_a_remedy() -> None:
    with pytest.raises(FormatError, match="no view 'hologram' is installed: reinstall"):
        load_view("hologram")


@pytest.mark.parametrize("choice", [{}, {"loss": "ce", "scaling": "none"}, {"variant": "sum"}])
def test_reflection_equals_the_public_function(factors: FeatureSet, choice: dict[str, str]) -> None:
    for rows in (factors, factors.where(label=1)):
        method, function = rows.reflection(**choice), reflect(rows, **choice)
        assert method.chunks == function.chunks
        np.testing.assert_array_equal(method.compute(), function.compute())


def test_a_choice_that_does_not_exist_is_refused_by_its_name(factors: FeatureSet) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'los'"):
        factors.reflection(los="ce")
