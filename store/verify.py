"""Verification: compare the files on disk with the receipts, in both directions; and repair."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from store.artifacts import CHECKPOINTS, FAILED_KEY, Artifact
from store.catalog import FEATURES, STORE_KEY, FeatureStore, store_file
from store.encoding import chunk_key, metadata_files, samples_key
from store.errors import DamagedError, StoreError
from store.failures import ACCEPTED_KEY, n_accepted
from store.featureset import FeatureSet
from store.lease import LEASES, Lease
from store.machine import Machine
from store.plan import is_plan
from store.receipts import Receipt
from store.schema import Schema
from store.seal import FileDigest, digests_in
from store.shards import Shard
from store.shardset import PLAN_KEY, RECEIPTS, ShardSet, receipt_key
from store.storage import STAGING, Storage, checksum

FILE_PROBLEMS = ("missing", "truncated", "altered", "unreadable", "receipt without data")
"""Kinds of problems that can be checked again from a receipt and its files."""

REWRITTEN = "running the command that made the set rewrites it"
RECREATE = "remove the folder and create it again"

QUARANTINE = "quarantine"
"""Folder of a set that keeps the damaged files that were removed from it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A difference between what is on disk and what the plan and the receipts say.

    Attributes:
        set_name: name of the set or artifact.
        kind: missing, truncated, altered, unreadable, damaged receipt, receipt without data,
            data without receipt, data without card, unexplained NaN, missing shard, litter or
            altered plan.
        key: the file.
        detail: what was expected and found, or what to do.
        shard: ``None`` for files of the set as a whole.
        receipt: checksum of the shard's receipt when the problem was found.
    """

    set_name: str
    kind: str
    key: str
    detail: str
    shard: Shard | None = None
    receipt: str = ""

    @property
    def is_harmless(self) -> bool:
        """Left by a crash, or not computed yet: resuming continues, and ``repair`` cleans up."""
        return self.kind in ("data without receipt", "data without card", "litter", "missing shard")

    @property
    def needs_command(self) -> bool:
        """Whether the command that made the set must be rerun; array metadata needs no rerun."""
        return not self.is_harmless and not self.key.endswith("zarr.json")


def verify_feature_set(
    feature_set: FeatureSet, tick: Callable[[int], None] = lambda _: None
) -> Iterator[Problem]:
    """Find every problem of a set, reading all bytes; ``tick`` is called with the rows checked.

    A missing shard only means that the set is incomplete; see ``Problem.is_harmless``.
    """
    shard_set = feature_set.shard_set
    schema = feature_set.schema
    fixed = _metadata_of(shard_set)
    yield from _fixed_problems(feature_set, fixed)
    keys_of = {
        shard.index: [*(chunk_key(spec, shard) for spec in schema.arrays), samples_key(shard)]
        for shard in shard_set.shards
    }
    # Receipts first: while a driver works, data without a receipt may appear, never the reverse.
    receipts = set(shard_set.storage.keys(RECEIPTS))
    data = {key for key in shard_set.storage.keys("") if not key.startswith(f"{RECEIPTS}/")}
    existing = receipts | data
    for shard in shard_set.shards:
        problems = _shard_problems(feature_set, shard, keys_of[shard.index], existing)
        yield from _with_receipt(shard_set, shard, problems)
        tick(shard.n_rows)
    known = {PLAN_KEY, *fixed, *(key for keys in keys_of.values() for key in keys)}
    known |= {receipt_key(shard) for shard in shard_set.shards}
    known |= {*shard_set.storage.keys(LEASES), *shard_set.storage.keys(QUARANTINE), ACCEPTED_KEY}
    if ACCEPTED_KEY in existing and not n_accepted(shard_set):
        detail = "accept the failed rows again"
        yield Problem(feature_set.name, "altered", ACCEPTED_KEY, detail)
    for key in sorted(existing - known):
        yield Problem(feature_set.name, "litter", key, "does not belong to this set")
    yield from _litter(feature_set.name, shard_set.storage)


def verify_plans(store: FeatureStore, kind: str = FEATURES) -> Iterator[Problem]:
    """Yield a problem for each set whose plan was altered, so that it cannot be opened."""
    for name in store.damaged_sets(kind):
        yield _altered_plan(name)


def verify_root(store: FeatureStore) -> Iterator[Problem]:
    """Find every problem in the store's own folder."""
    if store.storage.read(STORE_KEY) != store_file():
        yield Problem("the store", "altered", STORE_KEY, "rewrite it (docs/reference/store.md)")
    yield from _litter("the store", store.storage)


def _litter(name: str, storage: Storage) -> Iterator[Problem]:
    """Staged files, left by a crash or being written right now."""
    for staged in storage.staged():
        yield Problem(name, "litter", f"{STAGING}/{staged}", "an unfinished write")


def verify_files(
    shard_set: ShardSet, tick: Callable[[int], None] = lambda _: None
) -> Iterator[Problem]:
    """Find every problem in the files that receipts list, whatever they contain."""
    name = shard_set.storage.location
    done = shard_set.done()
    beside: dict[str, FileDigest] = {}
    for shard in shard_set.shards:
        if shard.index in done:
            yield from _with_receipt(shard_set, shard, _receipt_problems(shard_set, shard))
            with suppress(StoreError, OSError):  # a damaged receipt has just been reported
                beside |= shard_set.receipt(shard).beside
        else:
            yield Problem(name, "missing shard", receipt_key(shard), "not computed yet", shard)
        tick(shard.n_rows)
    for key, expected in beside.items():
        if found := _difference(shard_set.storage, key, expected):
            yield Problem(name, found[0], key, found[1])
    yield from _litter(name, shard_set.storage)


def _with_receipt(
    shard_set: ShardSet, shard: Shard, problems: Iterator[Problem]
) -> Iterator[Problem]:
    """Add the checksum of the shard's receipt, taken before its problems are searched for."""
    receipt = _receipt_checksum(shard_set, shard)
    return (replace(problem, receipt=receipt) for problem in problems)


def _receipt_checksum(shard_set: ShardSet, shard: Shard) -> str:
    """Checksum of the receipt file; empty if it is missing or cannot be read."""
    try:
        return checksum(shard_set.storage.read(receipt_key(shard)))
    except OSError:  # includes NotFoundError
        return ""


def _receipt_problems(shard_set: ShardSet, shard: Shard) -> Iterator[Problem]:
    """Problems of the receipt of a shard and of the files that it lists."""
    name = shard_set.storage.location
    receipt = _receipt_or_problem(name, shard_set, shard)
    if isinstance(receipt, Problem):
        yield receipt
        return
    if receipt.plan != shard_set.fingerprint:
        detail = f"{PLAN_KEY} does not match {receipt_key(shard)}: {RECREATE}"
        yield Problem(name, "altered plan", PLAN_KEY, detail)
        return
    for key, expected in receipt.files.items():
        if found := _difference(shard_set.storage, key, expected):
            yield Problem(name, found[0], key, found[1], shard)


def _receipt_or_problem(name: str, shard_set: ShardSet, shard: Shard) -> Receipt | Problem:
    try:
        return shard_set.receipt(shard)
    except (StoreError, OSError) as error:
        kind = "unreadable" if isinstance(error, OSError) else "damaged receipt"
        return Problem(name, kind, receipt_key(shard), str(error), shard)


def verify_artifact(artifact: Artifact) -> Iterator[Problem]:
    """Find every problem of an artifact; unfinished ones have no checksums."""
    name, storage = f"{artifact.kind} {artifact.name}", artifact.storage
    yield from _litter(name, storage)
    if storage.size(PLAN_KEY) is None:
        yield Problem(name, "missing", PLAN_KEY, RECREATE)
        return
    if not artifact.is_complete():
        for key in storage.keys(""):
            if key not in (PLAN_KEY, FAILED_KEY) and not key.startswith(
                (f"{LEASES}/", f"{CHECKPOINTS}/")
            ):
                yield Problem(name, "data without card", key, "not counted as finished")
        return
    try:
        card = artifact.card()
    except (StoreError, OSError) as error:
        yield Problem(name, "altered", artifact.card_key, str(error))
        return
    plan = {PLAN_KEY: card["plan"]} if "plan" in card else {}  # cards of 0.2 have no plan
    for key, expected in digests_in({**plan, **card["files"]}).items():
        if found := _difference(storage, key, expected):
            yield Problem(name, found[0], key, f"{found[1]}; {RECREATE}")


def sweep(storage: Storage) -> None:
    """Remove staged files that a crash left; raises ``LeaseError`` if a driver is at work."""
    with Lease(storage, purpose="repair"):
        pass  # taking the lease sweeps


def _altered_plan(name: str) -> Problem:
    detail = f"does not match the folder's name; {REWRITTEN}"
    return Problem(name, "altered plan", PLAN_KEY, detail)


def _metadata_of(shard_set: ShardSet) -> dict[str, bytes]:
    schema = Schema.from_json(dict(shard_set.plan["schema"]))
    return metadata_files(schema, shard_set.n_rows, int(shard_set.plan["shard_rows"]))


def _fixed_problems(feature_set: FeatureSet, fixed: Mapping[str, bytes]) -> Iterator[Problem]:
    name, storage = feature_set.name, feature_set.shard_set.storage
    if storage.size(PLAN_KEY) is None:
        yield Problem(name, "missing", PLAN_KEY, REWRITTEN)
    elif not is_plan(storage.read(PLAN_KEY), feature_set.fingerprint):
        yield _altered_plan(name)
    for key, data in fixed.items():
        if storage.size(key) is None:
            yield Problem(name, "missing", key, "array metadata")
        elif storage.read(key) != data:
            yield Problem(name, "altered", key, "array metadata")


def _shard_problems(
    feature_set: FeatureSet, shard: Shard, keys: list[str], existing: set[str]
) -> Iterator[Problem]:
    name, shard_set = feature_set.name, feature_set.shard_set
    if receipt_key(shard) not in existing:
        found = [key for key in keys if key in existing]
        for key in found:
            yield Problem(name, "data without receipt", key, "not counted as done", shard)
        if not found:
            yield Problem(name, "missing shard", receipt_key(shard), "not computed yet", shard)
        return
    receipt = _receipt_or_problem(name, shard_set, shard)
    if isinstance(receipt, Problem):
        yield receipt
        return
    if receipt.shard != shard:
        yield Problem(
            name, "damaged receipt", receipt_key(shard), "belongs to another shard", shard
        )
        return
    if receipt.plan != shard_set.fingerprint:
        yield Problem(name, "damaged receipt", receipt_key(shard), "belongs to another plan", shard)
        return
    if not any(key in existing for key in keys):
        yield Problem(name, "receipt without data", receipt_key(shard), "no file exists", shard)
        return
    is_damaged = False
    for problem in _file_problems(feature_set, shard, keys, receipt):
        is_damaged = True
        yield problem
    if not is_damaged:
        yield from _nan_problems(feature_set, shard, receipt)


def _file_problems(
    feature_set: FeatureSet, shard: Shard, keys: list[str], receipt: Receipt
) -> Iterator[Problem]:
    name, storage = feature_set.name, feature_set.shard_set.storage
    for key in keys:
        expected = receipt.files.get(key)
        if expected is None:
            yield Problem(
                name, "damaged receipt", receipt_key(shard), f"does not list {key}", shard
            )
        elif found := _difference(storage, key, expected):
            yield Problem(name, found[0], key, found[1], shard)


def _difference(storage: Storage, key: str, expected: FileDigest) -> tuple[str, str] | None:
    """Kind and detail of a difference to the written file, or ``None`` if there is none."""
    size = storage.size(key)
    if size is None:
        return "missing", f"{expected.n_bytes} bytes expected"
    if size != expected.n_bytes:
        kind = "truncated" if size < expected.n_bytes else "altered"
        return kind, f"{size} bytes, {expected.n_bytes} were written"
    try:
        found = checksum(storage.read(key))
    except OSError as error:
        return "unreadable", error.strerror or str(error)
    if found != expected.sha256:
        return "altered", f"sha256 {found[:12]}…, {expected.sha256[:12]}… was written"
    return None


def _nan_problems(feature_set: FeatureSet, shard: Shard, receipt: Receipt) -> Iterator[Problem]:
    explained = receipt.failed.keys()
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
    """Discard every damaged shard, so that rerunning the command recomputes it.

    Damaged files are kept under ``quarantine/`` for inspection. Array metadata is rewritten, other
    damaged files of the whole set are removed, and unfinished writes are swept. Files that do not
    belong to the set are left alone, and so is the plan, which rerunning the command rewrites.

    Args:
        shard_set: the set to repair.
        problems: what verification found.
        machine: the machine that holds the lease, this one by default.

    Returns:
        The discarded shards, in row order.

    Raises:
        LeaseError: a driver is at work on the set.
    """
    shards = [p.shard for p in problems if p.shard is not None and not p.is_harmless]
    damaged = {shard.index: shard for shard in shards}
    storage = shard_set.storage
    fixed = _metadata_of(shard_set) if "schema" in shard_set.plan else {}
    with Lease(storage, purpose="repair", machine=machine) as lease:
        damaged = {i: damaged[i] for i in damaged if _is_still_damaged(shard_set, i, problems)}
        for problem in problems:
            if problem.shard is not None and problem.shard.index in damaged:
                _quarantine(storage, problem.key)
        if damaged:
            shard_set.discard(damaged.values(), lease.check)
        for problem in problems:
            if problem.key in fixed:
                storage.write(problem.key, fixed[problem.key])
            elif (
                problem.shard is None and problem.kind in FILE_PROBLEMS and problem.key != PLAN_KEY
            ):
                _quarantine(storage, problem.key)
                storage.remove(problem.key)
    return tuple(damaged[index] for index in sorted(damaged))


def _quarantine(storage: Storage, key: str) -> None:
    with suppress(OSError):  # a file that cannot be read or copied is not kept
        storage.write(f"{QUARANTINE}/{key}", storage.read(key))


def _is_still_damaged(shard_set: ShardSet, index: int, problems: list[Problem]) -> bool:
    """Whether a shard has not been recomputed since it was found to be damaged."""
    receipt = _receipt_checksum(shard_set, shard_set.shards[index])
    of_shard = [p for p in problems if p.shard is not None and p.shard.index == index]
    kinds = {p.kind for p in of_shard if p.receipt == receipt and not p.is_harmless}
    if kinds <= set(FILE_PROBLEMS):  # a file may be missing now that was altered then
        found = _receipt_problems(shard_set, shard_set.shards[index])
        return bool(kinds) and any(True for _ in found)
    return True
