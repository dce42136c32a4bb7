"""List what is in a store, and the state of each item."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from pipeline.terminal import counted
from stages.stale import why_outdated, why_recomputed, why_stale
from store.artifacts import Artifact
from store.catalog import FEATURES, FeatureStore
from store.errors import DamagedError, SetNotFoundError, StoreError
from store.failures import failures_of
from store.featureset import FeatureSet
from store.lease import holder_of
from store.seal import size_mismatch
from store.shards import Shard
from store.shardset import ShardSet, receipt_key
from store.storage import Storage

N_NAMED = 4
"""Maximum number of ranges of missing shards that are listed."""

INTACT_STATES = ("complete", "partial", "failed")
"""States of a set whose existing rows are intact."""

SET_KINDS = (FEATURES, "scores", "maps", "quality")
"""Kinds of sets of rows; each has a folder of its own in the store."""

ARTIFACT_KINDS = ("model", "head", "quality-model", "result", "report")
"""In the order in which they are made; each has a folder of its own in the store."""

UNFINISHED = "not finished"
"""Progress of an artifact without a card."""

Row = dict[str, Any]  # Any: names and numbers side by side
ContentOf = Callable[[str], str | None]
"""`FeatureStore.content_of`, which remembers its answers."""


def contents(store: FeatureStore) -> list[Row]:
    """List the sets and artifacts of a store: kind, name, state, rows, bytes, and why.

    ``progress`` says how much exists ("3 of 5 shards"), ``detail`` also what is wrong, ``failed``
    maps the reasons of failed rows to their numbers.

    The state is the first that applies:

    - running: a driver is computing it.
    - damaged: a file is missing or has another size, or a receipt or card was altered (only
      ``verify`` reads all bytes).
    - failed: more rows failed than are allowed or accepted.
    - partial: shards or epochs are missing.
    - stale: an input was deleted or recreated, or its rows were recomputed.
    - complete.
    """
    rows, content_of = [], cache(store.content_of)
    for kind in SET_KINDS:
        rows += [_set_row(store, found, kind) for found in store.sets(kind)]
        rows += [_damaged_set_row(store, name, kind) for name in store.damaged_sets(kind)]
    for kind in ARTIFACT_KINDS:
        rows += [_artifact_row(store, each, content_of) for each in store.artifacts(kind)]
    return rows


def row_of_set(shard_set: ShardSet, kind: str, name: str) -> Row:
    """The row of any set of shards; whether it is stale is not checked."""
    sizes = shard_set.storage.sizes()
    missing = shard_set.missing()
    n_shards = len(shard_set.shards)
    progress = detail = f"{n_shards - len(missing)} of {counted(n_shards, 'shard')}"
    counts: Mapping[str, int] = {}
    holder = _holder(shard_set.storage)
    damage, failed = ("", {}) if holder else _damage(shard_set, sizes)
    if missing and not holder:
        detail += f", missing {spans(missing)}"
    if holder:
        state, detail = "running", f"{detail}; {holder}"
    elif damage:
        state, detail = "damaged", f"{damage}: `intro-pipe repair`"
    else:
        state = "partial" if missing else "complete"
        failures = failures_of(shard_set, failed)
        if failures.n_failed:
            state = "failed" if failures.are_too_many else state
            detail += f", {failures}"
            counts = failures.counts
    row = _row(kind, name, state, detail, sum(sizes.values()))
    return {**row, "rows": shard_set.n_rows, "progress": progress, "failed": dict(counts)}


def spans(shards: Sequence[Shard]) -> str:
    """Shard indexes as a list of ranges.

    >>> spans([Shard(index, index, index + 1) for index in (1, 3, 4, 5)])
    '1, 3-5'
    """
    found: list[list[int]] = []
    for shard in shards:
        if found and shard.index == found[-1][1] + 1:
            found[-1][1] = shard.index
        else:
            found.append([shard.index, shard.index])
    named = [str(low) if low == high else f"{low}-{high}" for low, high in found[:N_NAMED]]
    return ", ".join(named + ["..."] * (len(found) > N_NAMED))


def resolved_set(store: FeatureStore, name: str) -> FeatureSet:
    """The set of any kind that matches a name, feature sets first; see `FeatureStore.resolve`."""
    for kind in SET_KINDS:
        with suppress(SetNotFoundError):
            return store.resolve(name, kind)
    return store.resolve(name)  # raises the error for feature sets


def _set_row(store: FeatureStore, found: FeatureSet, kind: str) -> Row:
    row = row_of_set(found.shard_set, kind, found.name)
    if row["state"] not in INTACT_STATES:
        return row
    try:
        whys = [why_stale(store, found.plan), why_outdated(store, found.shard_set)]
    except StoreError as error:
        return {**row, "state": "damaged", "detail": str(error)}
    if not any(whys):
        return row
    state = "stale" if row["state"] == "complete" else row["state"]
    return {**row, "state": state, "detail": "; ".join([row["detail"], *filter(None, whys)])}


def _damage(shard_set: ShardSet, sizes: Mapping[str, int]) -> tuple[str, dict[int, dict[int, str]]]:
    """Damage that sizes and receipts reveal, or an empty string; and `ShardSet.failed`."""
    failed = {}
    for index in sorted(shard_set.done()):
        shard = shard_set.shards[index]
        try:
            receipt = shard_set.receipt(shard)
        except (DamagedError, OSError):
            return f"{receipt_key(shard)} was altered", {}
        if found := size_mismatch(receipt.files, sizes.get):
            return found, {}
        if rows := receipt.failed:
            failed[index] = rows
    return "", failed


def _damaged_set_row(store: FeatureStore, name: str, kind: str) -> Row:
    detail = "plan.json is missing or was altered: running the command that made it rewrites it"
    sizes = store.storage.child(f"{kind}/{name}").sizes()
    return _row(kind, name, "damaged", detail, sum(sizes.values()))


def _artifact_row(store: FeatureStore, artifact: Artifact, content_of: ContentOf) -> Row:
    sizes = artifact.storage.sizes()
    if holder := _holder(artifact.storage):
        state, detail = "running", holder
    elif not artifact.is_complete():
        state, detail = "partial", _unfinished(artifact)
    else:
        state, detail = _finished_state(store, artifact, sizes, content_of)
    row = _row(artifact.kind, artifact.name, state, detail, sum(sizes.values()))
    return {**row, "progress": UNFINISHED if state == "partial" else ""}


def _unfinished(artifact: Artifact) -> str:
    """Why an artifact is not finished, if its last run recorded that it cannot be."""
    reason = None
    with suppress(StoreError, OSError):  # the plan cannot be read
        reason = artifact.failure()
    return UNFINISHED if reason is None else f"{UNFINISHED}: {reason}"


def _finished_state(
    store: FeatureStore, artifact: Artifact, sizes: Mapping[str, int], content_of: ContentOf
) -> tuple[str, str]:
    try:
        if damage := size_mismatch(artifact.files(), sizes.get):
            return "damaged", f"{damage}: remove the folder and create it again"
        why = why_stale(store, artifact.plan())
        why = why or why_recomputed(store, artifact, content_of)
    except (StoreError, OSError) as error:
        return "damaged", str(error)
    return ("stale", why) if why else ("complete", "")


def _row(kind: str, name: str, state: str, detail: str, n_bytes: int) -> Row:
    return {
        "kind": kind,
        "name": name,
        "state": state,
        "rows": None,
        "bytes": n_bytes,
        "detail": detail,
        "progress": "",
        "failed": {},
    }


def _holder(storage: Storage) -> str:
    holder = holder_of(storage)
    return f"{holder['purpose']}, pid {holder['pid']} on {holder['host']}" if holder else ""
