"""What is in a store, and in what state."""

from typing import Any

from store.artifacts import Artifact
from store.catalog import ARTIFACT_KINDS, FEATURES, FeatureStore
from store.errors import DamagedError
from store.featureset import FeatureSet
from store.lease import holder_of
from store.storage import Storage


def contents(store: FeatureStore) -> list[dict[str, Any]]:
    """A row for each feature set and artifact: kind, name, state, rows, bytes, detail.

    States: complete, partial (some shards or epochs are missing), running (a driver is at work),
    damaged (a feature set whose plan was altered).
    """
    rows = [_of_feature_set(found) for found in store.feature_sets()]
    rows += [_of_damaged_set(store, name) for name in store.damaged_sets()]
    for kind in ARTIFACT_KINDS:
        rows += [_of_artifact(artifact) for artifact in store.artifacts(kind)]
    return rows


def _of_feature_set(found: FeatureSet) -> dict[str, Any]:
    n_shards, n_missing = len(found.shard_set.shards), len(found.shard_set.missing())
    state, detail = _state(found.shard_set.storage, is_complete=n_missing == 0)
    return {
        "kind": "features",
        "name": found.name,
        "state": state,
        "rows": found.n_rows,
        "bytes": found.shard_set.storage.n_bytes(),
        "detail": detail or f"{n_shards - n_missing} of {n_shards} shards{_unreadable(found)}",
    }


def _unreadable(found: FeatureSet) -> str:
    try:
        n_rows = found.shard_set.n_failed_rows()
    except DamagedError:
        return ", a receipt is damaged: see verify"
    return f", {n_rows} rows unreadable" if n_rows else ""


def _of_damaged_set(store: FeatureStore, name: str) -> dict[str, Any]:
    return {
        "kind": "features",
        "name": name,
        "state": "damaged",
        "rows": None,
        "bytes": store.storage.child(f"{FEATURES}/{name}").n_bytes(),
        "detail": "plan.json was altered; the same extract command writes it again",
    }


def _of_artifact(artifact: Artifact) -> dict[str, Any]:
    state, detail = _state(artifact.storage, is_complete=artifact.is_complete())
    return {
        "kind": artifact.kind,
        "name": artifact.name,
        "state": state,
        "rows": None,
        "bytes": artifact.storage.n_bytes(),
        "detail": detail,
    }


def _state(storage: Storage, *, is_complete: bool) -> tuple[str, str]:
    if holder := holder_of(storage):
        return "running", f"{holder['purpose']}, pid {holder['pid']} on {holder['host']}"
    return ("complete", "") if is_complete else ("partial", "")
