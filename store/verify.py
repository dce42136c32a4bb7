"""Verification: what is on disk against what the receipts vouch for, and back."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from store.artifacts import CHECKPOINTS, Artifact
from store.catalog import STORE_KEY, FeatureStore, store_file
from store.encoding import chunk_key, metadata_files, samples_key
from store.errors import DamagedError, StoreError
from store.featureset import FeatureSet
from store.lease import LEASES, Lease
from store.machine import Machine
from store.plan import is_plan
from store.schema import Schema
from store.shards import Shard
from store.shardset import BESIDE, PLAN_KEY, RECEIPTS, ShardSet, receipt_key
from store.storage import STAGING, Storage, checksum

OF_FILES = ("missing", "truncated", "altered", "unreadable", "receipt without data")
"""Kinds of problems that a look at the receipt and its files shows again."""

MAKE_AGAIN = "remove the folder and make it again"

QUARANTINE = "quarantine"
"""Folder of a set with the files that were taken out of it because they were hurt."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as the plan and the receipts say.

    ``kind`` is one of: missing, truncated, altered, unreadable, damaged receipt, receipt without
    data, data without receipt or card, unexplained NaN, missing shard, litter, altered plan.
    ``shard`` is ``None`` for files of the set as a whole, ``receipt`` the checksum that its receipt
    had.
    """

    set_name: str
    kind: str
    key: str
    detail: str
    shard: Shard | None = None
    receipt: str = ""

    @property
    def is_harmless(self) -> bool:
        """Left by a kill or not computed yet; the same command goes on, ``repair`` sweeps."""
        return self.kind in ("data without receipt", "data without card", "litter", "missing shard")

    @property
    def needs_command(self) -> bool:
        """Whether the command that made the set must mend it; array metadata needs none."""
        return not self.is_harmless and not self.key.endswith("zarr.json")


def verify_feature_set(
    feature_set: FeatureSet, tick: Callable[[int], None] = lambda _: None
) -> Iterator[Problem]:
    """Every problem of a set: all bytes are read. ``tick`` gets the rows that were checked.

    A missing shard is a problem only in that the set is incomplete; see ``Problem.is_harmless``.
    """
    shard_set = feature_set.shard_set
    schema = feature_set.schema
    fixed = _metadata_of(shard_set)
    yield from _fixed_problems(feature_set, fixed)
    keys_of = {
        shard.index: [*(chunk_key(spec, shard) for spec in schema.arrays), samples_key(shard)]
        for shard in shard_set.shards
    }
    # Receipts first: of a driver at work we then see data without a receipt, never the reverse.
    receipts = set(shard_set.storage.keys(RECEIPTS))
    data = {key for key in shard_set.storage.keys("") if not key.startswith(f"{RECEIPTS}/")}
    there = receipts | data
    for shard in shard_set.shards:
        problems = _shard_problems(feature_set, shard, keys_of[shard.index], there)
        yield from _seen(shard_set, shard, problems)
        tick(shard.n_rows)
    known = {PLAN_KEY, *fixed, *(key for keys in keys_of.values() for key in keys)}
    known |= {receipt_key(shard) for shard in shard_set.shards}
    known |= {*shard_set.storage.keys(LEASES), *shard_set.storage.keys(QUARANTINE)}
    for key in sorted(there - known):
        yield Problem(feature_set.name, "litter", key, "not of this set")
    yield from _litter(feature_set.name, shard_set.storage)


def verify_plans(store: FeatureStore) -> Iterator[Problem]:
    """A problem for each feature set of a store that cannot be opened: its plan was altered."""
    for name in store.damaged_sets():
        yield _altered_plan(name)


def verify_root(store: FeatureStore) -> Iterator[Problem]:
    """Every problem of what lies in the store's own folder."""
    if store.storage.read(STORE_KEY) != store_file():
        yield Problem("the store", "altered", STORE_KEY, "write it anew, as docs/store.md shows it")
    yield from _litter("the store", store.storage)


def _litter(name: str, storage: Storage) -> Iterator[Problem]:
    """What a kill has left staged, or what someone stages just now."""
    for staged in storage.staged():
        yield Problem(name, "litter", f"{STAGING}/{staged}", "an unfinished write")


def verify_files(
    shard_set: ShardSet, tick: Callable[[int], None] = lambda _: None
) -> Iterator[Problem]:
    """Every problem in the files that receipts vouch for, whatever they hold."""
    name = shard_set.storage.location
    done = shard_set.done()
    beside: dict[str, Any] = {}
    for shard in shard_set.shards:
        if shard.index in done:
            yield from _seen(shard_set, shard, _vouched_problems(shard_set, shard))
            with suppress(StoreError, OSError):  # a damaged receipt was told of just now
                beside |= shard_set.receipt(shard).get(BESIDE, {})
        else:
            yield Problem(name, "missing shard", receipt_key(shard), "not computed yet", shard)
        tick(shard.n_rows)
    for key, expected in beside.items():
        if found := _difference(shard_set.storage, key, expected):
            yield Problem(name, found[0], key, found[1])
    yield from _litter(name, shard_set.storage)


def _seen(shard_set: ShardSet, shard: Shard, problems: Iterator[Problem]) -> Iterator[Problem]:
    """The problems, each with the checksum of the receipt as it was before they were looked for."""
    receipt = _receipt_checksum(shard_set, shard)
    return (replace(problem, receipt=receipt) for problem in problems)


def _receipt_checksum(shard_set: ShardSet, shard: Shard) -> str:
    """Of the file, whatever it holds; empty where there is none, or it cannot be read."""
    try:
        return checksum(shard_set.storage.read(receipt_key(shard)))
    except OSError:  # which a NotFoundError is, too
        return ""


def _vouched_problems(shard_set: ShardSet, shard: Shard) -> Iterator[Problem]:
    """What is wrong with the receipt of a shard, or with the files that it vouches for."""
    name = shard_set.storage.location
    receipt = _receipt_or_problem(name, shard_set, shard)
    if isinstance(receipt, Problem):
        yield receipt
        return
    if receipt.get("plan") != shard_set.fingerprint:
        detail = f"{PLAN_KEY} is not that of {receipt_key(shard)}: remove the folder, make it again"
        yield Problem(name, "altered plan", PLAN_KEY, detail)
        return
    for key, expected in receipt["files"].items():
        if found := _difference(shard_set.storage, key, expected):
            yield Problem(name, found[0], key, found[1], shard)


def _receipt_or_problem(name: str, shard_set: ShardSet, shard: Shard) -> dict[str, Any] | Problem:
    try:
        return shard_set.receipt(shard)
    except (StoreError, OSError) as error:
        kind = "unreadable" if isinstance(error, OSError) else "damaged receipt"
        return Problem(name, kind, receipt_key(shard), str(error), shard)


def verify_artifact(artifact: Artifact) -> Iterator[Problem]:
    """Every problem of a model, head, result or report; an unfinished one promises nothing yet."""
    name, storage = f"{artifact.kind} {artifact.name}", artifact.storage
    yield from _litter(name, storage)
    if storage.size(PLAN_KEY) is None:
        yield Problem(name, "missing", PLAN_KEY, MAKE_AGAIN)
        return
    if not artifact.is_complete():
        for key in storage.keys(""):
            if key != PLAN_KEY and not key.startswith((f"{LEASES}/", f"{CHECKPOINTS}/")):
                yield Problem(name, "data without card", key, "not counted as finished")
        return
    try:
        card = artifact.card()
    except (StoreError, OSError) as error:
        yield Problem(name, "altered", artifact.card_key, str(error))
        return
    plan = {PLAN_KEY: card["plan"]} if "plan" in card else {}  # cards of 0.2 have none
    for key, expected in {**plan, **card["files"]}.items():
        if found := _difference(storage, key, expected):
            yield Problem(name, found[0], key, f"{found[1]}; {MAKE_AGAIN}")


def sweep(storage: Storage) -> None:
    """Drop what a kill has left staged; raises ``LeaseError`` where someone is at work."""
    with Lease(storage, purpose="repair"):
        pass  # who takes a lease sweeps


def _altered_plan(name: str) -> Problem:
    detail = "not the plan of the folder's name; the same extract command writes it again"
    return Problem(name, "altered plan", PLAN_KEY, detail)


def _metadata_of(shard_set: ShardSet) -> dict[str, bytes]:
    schema = Schema.from_json(dict(shard_set.plan["schema"]))
    return metadata_files(schema, shard_set.n_rows, int(shard_set.plan["shard_rows"]))


def _fixed_problems(feature_set: FeatureSet, fixed: Mapping[str, bytes]) -> Iterator[Problem]:
    name, storage = feature_set.name, feature_set.shard_set.storage
    if storage.size(PLAN_KEY) is None:
        yield Problem(name, "missing", PLAN_KEY, "the same extract command writes it again")
    elif not is_plan(storage.read(PLAN_KEY), feature_set.fingerprint):
        yield _altered_plan(name)
    for key, data in fixed.items():
        if storage.size(key) is None:
            yield Problem(name, "missing", key, "array metadata")
        elif storage.read(key) != data:
            yield Problem(name, "altered", key, "array metadata")


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
    receipt = _receipt_or_problem(name, shard_set, shard)
    if isinstance(receipt, Problem):
        yield receipt
        return
    if receipt.get("shard") != {"index": shard.index, "start": shard.start, "stop": shard.stop}:
        yield Problem(name, "damaged receipt", receipt_key(shard), "of another shard", shard)
        return
    if receipt.get("plan") != shard_set.fingerprint:
        yield Problem(name, "damaged receipt", receipt_key(shard), "of another plan", shard)
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
        if expected is None:
            yield Problem(name, "damaged receipt", receipt_key(shard), f"{key} is not in it", shard)
        elif found := _difference(storage, key, expected):
            yield Problem(name, found[0], key, found[1], shard)


def _difference(storage: Storage, key: str, expected: Mapping[str, Any]) -> tuple[str, str] | None:
    """Kind and detail of what is wrong with a file; ``None`` where it is as it was written."""
    size = storage.size(key)
    if size is None:
        return "missing", f"{expected['bytes']} bytes expected"
    if size != expected["bytes"]:
        kind = "truncated" if size < expected["bytes"] else "altered"
        return kind, f"{size} bytes, {expected['bytes']} were written"
    try:
        found = checksum(storage.read(key))
    except OSError as error:
        return "unreadable", error.strerror or str(error)
    if found != expected["sha256"]:
        return "altered", f"sha256 {found[:12]}…, {expected['sha256'][:12]}… was written"
    return None


def _nan_problems(
    feature_set: FeatureSet, shard: Shard, receipt: Mapping[str, Any]
) -> Iterator[Problem]:
    explained = {int(row) for row in receipt.get("failed", {})}
    for spec in feature_set.schema.arrays:
        try:
            values = feature_set.read_chunk(spec.name, shard).reshape(shard.n_rows, -1)
        except (DamagedError, OSError) as error:
            yield Problem(feature_set.name, "altered", chunk_key(spec, shard), str(error), shard)
            continue
        rows = shard.start + np.flatnonzero(np.isnan(values).any(axis=1))
        if unexplained := [int(row) for row in rows if int(row) not in explained]:
            detail = f"{len(unexplained)} rows, first {unexplained[0]}"
            key = chunk_key(spec, shard)
            yield Problem(feature_set.name, "unexplained NaN", key, detail, shard)


def repair(
    shard_set: ShardSet, problems: list[Problem], *, machine: Machine | None = None
) -> tuple[Shard, ...]:
    """Take every hurt shard back to missing, so that the same command computes it again.

    Its hurt files are kept under ``quarantine/``, for who wants to know what happened to them.
    Array metadata is written again, other hurt files of the whole set are taken out, unfinished
    writes are swept; files that are not of the set are left alone, and so is the plan, which the
    same command mends. Raises ``LeaseError`` where a driver is at work.
    """
    hurt = {p.shard.index: p.shard for p in problems if p.shard is not None and not p.is_harmless}
    storage = shard_set.storage
    fixed = _metadata_of(shard_set) if "schema" in shard_set.plan else {}
    with Lease(storage, purpose="repair", machine=machine) as lease:
        hurt = {index: hurt[index] for index in hurt if _is_still_hurt(shard_set, index, problems)}
        for problem in problems:
            if problem.shard is not None and problem.shard.index in hurt:
                _put_away(storage, problem.key)
        if hurt:
            shard_set.discard(hurt.values(), lease.check)
        for problem in problems:
            if problem.key in fixed:
                storage.write(problem.key, fixed[problem.key])
            elif problem.shard is None and problem.kind in OF_FILES and problem.key != PLAN_KEY:
                _put_away(storage, problem.key)
                storage.remove(problem.key)
    return tuple(hurt[index] for index in sorted(hurt))


def _put_away(storage: Storage, key: str) -> None:
    with suppress(OSError):  # what cannot be read, or kept, is not kept
        storage.write(f"{QUARANTINE}/{key}", storage.read(key))


def _is_still_hurt(shard_set: ShardSet, index: int, problems: list[Problem]) -> bool:
    """Whether nobody has computed a shard again since it was found to be hurt."""
    receipt = _receipt_checksum(shard_set, shard_set.shards[index])
    of_shard = [p for p in problems if p.shard is not None and p.shard.index == index]
    kinds = {p.kind for p in of_shard if p.receipt == receipt and not p.is_harmless}
    if kinds <= set(OF_FILES):
        kinds &= {problem.kind for problem in _vouched_problems(shard_set, shard_set.shards[index])}
    return bool(kinds)
