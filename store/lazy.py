"""Dask collections that read a set shard by shard: one block or partition per shard."""

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
    """Dask array ``[rows, *row_shape]`` with one chunk per shard, read by ``read(name, shard)``."""
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
    """Dask data frame with known divisions, indexed by row; ``read`` returns a shard's columns."""
    empty = _indexed(schema.empty_table(), 0)
    divisions = [shard.start for shard in shards] + [shards[-1].stop - 1]
    return dd.from_map(_partition, shards, read=read, meta=empty, divisions=divisions)


def _partition(shard: Shard, read: Callable[[Shard], pa.Table]) -> pd.DataFrame:
    return _indexed(read(shard), shard.start)


def _indexed(table: pa.Table, start: int) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    frame.index = pd.RangeIndex(start, start + len(frame))
    return frame
