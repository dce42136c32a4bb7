"""Write a set in the layout of CIFAR-10-C or ImageNet-C with the corrupt stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ResourceError
from pipeline.executors import Executor
from pipeline.journal import Journal
from pipeline.make import ShardJob
from pipeline.memory import PROCESS_BYTES, gib
from pipeline.space import check_space
from pipeline.stage import NO_PREVIEW, Made, Preview, State
from stages.data.corruption_files import CorruptedFiles
from stages.data.corruption_work import CorruptionWork
from stages.errors import InputError
from store.catalog import FeatureStore
from store.errors import PlanMismatchError
from store.plan import Plan, differences
from store.shardset import ShardSet, find_set
from store.storage import LocalStorage


def corruption_folder(dataset: str, collection: str, data_root: Path) -> str:
    """Default folder of a corrupted set: ``<data set>-c``, ``<data set>-cure`` and so on."""
    suffix = collection if collection in ("cure", "rotations") else "c"
    return str(data_root / f"{dataset}-{suffix}")


def corruption_job(
    store: FeatureStore,
    work: CorruptionWork | CorruptedFiles,
    folder: Path,
    executor: Executor,
    plan: Plan,
    preview: Preview,
) -> ShardJob:
    """The job that writes a corrupted set.

    The folder also gets ``plan.json`` and ``receipts/``, which readers of the layouts ignore. The
    store only keeps the journal of the run, so that it can be resumed.

    Raises:
        InputError: the folder contains other files.
        ResourceError: what is made at once takes more memory than a worker may use.
        PlanMismatchError: the folder holds a set with another plan; the message lists the fields.
    """
    storage = LocalStorage(str(folder))

    def find() -> ShardSet | None:
        existing = find_set(storage)
        if existing is None and is_foreign(folder):
            raise InputError(
                f"{folder} contains files that do not belong to a set written by intro-pipe: "
                "choose an empty folder with --out"
            )
        if existing is not None and (different := list(differences(plan, existing.plan))):
            raise PlanMismatchError(
                f"{folder} holds data of another plan ({'; '.join(different)}): choose another "
                "location, or remove that folder"
            )
        return existing if not lacks_files() else None  # they are written again

    def lacks_files() -> bool:
        return any(storage.size(key) is None for key in work.fixed_keys)

    def fit(n_shards: int) -> Callable[[ShardSet], CorruptionWork | CorruptedFiles]:
        shard_rows = plan["shard_rows"]
        _check_memory(work, executor, shard_rows, n_shards)
        check_space(str(folder), n_shards * shard_rows * work.file_bytes)
        return lambda _: work

    def create() -> ShardSet:
        fixed = work.fixed_files() if lacks_files() else {}
        store.prepare()  # fail before the folder is created if the store cannot be written
        return ShardSet.create(storage, plan, fixed)

    return ShardJob(
        plan,
        str(folder),
        str(folder),
        f"corrupt {folder.name}",
        preview,
        executor,
        find,
        create,
        fit,
    )


def is_foreign(folder: Path) -> bool:
    """Whether a folder contains files, but no set that was written by intro-pipe."""
    storage = LocalStorage(str(folder))
    return find_set(storage) is None and next(storage.keys(), None) is not None


@dataclass(frozen=True)
class ExistingImages:
    """The job of a corrupted set that was not written by intro-pipe: there is nothing to do."""

    plan: Plan
    place: str
    output_name: str
    preview: Preview = NO_PREVIEW

    @property
    def output(self) -> str:
        """Name of the data set."""
        return self.output_name

    def progress(self) -> tuple[State, str]:
        """State of the set, which is always complete."""
        return State.COMPLETE, f"{self.output_name}, not written by intro-pipe"

    def refuse(self) -> None:
        """Do nothing: the set exists."""

    def failure(self) -> None:
        """Return None: its rows were not computed here."""

    def run(self, _: Journal) -> Made:
        """Return the set."""
        return Made(self, self.output)


def _check_memory(
    work: CorruptionWork | CorruptedFiles, executor: Executor, shard_rows: int, n_shards: int
) -> None:
    """Raise ``ResourceError`` if a shard, which is made in memory, is too large for a worker."""
    source = work.setup(1)
    memory = executor.worker_memory(n_shards)
    needed = PROCESS_BYTES + source.held_bytes + shard_rows * work.image_bytes
    if needed > memory:
        n_images = min(source.n_rows, shard_rows)
        raise ResourceError(
            f"{source.name} {source.split}: one {work.unit} of {n_images:,} images takes "
            f"{gib(needed)} of memory, a worker may use {gib(memory)}: use more --memory, fewer "
            "--workers, or a part of the images (--limit)"
        )
