"""What is in a store, in what state, and why."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from store.artifacts import Artifact
from store.catalog import ARTIFACT_KINDS, FEATURES, FeatureStore
from store.errors import DamagedError, StoreError
from store.featureset import FeatureSet
from store.inputs import why_stale
from store.lease import holder_of
from store.shards import Shard
from store.shardset import ShardSet, receipt_key
from store.storage import Storage

N_NAMED = 4
"""Missing shards, or runs of them, that are named."""

Row = dict[str, Any]  # Any: names and numbers side by side


def contents(store: FeatureStore) -> list[Row]:
    """A row for each feature set and artifact: kind, name, state, rows, bytes, detail.

    States, the first that holds: running (a driver is at work), damaged (a file is missing, of
    another length, or a receipt or card was altered; ``verify`` reads all bytes), partial (some
    shards or epochs are missing), stale (what it was made of is gone or was made again), complete.
    """
    rows = [_of_feature_set(store, found) for found in store.feature_sets()]
    rows += [_of_damaged_set(store, name) for name in store.damaged_sets()]
    for kind in ARTIFACT_KINDS:
        rows += [_of_artifact(store, artifact) for artifact in store.artifacts(kind)]
    return rows


def row_of_set(shard_set: ShardSet, kind: str, name: str) -> Row:
    """The row of a set of shards, whatever they hold; it may be stale all the same."""
    sizes = shard_set.storage.sizes()
    missing = shard_set.missing()
    n_shards = len(shard_set.shards)
    detail = f"{n_shards - len(missing)} of {n_shards} shards"
    holder = _holder(shard_set.storage)
    hurt, n_unreadable = ("", 0) if holder else _by_receipts(shard_set, sizes)
    unreadable = f", {n_unreadable} rows unreadable" if n_unreadable else ""
    if holder:
        state, detail = "running", f"{detail}; {holder}"
    elif hurt:
        state, detail = "damaged", f"{hurt}: `intro-pipe repair`"
    elif missing:
        state, detail = "partial", f"{detail}, missing {spans(missing)}{unreadable}"
    else:
        state, detail = "complete", f"{detail}{unreadable}"
    return _row(kind, name, state, detail, sum(sizes.values()), shard_set.n_rows)


def spans(shards: Sequence[Shard]) -> str:
    """Indexes in few words.

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


def _of_feature_set(store: FeatureStore, found: FeatureSet) -> Row:
    row = row_of_set(found.shard_set, "features", found.name)
    if row["state"] in ("complete", "partial") and (why := why_stale(store, found.plan)):
        state = "stale" if row["state"] == "complete" else "partial"
        return {**row, "state": state, "detail": f"{row['detail']}; {why}"}
    return row


def _by_receipts(shard_set: ShardSet, sizes: Mapping[str, int]) -> tuple[str, int]:
    """What is hurt, if a look at lengths shows it, else the number of rows without an image."""
    n_unreadable = 0
    for index in sorted(shard_set.done()):
        shard = shard_set.shards[index]
        try:
            receipt = shard_set.receipt(shard)
        except (DamagedError, OSError):
            return f"{receipt_key(shard)} was altered", 0
        if hurt := next(_other_lengths(receipt["files"], sizes), ""):
            return hurt, 0
        n_unreadable += len(receipt.get("failed", {}))
    return "", n_unreadable


def _other_lengths(files: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[str]:
    for key, expected in files.items():
        if key not in sizes:
            yield f"{key} is missing"
        elif sizes[key] != expected["bytes"]:
            yield f"{key} has {sizes[key]} bytes, {expected['bytes']} were written"


def _of_damaged_set(store: FeatureStore, name: str) -> Row:
    detail = "plan.json is missing or was altered: the same extract command writes it again"
    sizes = store.storage.child(f"{FEATURES}/{name}").sizes()
    return _row("features", name, "damaged", detail, sum(sizes.values()))


def _of_artifact(store: FeatureStore, artifact: Artifact) -> Row:
    sizes = artifact.storage.sizes()
    if holder := _holder(artifact.storage):
        state, detail = "running", holder
    elif not artifact.is_complete():
        state, detail = "partial", "not finished"
    else:
        state, detail = _of_finished(store, artifact, sizes)
    return _row(artifact.kind, artifact.name, state, detail, sum(sizes.values()))


def _of_finished(
    store: FeatureStore, artifact: Artifact, sizes: Mapping[str, int]
) -> tuple[str, str]:
    try:
        if hurt := next(_other_lengths(artifact.card()["files"], sizes), ""):
            return "damaged", f"{hurt}: remove the folder and make it again"
        why = why_stale(store, artifact.plan())
    except (StoreError, OSError) as error:
        return "damaged", str(error)
    return ("stale", why) if why else ("complete", "")


def _row(
    kind: str, name: str, state: str, detail: str, n_bytes: int, n_rows: int | None = None
) -> Row:
    return {
        "kind": kind,
        "name": name,
        "state": state,
        "rows": n_rows,
        "bytes": n_bytes,
        "detail": detail,
    }


def _holder(storage: Storage) -> str:
    holder = holder_of(storage)
    return f"{holder['purpose']}, pid {holder['pid']} on {holder['host']}" if holder else ""
