"""Stored features as batches for PyTorch, read shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import IterableDataset, get_worker_info

from stages.errors import InputError
from store.featureset import FeatureSet, Selection

if TYPE_CHECKING:
    from store.shards import Shard

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Span:
    """Batches ``[first, stop)`` among those of a shard in one epoch."""

    shard: Shard
    first: int
    stop: int


class FeatureBatches(IterableDataset[Batch]):
    """Batches of a feature set, or of some of its rows: the named arrays, then the labels.

    One shard is in memory at a time. With ``shuffle`` the shards, and the rows within each, are
    permuted by ``(seed, epoch)``; call ``set_epoch`` before each pass. Pass it to a ``DataLoader``
    with ``batch_size=None``; the loader's workers, including persistent ones, share the batches and
    follow ``set_epoch``.

    In distributed training each rank reads its own batches. The batches of a single-process run are
    divided into one contiguous part per rank, so that every row is read once. The parts differ by
    at most one batch; with ``drop_uneven`` they are equal.

    Args:
        feature_set: a complete feature set, or a selection: ``features.where(corruption="fog")``.
        arrays: names of the arrays to read, each ``[batch, ...]`` float32; the labels that follow
            them are int64 ``[batch]``, -1 if unknown.
        batch_rows: rows of a batch; the last batch of a shard may be smaller.
        shuffle: permute shards and rows.
        seed: seed of the permutation; use the same on all ranks.
        skip_failed: leave out rows whose image could not be read.
        rank: index of this process and number of processes that share the rows, such as
            ``(0, 4)``. By default they come from ``torch.distributed`` if it is initialised when a
            pass begins; else there is one rank.
        drop_uneven: drop the last batches, fewer than the ranks, so that all ranks have the same
            number, as ``DistributedDataParallel`` needs.

    Raises:
        IncompleteError: shards are missing.
        InputError: ``rank`` is out of range, ``batch_rows`` is below 1, or an array is unknown.
    """

    def __init__(
        self,
        feature_set: FeatureSet | Selection,
        arrays: tuple[str, ...] = ("features", "logits"),
        batch_rows: int = 128,
        *,
        shuffle: bool = False,
        seed: int = 0,
        skip_failed: bool = True,
        rank: tuple[int, int] | None = None,
        drop_uneven: bool = False,
    ) -> None:
        super().__init__()
        if batch_rows < 1:
            raise InputError(f"batch_rows is {batch_rows}, expected at least 1")
        rows = feature_set.rows if isinstance(feature_set, Selection) else None
        if isinstance(feature_set, Selection):
            feature_set = feature_set.feature_set
        known = [spec.name for spec in feature_set.schema.arrays]
        if unknown := [name for name in arrays if name not in known]:
            raise InputError(
                f"{feature_set.name} has no array {unknown[0]!r}, expected one of "
                f"{', '.join(known)}"
            )
        self.feature_set = feature_set.require_complete()
        self.arrays = arrays
        self.batch_rows = batch_rows
        self.shuffle = shuffle
        self.seed = seed
        self.skip_failed = skip_failed
        self.drop_uneven = drop_uneven
        self._given_ranks = _checked_rank(rank)
        self._rows = rows
        if rows is not None and skip_failed:
            self._rows = rows[(feature_set.samples()["status"] == "ok").to_numpy()[rows]]
        self._n_batches = self._batches_by_shard()
        # Shared memory: workers that persist over several epochs see calls of `set_epoch`.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # the stub lacks it

    @property
    def epoch(self) -> int:
        """The epoch that determines the order of the next pass."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass, in the workers of a ``DataLoader`` too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Number of batches of this rank in one pass, over all workers."""
        first, stop = self._range_of_rank()
        return stop - first

    def __iter__(self) -> Iterator[Batch]:
        first, stop = self._range_of_rank()
        worker = get_worker_info()
        if worker is not None:
            first, stop = _part(first, stop, worker.id, worker.num_workers)
        return self._batches(self.epoch, first, stop)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker does not inherit torch.distributed, so the ranks are passed to it.
        return {**self.__dict__, "_given_ranks": self._given_ranks or _ranks_of_process()}

    def _batches_by_shard(self) -> list[int]:
        """Number of batches of each shard, by the selected rows or according to the receipts."""
        shard_set = self.feature_set.shard_set
        n_failed = shard_set.failed_rows() if self.skip_failed else {}
        rows = [shard.n_rows - n_failed.get(shard.index, 0) for shard in shard_set.shards]
        if self._rows is not None:
            starts = [shard.start for shard in shard_set.shards]
            ends = np.searchsorted(self._rows, [*starts[1:], self.feature_set.n_rows])
            rows = np.diff(ends, prepend=0).tolist()
        return [-(-n_rows // self.batch_rows) for n_rows in rows]

    def _range_of_rank(self) -> tuple[int, int]:
        """This rank's batches ``[first, stop)`` among those of a pass."""
        rank, n_ranks = self._given_ranks or _ranks_of_process() or (0, 1)
        n_batches = sum(self._n_batches)
        if self.drop_uneven:
            n_batches -= n_batches % n_ranks
        return _part(0, n_batches, rank, n_ranks)

    def _batches(self, epoch: int, first: int, stop: int) -> Iterator[Batch]:
        for span in self._spans(epoch, first, stop):
            yield from self._batches_of(span, epoch)

    def _spans(self, epoch: int, first: int, stop: int) -> Iterator[_Span]:
        """The parts of shards that make up batches ``[first, stop)`` of an epoch, in order."""
        shards = list(self.feature_set.shard_set.shards)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(shards))
            shards = [shards[at] for at in order]
        at = 0
        for shard in shards:
            n_batches = self._n_batches[shard.index]
            low, high = max(first - at, 0), min(stop - at, n_batches)
            if low < high:
                yield _Span(shard, low, high)
            at += n_batches

    def _batches_of(self, span: _Span, epoch: int) -> Iterator[Batch]:
        shard = span.shard
        samples = self.feature_set.read_samples(shard)
        labels = torch.from_numpy(samples["label"].to_numpy(zero_copy_only=False).copy())
        tensors = [torch.from_numpy(self.feature_set.read_chunk(n, shard)) for n in self.arrays]
        rows = np.arange(shard.n_rows)
        if self.skip_failed:
            rows = rows[np.array(samples["status"].to_pylist()) == "ok"]
        if self._rows is not None:
            rows = np.intersect1d(rows, self._rows - shard.start)
        if self.shuffle:
            rows = np.random.default_rng([self.seed, epoch, shard.index]).permutation(rows)
        for index in range(span.first, span.stop):
            start = index * self.batch_rows
            batch = torch.from_numpy(rows[start : start + self.batch_rows])
            yield (*(tensor[batch] for tensor in tensors), labels[batch])


torch_dataset = FeatureBatches
"""The public name, which ``FeatureSet.torch_dataset`` calls too."""


def _part(first: int, stop: int, index: int, n_parts: int) -> tuple[int, int]:
    """Part ``index`` of ``[first, stop)``, divided into ``n_parts`` contiguous, even parts."""
    n = stop - first
    return first + n * index // n_parts, first + n * (index + 1) // n_parts


def _checked_rank(rank: tuple[int, int] | None) -> tuple[int, int] | None:
    if rank is not None and not 0 <= rank[0] < rank[1]:
        raise InputError(f"rank is {rank}, expected (rank, n_ranks) with 0 <= rank < n_ranks")
    return rank


def _ranks_of_process() -> tuple[int, int] | None:
    """Rank and number of ranks from ``torch.distributed``; ``None`` if it is not initialised."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank(), distributed.get_world_size()
