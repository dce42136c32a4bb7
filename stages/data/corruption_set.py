"""Writing a CIFAR-10-C-style set: the corrupt stage, run into a folder in the exact layout."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import ResourceError
from pipeline.executors import Executor
from pipeline.journal import Journal
from pipeline.memory import PROCESS_BYTES, gib
from pipeline.runner import RunReport, run_map
from pipeline.space import check_space
from stages.data.corrupt import LABELS_KEY, Corrupt, labels_npy
from stages.data.corruptions.pixels import SIDE
from stages.errors import InputError
from store.catalog import FeatureStore
from store.shardset import ShardSet, find_set
from store.storage import LocalStorage

BYTES_OF_IMAGE = SIDE * SIDE * 3


def corruption_folder(stage: Corrupt, data_root: Path) -> str:
    """Where a corrupted set goes unless another place is named: ``<data set>-c``, ``-cure`` ...."""
    source = stage.source.open()
    suffix = "c" if stage.collection == "cifar10c" else stage.collection
    return str(data_root / f"{source.name}-{suffix}")


def write_corrupted(
    store: FeatureStore, stage: Corrupt, folder: str, executor: Executor, journal: Journal
) -> tuple[ShardSet, RunReport]:
    """Write ``labels.npy`` and ``<corruption>.npy`` for each corruption, or what is missing.

    The folder also gets ``plan.json`` and ``receipts/``; readers of CIFAR-10-C do not mind. The
    store only keeps the journal of the run, so that it can be resumed.

    Raises:
        InputError: the source does not fit.
        ResourceError: one corruption of all images is more than a worker may hold in memory.
        PlanMismatchError: the folder holds a set made otherwise; names the fields that differ.
    """
    plan = stage.plan()
    storage = LocalStorage(str(Path(folder).absolute()))
    there = find_set(storage)
    if there is None and next(storage.keys(), None) is not None:
        raise InputError(
            f"{folder} holds files that are not of a set written here: choose an empty folder "
            "with --out"
        )
    has_labels = there is not None and storage.size(LABELS_KEY) is not None
    fixed = {} if has_labels else {LABELS_KEY: labels_npy(stage.source.open(), stage.n_severities)}
    executor.check()
    n_left = plan["n_rows"] if there is None else sum(shard.n_rows for shard in there.missing())
    _check_memory(stage, executor, plan["shard_rows"], n_left // plan["shard_rows"])
    check_space(folder, n_left * BYTES_OF_IMAGE)
    store.prepare()  # a store that cannot be written is found out before the folder is
    shard_set = ShardSet.create(storage, plan, fixed)
    if shard_set.is_complete():
        shard_set.confirm()
        return shard_set, RunReport(len(shard_set.shards), 0, 0, 0, 0.0)
    report = run_map(stage, shard_set, executor, journal, title=f"corrupt {Path(folder).name}")
    return shard_set, report


def _check_memory(stage: Corrupt, executor: Executor, shard_rows: int, n_shards: int) -> None:
    """Raise ``ResourceError`` where a file, which is made as a whole, is too large for a worker."""
    if not n_shards:
        return
    source = stage.source.open()
    memory = executor.worker_memory(n_shards)
    needed = PROCESS_BYTES + source.held_bytes + shard_rows * BYTES_OF_IMAGE
    if needed > memory:
        raise ResourceError(
            f"{source.name} {source.split}: one corruption of {source.n_rows:,} images takes "
            f"{gib(needed)} of memory, a worker may take {gib(memory)}: give more --memory, fewer "
            "--workers, or a part of the images (--limit)"
        )
