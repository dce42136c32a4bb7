"""What is in a store, and in what state."""

import threading

import pytest
from conftest import Fill

from store.catalog import ARTIFACT_KINDS, FeatureStore
from store.contents import contents
from store.featureset import FeatureSet
from store.lease import Lease


def test_an_empty_store_has_no_rows(store: FeatureStore) -> None:
    assert contents(store) == []


def test_a_complete_set_is_listed_with_its_rows_and_bytes(
    store: FeatureStore, numbers: FeatureSet
) -> None:
    storage = numbers.shard_set.storage
    assert contents(store) == [
        {
            "kind": "features",
            "name": numbers.name,
            "state": "complete",
            "rows": 10,
            "bytes": sum(len(storage.read(key)) for key in storage.keys("")),
            "detail": "3 of 3 shards",
        }
    ]


def test_a_set_with_missing_shards_is_partial(
    store: FeatureStore, begun: FeatureSet, fill: Fill
) -> None:
    fill(begun, begun.shard_set.shards[:1])
    (row,) = contents(store)
    assert (row["state"], row["detail"]) == ("partial", "1 of 3 shards")


def test_a_set_at_work_names_its_driver(store: FeatureStore, begun: FeatureSet) -> None:
    with Lease(begun.shard_set.storage, purpose="extract numbers"):
        (row,) = contents(store)
    assert row["state"] == "running"
    assert row["detail"].startswith("extract numbers, pid ")


def test_a_set_with_an_altered_plan_is_damaged(store: FeatureStore, numbers: FeatureSet) -> None:
    numbers.shard_set.storage.write("plan.json", b"{")
    (row,) = contents(store)
    assert (row["name"], row["state"]) == (numbers.name, "damaged")


@pytest.mark.parametrize("kind", ARTIFACT_KINDS)
def test_artifacts_are_partial_until_their_card_is_there(store: FeatureStore, kind: str) -> None:
    artifact = store.artifact(kind, "first")
    artifact.claim({"seed": 0})
    (before,) = contents(store)
    artifact.write({}, {})
    (after,) = contents(store)
    assert (before["kind"], before["state"], after["state"]) == (kind, "partial", "complete")


def test_a_store_is_listed_while_files_come_and_go(
    store: FeatureStore, numbers: FeatureSet
) -> None:
    stopped = threading.Event()

    def rewrite() -> None:
        while not stopped.is_set():
            numbers.shard_set.storage.write("square/c/0/0", b"")

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        rows = [contents(store) for _ in range(30)]
    finally:
        stopped.set()
        writer.join()
    assert all(len(row) == 1 for row in rows)
