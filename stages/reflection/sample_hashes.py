"""Hashes of samples, by which those of two feature sets are compared in 8 bytes per row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.reflection.reduction import each_shard
from store.featureset import FeatureSet
from store.shards import Shard

SAMPLE = "sample_id"
"""The column with the name of a sample."""


def sample_hashes(
    feature_set: FeatureSet, columns: Sequence[str] = (SAMPLE,)
) -> NDArray[np.uint64]:
    """A hash of each row's values in some sample columns, which the set has; shape ``(n,)``."""
    from pandas.util import hash_pandas_object

    def of(shard: Shard) -> NDArray[np.uint64]:
        frame = feature_set.read_samples(shard, columns).to_pandas()
        return np.asarray(hash_pandas_object(frame, index=False), np.uint64)

    return np.concatenate([*each_shard(feature_set, of, lambda _: None)])
