"""Verification: what is on disk against what the receipts vouch for, and back."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from store.encoding import chunk_key, metadata_files, samples_key
from store.errors import StoreError
from store.featureset import FeatureSet
from store.lease import LEASE_KEY
from store.plan import readable_json
from store.shards import Shard
from store.shardset import PLAN_KEY, ShardSet, receipt_key
from store.storage import TEMPORARY_SUFFIX, Storage, crc32c


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as the plan and the receipts say.

    ``kind`` is one of: missing, truncated, altered, damaged receipt, receipt without data, data
    without receipt, unexplained NaN, missing shard, litter, altered plan. ``shard`` is ``None`` for
    files of the set as a whole. ``is_harmless``: nothing that a reader gets is wrong.
    """

    set_name: str
    kind: str
    key: str
    detail: str
    shard: Shard | None = None

    @property
    def is_harmless(self) -> bool:
        """Left by a kill, replaced or swept when the command is run again."""
        return self.kind in ("data without receipt", "litter", "missing shard")


def verify_feature_set(
    feature_set: FeatureSet, tick: Callable[[int], None] = lambda _: None
) -> Iterator[Problem]:
    """Every problem of a set: all bytes are read. ``tick`` gets the rows that were checked.

    A missing shard is a problem only in that the set is incomplete; see ``Problem.is_harmless``.
    """
    shard_set = feature_set.shard_set
    schema = feature_set.schema
    fixed = metadata_files(schema, shard_set.n_rows, int(shard_set.plan["shard_rows"]))
    yield from _fixed_problems(feature_set.name, shard_set.storage, shard_set.plan, fixed)
    keys_of = {
        shard.index: [*(chunk_key(spec, shard) for spec in schema.arrays), samples_key(shard)]
        for shard in shard_set.shards
    }
    there = set(shard_set.storage.keys())
    for shard in shard_set.shards:
        yield from _shard_problems(feature_set, shard, keys_of[shard.index], there)
        tick(shard.n_rows)
    known = {PLAN_KEY, LEASE_KEY, *fixed, *(key for keys in keys_of.values() for key in keys)}
    known |= {receipt_key(shard) for shard in shard_set.shards}
    for key in sorted(there - known):
        detail = "an unfinished write" if key.endswith(TEMPORARY_SUFFIX) else "not of this set"
        yield Problem(feature_set.name, "litter", key, detail)


def _fixed_problems(
    name: str, storage: Storage, plan: Mapping[str, Any], fixed: Mapping[str, bytes]
) -> Iterator[Problem]:
    if not storage.location.endswith(name):
        yield Problem(name, "altered", PLAN_KEY, "the plan's hash is not the folder's fingerprint")
    elif storage.read(PLAN_KEY) != readable_json(plan):
        yield Problem(name, "altered", PLAN_KEY, "the plan was re-written by hand")
    for key, data in fixed.items():
        if storage.size(key) is None:
            yield Problem(name, "missing", key, "array metadata; run the same command again")
        elif storage.read(key) != data:
            yield Problem(name, "altered", key, "array metadata; run the same command again")


def _shard_problems(
    feature_set: FeatureSet, shard: Shard, keys: list[str], there: set[str]
) -> Iterator[Problem]:
    name, shard_set = feature_set.name, feature_set.shard_set
    if receipt_key(shard) not in there:
        found = [key for key in keys if key in there]
        for key in found:
            yield Problem(name, "data without receipt", key, "not counted as done", shard)
        if not found:
            yield Problem(name, "missing shard", receipt_key(shard), "not computed yet", shard)
        return
    try:
        receipt = shard_set.receipt(shard)
    except StoreError as error:
        yield Problem(name, "damaged receipt", receipt_key(shard), str(error), shard)
        return
    if receipt.get("shard") != {"index": shard.index, "start": shard.start, "stop": shard.stop}:
        yield Problem(name, "damaged receipt", receipt_key(shard), "of another shard", shard)
        return
    if not any(key in there for key in keys):
        yield Problem(name, "receipt without data", receipt_key(shard), "no file is there", shard)
        return
    hurt = False
    for problem in _file_problems(feature_set, shard, keys, receipt):
        hurt = True
        yield problem
    if not hurt:
        yield from _nan_problems(feature_set, shard, receipt)


def _file_problems(
    feature_set: FeatureSet, shard: Shard, keys: list[str], receipt: Mapping[str, Any]
) -> Iterator[Problem]:
    name, storage = feature_set.name, feature_set.shard_set.storage
    for key in keys:
        expected = receipt["files"].get(key)
        size = storage.size(key)
        if expected is None:
            yield Problem(name, "damaged receipt", receipt_key(shard), f"{key} is not in it", shard)
        elif size is None:
            yield Problem(name, "missing", key, f"{expected['bytes']} bytes expected", shard)
        elif size != expected["bytes"]:
            detail = f"{size} bytes, the receipt says {expected['bytes']}"
            kind = "truncated" if size < expected["bytes"] else "altered"
            yield Problem(name, kind, key, detail, shard)
        elif (found := crc32c(storage.read(key))) != expected["crc32c"]:
            detail = f"crc32c {found}, the receipt says {expected['crc32c']}"
            yield Problem(name, "altered", key, detail, shard)


def _nan_problems(
    feature_set: FeatureSet, shard: Shard, receipt: Mapping[str, Any]
) -> Iterator[Problem]:
    explained = {int(row) for row in receipt.get("failed", {})}
    for spec in feature_set.schema.arrays:
        values = feature_set.read_chunk(spec.name, shard).reshape(shard.n_rows, -1)
        rows = shard.start + np.flatnonzero(np.isnan(values).any(axis=1))
        if unexplained := [int(row) for row in rows if int(row) not in explained]:
            detail = f"{len(unexplained)} rows, first {unexplained[0]}"
            key = chunk_key(spec, shard)
            yield Problem(feature_set.name, "unexplained NaN", key, detail, shard)


def repair(shard_set: ShardSet, problems: list[Problem]) -> tuple[Shard, ...]:
    """Take every hurt shard back to missing, so that the same command computes it again.

    Litter is swept. Damage to the plan cannot be mended and is left as it is.
    """
    hurt = {p.shard.index: p.shard for p in problems if p.shard is not None and not p.is_harmless}
    for shard in hurt.values():
        shard_set.discard(shard)
    for problem in problems:
        if problem.kind == "litter":
            shard_set.storage.remove(problem.key)
    return tuple(hurt[index] for index in sorted(hurt))
