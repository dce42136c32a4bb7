"""Feature sets as Dask collections: one block and one partition a shard."""

from typing import TYPE_CHECKING, Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import delayed
from numpy.typing import NDArray

from store.shards import Shard

if TYPE_CHECKING:
    from store.featureset import FeatureSet


def lazy_array(feature_set: "FeatureSet", name: str) -> da.Array:
    """``[n_rows, *row_shape]`` with the true chunks; raises ``IncompleteError``."""
    feature_set.require_complete()
    spec = feature_set.schema.array(name)
    blocks = [
        da.from_delayed(
            delayed(_block, pure=True)(feature_set, name, shard),
            shape=(shard.n_rows, *spec.row_shape),
            dtype=np.dtype(spec.dtype),
        )
        for shard in feature_set.shard_set.shards
    ]
    return da.concatenate(blocks, axis=0)


def lazy_frame(feature_set: "FeatureSet") -> dd.DataFrame:
    """The sample columns with known divisions, indexed by row; raises ``IncompleteError``."""
    feature_set.require_complete()
    shards = feature_set.shard_set.shards
    empty = _indexed(feature_set.schema.arrow.empty_table(), 0)
    divisions = [shard.start for shard in shards] + [shards[-1].stop - 1]
    return dd.from_map(_partition, shards, feature_set=feature_set, meta=empty, divisions=divisions)


def _block(feature_set: "FeatureSet", name: str, shard: Shard) -> NDArray[Any]:
    return feature_set.read_chunk(name, shard)


def _partition(shard: Shard, feature_set: "FeatureSet") -> pd.DataFrame:
    return _indexed(feature_set.read_samples(shard), shard.start)


def _indexed(table: pa.Table, start: int) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    frame.index = pd.RangeIndex(start, start + len(frame), name="row")
    return frame
