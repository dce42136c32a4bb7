"""Feature sets as Dask collections."""

import dask
import numpy as np
import pandas as pd
import pytest
from conftest import Fill
from squares import plan_of

from store.catalog import FeatureStore
from store.errors import DamagedError, IncompleteError
from store.featureset import FeatureSet


def test_chunks_of_a_dask_array_are_the_shards(numbers: FeatureSet) -> None:
    assert numbers.array("square").chunks == ((4, 4, 2), (2,))
    assert numbers.array("square").dtype == np.float32


def test_a_dask_array_has_the_rows_that_were_written(numbers: FeatureSet) -> None:
    np.testing.assert_array_equal(numbers.array("square").compute(), numbers.read("square"))


def test_only_requested_blocks_are_read(numbers: FeatureSet) -> None:
    numbers.shard_set.storage.remove("square/c/0/0")
    assert numbers.array("square")[4:].sum().compute() == sum(row + row**2 for row in range(4, 10))
    with pytest.raises(DamagedError):
        numbers.array("square").compute()


def test_partitions_of_a_dask_frame_are_the_shards(numbers: FeatureSet) -> None:
    assert numbers.frame().npartitions == 3
    assert numbers.frame().divisions == (0, 4, 8, 9)


def test_a_dask_frame_is_the_sample_table(numbers: FeatureSet) -> None:
    frame = numbers.frame()
    found = frame.compute()
    assert found.index.tolist() == list(range(10))
    assert found.to_dict("list") == numbers.samples().to_dict("list")
    assert dict(found.dtypes) == dict(frame.dtypes)


def test_a_dask_frame_finds_rows_by_their_number(numbers: FeatureSet) -> None:
    assert numbers.frame().loc[7]["row"].compute().tolist() == [7]


def test_groups_of_a_dask_frame_are_those_of_pandas(numbers: FeatureSet) -> None:
    found = numbers.frame().groupby("corruption")["severity"].mean().compute().sort_index()
    expected = numbers.samples().groupby("corruption")["severity"].mean()
    pd.testing.assert_series_equal(found, expected, check_index_type=False)


def test_one_row_is_enough_for_both(store: FeatureStore, fill: Fill) -> None:
    found = fill(store.create(plan_of(1, 4)))
    assert found.array("square").compute().tolist() == [[0, 0]]
    assert found.frame().compute()["row"].tolist() == [0]


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_any_scheduler_gives_the_same_rows(numbers: FeatureSet, scheduler: str) -> None:
    with dask.config.set(scheduler=scheduler):
        assert numbers.array("square").sum().compute() == sum(row + row**2 for row in range(10))


def test_an_incomplete_set_has_no_dask_collections(begun: FeatureSet) -> None:
    with pytest.raises(IncompleteError, match="3 of 3 shards missing"):
        begun.array("square")
    with pytest.raises(IncompleteError, match="3 of 3 shards missing"):
        begun.frame()
