"""The job that scores pairs: it creates the set, and checks the memory of corruptions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from PIL import Image

from pipeline.errors import ResourceError
from pipeline.executors import Executor
from pipeline.make import ShardJob
from pipeline.memory import PROCESS_BYTES, gib
from pipeline.stage import Preview
from stages.data.corrupting import FIXED_BYTES, PIXEL_BYTES, ZOOM_BLUR_BYTES
from stages.quality.pairs import Pairs
from stages.quality.scoring import Scoring
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint
from store.shards import Shard
from store.shardset import ShardSet

SET_KIND = "quality"
"""Kind of the sets of scores, and their folder in a store."""


def score_job(
    store: FeatureStore,
    scoring: Scoring,
    pairs: Pairs,
    executor: Executor,
    *,
    plan: Plan,
    preview: Preview,
    retries: bool,
    accepts_failures: bool,
) -> ShardJob:
    """The job that computes a set of scores, one row per pair.

    Args:
        store: store of the set, which has columns and no arrays.
        scoring: what is computed.
        pairs: the pairs.
        executor: runs the workers.
        plan: plan of the scores.
        preview: description of the job.
        retries: whether shards with failed pairs are computed again.
        accepts_failures: whether any number of pairs may fail.
    """
    name = f"{plan['name']}-{fingerprint(plan)}"

    def find() -> ShardSet | None:
        found = store.find(plan, SET_KIND)
        return None if found is None else found.shard_set

    def fit(n_shards: int) -> Callable[[ShardSet], Scoring]:
        _check_memory(pairs, executor.worker_memory(n_shards))
        return lambda _: scoring

    return ShardJob(
        plan,
        f"{SET_KIND}/{name}",
        name,
        f"score {plan['name']}",
        preview,
        executor,
        find,
        lambda: store.prepare().create(plan, SET_KIND).shard_set,
        fit,
        opened=FeatureSet,
        redo=_with_failed_pairs if retries else None,
        accepts_failures=accepts_failures,
    )


def _with_failed_pairs(existing: ShardSet) -> list[Shard]:
    return [existing.shards[index] for index in existing.failed()]


def _check_memory(pairs: Pairs, memory: int) -> None:
    """Raise ``ResourceError`` if the largest reference cannot be corrupted in a worker's memory."""
    if pairs.cells is None:
        return
    zooms = any(name == "zoom_blur" for name, _ in pairs.cells.cells)
    largest, name = max((_n_pixels(pairs, each), each) for each in pairs.references)
    needed = PROCESS_BYTES + FIXED_BYTES + largest * (ZOOM_BLUR_BYTES if zooms else PIXEL_BYTES)
    if needed > memory:
        raise ResourceError(
            f"{pairs.root / name}: corrupting its {largest:,} pixels takes {gib(needed)} of "
            f"memory, a worker may use {gib(memory)}: use smaller references, more --memory, fewer "
            "--workers, or no zoom_blur"
        )


def _n_pixels(pairs: Pairs, name: str) -> int:
    """Pixels of an image according to its header; 0 if it cannot be read, which fails its rows."""
    with suppress(Exception), Image.open(pairs.root / name) as image:
        return image.width * image.height
    return 0
