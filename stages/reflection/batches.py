"""Stored features as batches for PyTorch, read shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from store.featureset import FeatureSet

if TYPE_CHECKING:
    from store.shards import Shard

Batch = tuple[Tensor, ...]


class FeatureBatches(IterableDataset[Batch]):
    """Whole batches of a feature set: the named arrays, then the labels.

    Memory holds one shard. With ``shuffle`` the shards and the rows within each are permuted by
    ``(seed, epoch)``; call ``set_epoch`` before each pass. Give it to a ``DataLoader`` with
    ``batch_size=None``; its workers share the shards between them.

    Args:
        feature_set: complete.
        arrays: which arrays, each ``[batch, ...]`` float32.
        batch_rows: rows of a batch; the last one of a shard may be smaller.
        skip_failed: leave out rows whose image could not be read.
    """

    def __init__(
        self,
        feature_set: FeatureSet,
        arrays: tuple[str, ...] = ("features", "logits"),
        batch_rows: int = 128,
        *,
        shuffle: bool = False,
        seed: int = 0,
        skip_failed: bool = True,
    ) -> None:
        super().__init__()
        self.feature_set = feature_set.require_complete()
        self.arrays = arrays
        self.batch_rows = batch_rows
        self.shuffle = shuffle
        self.seed = seed
        self.skip_failed = skip_failed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng([self.seed, self.epoch])
        shards = list(self.feature_set.shard_set.shards)
        if self.shuffle:
            shards = [shards[at] for at in rng.permutation(len(shards))]
        worker = get_worker_info()
        if worker is not None:
            shards = shards[worker.id :: worker.num_workers]
        for shard in shards:
            yield from self._batches_of(shard)

    def _batches_of(self, shard: Shard) -> Iterator[Batch]:
        samples = self.feature_set.read_samples(shard)
        labels = torch.from_numpy(samples["label"].to_numpy(zero_copy_only=False).copy())
        tensors = [torch.from_numpy(self.feature_set.read_chunk(n, shard)) for n in self.arrays]
        rows = np.arange(shard.n_rows)
        if self.skip_failed:
            rows = rows[np.array(samples["status"].to_pylist()) == "ok"]
        if self.shuffle:
            rows = np.random.default_rng([self.seed, self.epoch, shard.index]).permutation(rows)
        for start in range(0, len(rows), self.batch_rows):
            batch = torch.from_numpy(rows[start : start + self.batch_rows])
            yield (*(tensor[batch] for tensor in tensors), labels[batch])


def torch_dataset(feature_set: FeatureSet, **choice: object) -> FeatureBatches:
    """The view behind ``FeatureSet.torch_dataset``; see ``FeatureBatches``."""
    return FeatureBatches(feature_set, **choice)  # type: ignore[arg-type]  # checked over there
