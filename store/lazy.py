"""Rows that are read shard by shard, as Dask collections: one block, one partition a shard."""

from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import delayed
from numpy.typing import NDArray

from store.schema import ArraySpec
from store.shards import Shard


def lazy_array(
    read: Callable[[str, Shard], NDArray[Any]], spec: ArraySpec, shards: Sequence[Shard]
) -> da.Array:
    """``[rows, *row_shape]`` with the true chunks; ``read`` gives an array's rows of a shard."""
    blocks = [
        da.from_delayed(
            delayed(read, pure=True)(spec.name, shard),
            shape=(shard.n_rows, *spec.row_shape),
            dtype=np.dtype(spec.dtype),
        )
        for shard in shards
    ]
    return da.concatenate(blocks, axis=0)


def lazy_frame(
    read: Callable[[Shard], pa.Table], schema: pa.Schema, shards: Sequence[Shard]
) -> dd.DataFrame:
    """The columns with known divisions, indexed by row; ``read`` gives the columns of a shard."""
    empty = _indexed(schema.empty_table(), 0)
    divisions = [shard.start for shard in shards] + [shards[-1].stop - 1]
    return dd.from_map(_partition, shards, read=read, meta=empty, divisions=divisions)


def _partition(shard: Shard, read: Callable[[Shard], pa.Table]) -> pd.DataFrame:
    return _indexed(read(shard), shard.start)


def _indexed(table: pa.Table, start: int) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    frame.index = pd.RangeIndex(start, start + len(frame))
    return frame
