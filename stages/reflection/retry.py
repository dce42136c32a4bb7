"""Recompute the failed rows of a feature set, and reuse all others.

Fixing a file changes the data set, and so the feature set. Shards whose other images are unchanged,
by their checksum, are copied from the previous set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import google_crc32c
from numpy.typing import NDArray

from pipeline.make import ShardJob
from pipeline.stage import Preview
from pipeline.work import ShardOutput, Tick
from stages.data.listing import left_out_facts
from stages.data.source import ImageSource
from stages.errors import InputError, StageError
from stages.reflection.extraction import FittedExtraction
from store.catalog import FeatureStore
from store.encoding import chunk_key, decode_chunk, encode_rows, samples_key
from store.errors import DamagedError, NotFoundError
from store.featureset import FeatureSet
from store.plan import Plan, canonical_json
from store.receipts import FAILED, Receipt
from store.schema import Schema
from store.seal import FileDigest
from store.shards import Shard
from store.shardset import ShardSet
from store.tables import read_table

if TYPE_CHECKING:
    from stages.reflection.flow import Flow

OF_BEFORE = ("written_at", "host", "device", "versions")
"""Facts of the previous receipt that say where and when the reused rows were computed."""


RETRIED = "retried"
"""Fact of a receipt: row -> reason why it had failed before the retry."""


def retried_rows(receipt: Receipt) -> set[int]:
    """Rows of a shard that had failed and were recomputed."""
    return {int(row) for row in receipt.facts.get(RETRIED, {})}


@dataclass(frozen=True)
class RetryFailed:
    """The extract stage for a set with failed rows, or whose data set was fixed.

    Attributes:
        extraction: computes rows.
        own: the set to complete; its existing shards are reused.
        before: the set of the data set before it was fixed, for the other shards.
    """

    extraction: FittedExtraction
    own: ShardSet
    before: ShardSet | None

    rows: ClassVar[str] = FittedExtraction.rows

    @property
    def name(self) -> str:
        """The name of the extract stage: the rows are the same."""
        return self.extraction.name

    @property
    def version(self) -> int:
        """The version of the extract stage."""
        return self.extraction.version

    def check(self, plan: Plan) -> None:
        """Check that the source is still the planned one; raises ``InputError``."""
        self.extraction.check(plan)

    def setup(self, n_threads: int) -> Flow:
        """Open the source and load the networks, as extraction does."""
        return self.extraction.setup(n_threads)

    def compute(self, state: Flow, shard: Shard, tick: Tick) -> ShardOutput:
        """Reuse the old rows, and recompute those that failed in the same batches as before.

        All images of the shard are read and compared by checksum. If they changed, or there is no
        old shard, the whole shard is computed. Raises ``StageError`` if a row of the same set would
        be lost.
        """
        old = _old_shard(self.own, shard)
        is_own = old is not None
        if old is None and self.before is not None:
            old = _old_shard(self.before, shard)
        if old is None:
            return self.extraction.compute(state, shard, tick)
        images = _read(state.source, shard, old, tick)
        if images.are_of(old):
            output = self._mended(state, shard, old, images)
            facts = {**output.facts, **left_out_facts(state.source.left_out)}
            output = replace(output, facts=facts)
        else:
            output = self.extraction.compute(state, shard, tick)
        if is_own:
            _check_none_lost(output.facts["failed"], old)
        return output

    def _mended(
        self,
        state: Flow,
        shard: Shard,
        old: _OldShard,
        images: _Images,
    ) -> ShardOutput:
        """The old shard, with those of its failed rows recomputed whose images can be read now."""
        failed = dict(old.failed)
        for start in range(shard.start, shard.stop, old.batch_rows):
            batch = Shard(shard.index, start, min(start + old.batch_rows, shard.stop))
            rows = [row for row in old.failed if batch.start <= row < batch.stop]
            if not set(rows) - set(images.failed):
                continue
            part = self.extraction.compute(state, batch, _no_tick)
            rows = _with_their_groups(rows, batch, self.extraction.stage.group_rows)
            old.take(rows, part.files, batch)
            for row in rows:
                failed.pop(row, None)
            found = {int(row): reason for row, reason in part.facts["failed"].items()}
            failed |= {row: found[row] for row in rows if row in found}
        files = encode_rows(old.schema, shard, old.chunk_rows, old.arrays, old.columns)
        facts = {
            FAILED: {str(row): failed[row] for row in sorted(failed)},
            "images_crc32c": f"{images.crc:08x}",
            "device": self.extraction.stage.device,
            "batch_rows": old.batch_rows,
            RETRIED: {str(row): reason for row, reason in old.failed.items()},
            "others_of": {"set": old.set_name, **{k: old.receipt.facts.get(k) for k in OF_BEFORE}},
        }
        return ShardOutput(files, facts)


def _with_their_groups(rows: list[int], batch: Shard, group_rows: int) -> list[int]:
    """All rows of a batch that share batch statistics with one of ``rows``."""
    groups = {(row - batch.start) // group_rows for row in rows}
    every = range(batch.start, batch.stop)
    return [row for row in every if (row - batch.start) // group_rows in groups]


def retry_job(job: ShardJob, store: FeatureStore) -> ShardJob:
    """The job that recomputes the failed rows and any missing shards of a set.

    Args:
        job: see `extraction_job`.
        store: store of the set.

    Raises:
        InputError: there is no set yet, neither of these images nor of their earlier version.
    """
    existing, before = sets_to_retry(store, job.plan)

    def fit(n_shards: int) -> Callable[[ShardSet], RetryFailed]:
        work_on = job.fit(n_shards)
        old = before.shard_set if before else None

        def work(own: ShardSet) -> RetryFailed:
            extraction = work_on(own)
            assert isinstance(extraction, FittedExtraction)  # made by `extraction_job`
            return RetryFailed(extraction, own, old)

        return work

    n_again = existing.shard_set.n_failed_rows() if existing else 0
    source = before.name if before else None
    text = (
        f"would retry {n_again:,} rows; missing shards with unchanged images would be taken from "
        f"{source or 'no other set'}"
    )
    facts = {**job.preview.facts, "rows_to_retry": n_again, "taken_from": source}
    preview = Preview(job.preview.text, facts, (*job.preview.notes, text))
    return replace(job, fit=fit, redo=_shards_to_redo, preview=preview)


def _shards_to_redo(own: ShardSet) -> list[Shard]:
    failed = own.failed_rows()
    return [shard for shard in own.shards if shard.index in failed]


def sets_to_retry(store: FeatureStore, plan: Plan) -> tuple[FeatureSet | None, FeatureSet | None]:
    """The set of a plan, and the set of the data set before it was fixed.

    Raises ``InputError`` if neither exists.
    """
    there, before = store.find(plan), _set_before(store, plan)
    if there is None and before is None:
        raise InputError(
            f"--retry-failed: {plan['name']} has no rows in {store.location} to retry: "
            "leave out the option to extract them"
        )
    return there, before


def _set_before(store: FeatureStore, plan: Plan) -> FeatureSet | None:
    """The set whose plan differs only in the content of the data set; the fullest, then newest."""
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
    newest = max(receipt.facts["written_at"] for receipt in found.shard_set.receipts())
    return len(done), newest


def _without_content(plan: Plan) -> bytes:
    source = {**plan["inputs"]["source"], "fingerprint": None}
    return canonical_json({**plan, "inputs": {**plan["inputs"], "source": source}})


@dataclass(frozen=True)
class _OldShard:
    """A shard as it was computed before; ``failed`` maps its failed rows to the reasons."""

    set_name: str
    schema: Schema
    chunk_rows: int
    receipt: Receipt
    arrays: dict[str, NDArray[Any]]
    columns: dict[str, list[Any]]
    failed: dict[int, str]
    start: int

    @property
    def batch_rows(self) -> int:
        """Images per forward pass, which must stay the same because it affects rounding."""
        return int(self.receipt.facts["batch_rows"])

    def take(self, rows: list[int], files: Mapping[str, bytes], batch: Shard) -> None:
        """Replace rows by those that were recomputed in a batch."""
        ours = [row - self.start for row in rows]
        theirs = [row - batch.start for row in rows]
        for spec in self.schema.arrays:
            values = decode_chunk(spec, files[chunk_key(spec, batch)], self.chunk_rows)
            self.arrays[spec.name][ours] = values[theirs]
        for name, values in read_table(files[samples_key(batch)]).to_pydict().items():
            for our, their in zip(ours, theirs, strict=True):
                self.columns[name][our] = values[their]


def _old_shard(there: ShardSet, shard: Shard) -> _OldShard | None:
    """An existing shard, checked against its receipt; ``None`` if it is missing or damaged."""
    try:
        receipt = there.receipt(shard)
        files = {key: there.storage.read(key) for key in receipt.files}
    except (NotFoundError, DamagedError, OSError):
        return None
    if receipt.files != {key: FileDigest.of(data) for key, data in files.items()}:
        return None
    schema, chunk_rows = Schema.from_json(dict(there.plan["schema"])), there.chunk_rows
    arrays = {
        spec.name: decode_chunk(spec, files[chunk_key(spec, shard)], chunk_rows)[: shard.n_rows]
        for spec in schema.arrays
    }
    columns = read_table(files[samples_key(shard)]).to_pydict()
    name = f"{there.plan['name']}-{there.fingerprint}"
    return _OldShard(
        name, schema, chunk_rows, receipt, arrays, columns, receipt.failed, shard.start
    )


@dataclass(frozen=True)
class _Images:
    """The images of a shard as they are now.

    Attributes:
        crc: CRC-32C of the images.
        crc_of_before: the same, with zeros in place of those that failed before.
        failed: row -> reason, for rows that cannot be read.
        columns: columns of the source for these rows.
    """

    crc: int
    crc_of_before: int
    failed: dict[int, str]
    columns: dict[str, list[Any]]

    def are_of(self, old: _OldShard) -> bool:
        """Whether these are the images of an old shard, except for those that failed.

        An image that was read but failed in the network is part of the old checksum.
        """
        is_same = old.receipt.facts["images_crc32c"] in (
            f"{self.crc_of_before:08x}",
            f"{self.crc:08x}",
        )
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
    """Raise ``StageError`` if a row that could be read before cannot be read now."""
    if lost := [row for row in failed if int(row) not in old.failed]:
        raise StageError(
            f"row {lost[0]} could be read before and cannot be read now ({failed[lost[0]]}): the "
            "shard is kept as it is"
        )
