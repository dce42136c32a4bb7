"""Extraction where rows are there already: only those that failed go through the network again.

A file that is mended makes another data set, and so another feature set. Its rows are taken over
from the set of before wherever the images are, by their checksum, those of before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import google_crc32c
from numpy.typing import NDArray

from pipeline.executors import Executor
from pipeline.journal import Journal
from pipeline.runner import RunReport, run_map
from pipeline.space import check_space
from pipeline.stage import ShardOutput, Tick
from stages.data.source import ImageSource
from stages.errors import InputError, StageError
from stages.reflection.extract import Extract, fitted
from store.catalog import FeatureStore
from store.encoding import chunk_key, decode_chunk, decode_samples, encode_rows, samples_key
from store.errors import DamagedError, NotFoundError
from store.featureset import FeatureSet
from store.plan import Plan, canonical_json
from store.schema import Schema
from store.seal import vouch
from store.shards import Shard
from store.shardset import ShardSet

OF_BEFORE = ("written_at", "host", "device", "versions")
"""Facts of a receipt that tell who computed the rows that another one takes over."""


@dataclass(frozen=True)
class RetryFailed:
    """The extract stage for a set of which rows failed, or whose data set was mended.

    Attributes:
        stage: what computes rows.
        own: the set to mend; a shard of it that is there is taken from it.
        before: the set of the data set before it was mended, for other shards.
    """

    stage: Extract
    own: ShardSet
    before: ShardSet | None

    @property
    def name(self) -> str:
        """That of the stage: the rows are the same."""
        return self.stage.name

    @property
    def version(self) -> int:
        """That of the stage."""
        return self.stage.version

    def check(self, plan: Plan) -> None:
        """Make sure that the source is still the planned one; raises ``InputError``."""
        self.stage.check(plan)

    def setup(self, n_threads: int) -> tuple[Any, ImageSource]:  # Any: the stage's own
        """The state of the stage, and the opened source."""
        return self.stage.setup(n_threads), self.stage.source.open()

    def compute(self, state: tuple[Any, ImageSource], shard: Shard, tick: Tick) -> ShardOutput:
        """The rows of before, and anew those that failed, in batches of the same rows as before.

        All of the shard's images are read, to see that they are those of before. Where they are
        not, or nothing is there to be taken over, the whole shard is computed. Raises
        ``StageError`` where a row of our own set would be lost.
        """
        inner, source = state
        old = _old_shard(self.own, shard)
        is_own = old is not None
        if old is None and self.before is not None:
            old = _old_shard(self.before, shard)
        if old is None:
            return self.stage.compute(inner, shard, tick)
        images = _read(source, shard, old, tick)
        if images.are_of(old):
            output = self._mended(inner, shard, old, images)
        else:
            output = self.stage.compute(inner, shard, tick)
        if is_own:
            _check_none_lost(output.facts["failed"], old)
        return output

    def _mended(
        self,
        inner: Any,  # Any: the stage's own
        shard: Shard,
        old: _OldShard,
        images: _Images,
    ) -> ShardOutput:
        """The old shard, those of its failed rows anew whose images can be read now."""
        failed = dict(old.failed)
        for start in range(shard.start, shard.stop, old.batch_rows):
            batch = Shard(shard.index, start, min(start + old.batch_rows, shard.stop))
            rows = [row for row in old.failed if batch.start <= row < batch.stop]
            if not set(rows) - set(images.failed):
                continue
            part = self.stage.compute(inner, batch, _no_tick)
            old.take(rows, part.files, batch)
            for row in rows:
                del failed[row]
            found = {int(row): reason for row, reason in part.facts["failed"].items()}
            failed |= {row: found[row] for row in rows if row in found}
        files = encode_rows(old.schema, shard, old.chunk_rows, old.arrays, old.columns)
        facts = {
            "failed": {str(row): failed[row] for row in sorted(failed)},
            "images_crc32c": f"{images.crc:08x}",
            "device": self.stage.device,
            "batch_rows": old.batch_rows,
            "retried": {str(row): reason for row, reason in old.failed.items()},
            "others_of": {"set": old.set_name, **{k: old.receipt.get(k) for k in OF_BEFORE}},
        }
        return ShardOutput(files, facts)


def retry_failed(
    store: FeatureStore,
    stage: Extract,
    executor: Executor,
    journal: Journal,
    take_in: Callable[[], None] = lambda: None,
) -> tuple[FeatureSet, RunReport]:
    """Compute the rows again that failed, and what is missing of the set beside them.

    Raises:
        InputError: there is no set yet, of these images or of these before they were mended.
        StoreError, PipelineError: see the messages; what was finished before is kept.
    """
    plan = stage.plan()
    there, before = sets_to_retry(store, plan)
    executor.check()
    preview = store.preview(plan)
    n_again = len(there.shard_set.failed_rows()) if there else 0
    stage = fitted(stage, executor, max(1, preview["shards_to_do"] + n_again))
    check_space(store.location, preview["bytes_to_write"])
    feature_set = store.prepare().create(plan)
    take_in()
    own = feature_set.shard_set
    failed = own.failed_rows()
    redo = [shard for shard in own.shards if shard.index in failed]
    retrying = RetryFailed(stage, own, before.shard_set if before else None)
    title = f"extract {plan['name']}"
    return feature_set, run_map(retrying, own, executor, journal, title=title, redo=redo)


def sets_to_retry(store: FeatureStore, plan: Plan) -> tuple[FeatureSet | None, FeatureSet | None]:
    """The set of a plan, and that of its data set before it was mended.

    Raises ``InputError`` where there is neither.
    """
    there, before = store.find(plan), _set_before(store, plan)
    if there is None and before is None:
        raise InputError(
            f"--retry-failed: {plan['name']} has no rows in {store.location} that could have "
            "failed: leave it out, to extract them"
        )
    return there, before


def _set_before(store: FeatureStore, plan: Plan) -> FeatureSet | None:
    """The set whose plan differs in the content of the data set alone: the fullest, newest one."""
    wanted, ours = _without_content(plan), canonical_json(plan)
    found = [
        each
        for each in store.feature_sets()
        if _without_content(each.plan) == wanted
        and canonical_json(each.plan) != ours
        and each.shard_set.done()
    ]
    return max(found, key=_fullness, default=None)


def _fullness(found: FeatureSet) -> tuple[int, float]:
    done = found.shard_set.done()
    newest = max(receipt["written_at"] for receipt in found.shard_set.receipts())
    return len(done), newest


def _without_content(plan: Plan) -> bytes:
    source = {**plan["inputs"]["source"], "fingerprint": None}
    return canonical_json({**plan, "inputs": {**plan["inputs"], "source": source}})


@dataclass(frozen=True)
class _OldShard:
    """A shard as it was computed before; ``failed`` has its rows that failed, and why."""

    set_name: str
    schema: Schema
    chunk_rows: int
    receipt: Mapping[str, Any]  # Any: JSON
    arrays: dict[str, NDArray[Any]]
    columns: dict[str, list[Any]]
    failed: dict[int, str]

    @property
    def start(self) -> int:
        return int(self.receipt["shard"]["start"])

    @property
    def batch_rows(self) -> int:
        """Images that went through the network at once: others would round otherwise."""
        return int(self.receipt["batch_rows"])

    def take(self, rows: list[int], files: Mapping[str, bytes], batch: Shard) -> None:
        """Put rows in place of ours that were computed as a batch."""
        ours = [row - self.start for row in rows]
        theirs = [row - batch.start for row in rows]
        for spec in self.schema.arrays:
            values = decode_chunk(spec, files[chunk_key(spec, batch)], self.chunk_rows)
            self.arrays[spec.name][ours] = values[theirs]
        for name, values in decode_samples(files[samples_key(batch)]).to_pydict().items():
            for our, their in zip(ours, theirs, strict=True):
                self.columns[name][our] = values[their]


def _old_shard(there: ShardSet, shard: Shard) -> _OldShard | None:
    """A shard that is there, checked against its receipt; ``None`` where it is not, or is hurt."""
    try:
        receipt = there.receipt(shard)
        files = {key: there.storage.read(key) for key in receipt["files"]}
    except (NotFoundError, DamagedError, OSError):
        return None
    if receipt["files"] != {key: vouch(data) for key, data in files.items()}:
        return None
    schema, chunk_rows = Schema.from_json(dict(there.plan["schema"])), there.chunk_rows
    arrays = {
        spec.name: decode_chunk(spec, files[chunk_key(spec, shard)], chunk_rows)[: shard.n_rows]
        for spec in schema.arrays
    }
    columns = decode_samples(files[samples_key(shard)]).to_pydict()
    failed = {int(row): reason for row, reason in receipt["failed"].items()}
    name = f"{there.plan['name']}-{there.fingerprint}"
    return _OldShard(name, schema, chunk_rows, receipt, arrays, columns, failed)


@dataclass(frozen=True)
class _Images:
    """What was read of a shard now.

    Attributes:
        crc: CRC-32C of the images.
        crc_of_before: the same with zeros for those that failed before.
        failed: the rows that cannot be read, and why.
        columns: what the source says of the rows.
    """

    crc: int
    crc_of_before: int
    failed: dict[int, str]
    columns: dict[str, list[Any]]

    def are_of(self, old: _OldShard) -> bool:
        """Whether they are the images of an old shard, but for those that failed.

        One that was read and failed later, in the network, stands in the old checksum.
        """
        is_same = old.receipt["images_crc32c"] in (f"{self.crc_of_before:08x}", f"{self.crc:08x}")
        return is_same and all(old.columns[name] == self.columns[name] for name in self.columns)


def _read(source: ImageSource, shard: Shard, old: _OldShard, tick: Tick) -> _Images:
    crc = crc_of_before = 0
    failed: dict[int, str] = {}
    parts = []
    for start in range(shard.start, shard.stop, old.batch_rows):
        rows = source.read(start, min(start + old.batch_rows, shard.stop))
        failed |= {start + offset: reason for offset, reason in rows.failed.items()}
        parts.append(rows.columns)
        crc = google_crc32c.extend(crc, rows.images.tobytes())
        rows.images[[row - start for row in old.failed if 0 <= row - start < len(rows.images)]] = 0
        crc_of_before = google_crc32c.extend(crc_of_before, rows.images.tobytes())
        tick(len(rows.images))
    columns = {
        name: list(chain.from_iterable(part[name].tolist() for part in parts)) for name in parts[0]
    }
    return _Images(crc, crc_of_before, failed, columns)


def _no_tick(n_rows: int) -> None:
    pass


def _check_none_lost(failed: Mapping[str, str], old: _OldShard) -> None:
    """Raise ``StageError`` where a row cannot be read that could be before."""
    if lost := [row for row in failed if int(row) not in old.failed]:
        raise StageError(
            f"row {lost[0]} was read before and cannot be now ({failed[lost[0]]}): the shard stays "
            "as it is"
        )
