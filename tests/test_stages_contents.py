"""The listing of a store: its items and their states."""

import shutil
import threading
from typing import Any

import pytest
from conftest import Fill
from squares import plan_of

from stages.contents import ARTIFACT_KINDS, contents, spans
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.lease import Lease
from store.plan import fingerprint
from store.shards import Shard


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
            "progress": "3 of 3 shards",
            "failed": {},
        }
    ]


def test_a_set_with_missing_shards_is_partial(
    store: FeatureStore, begun: FeatureSet, fill: Fill
) -> None:
    fill(begun, begun.shard_set.shards[:1])
    (row,) = contents(store)
    assert (row["state"], row["detail"]) == ("partial", "1 of 3 shards, missing 1-2")


def test_a_set_at_work_names_its_driver(store: FeatureStore, begun: FeatureSet) -> None:
    with Lease(begun.shard_set.storage, purpose="extract numbers"):
        (row,) = contents(store)
    assert row["state"] == "running"
    assert row["detail"].startswith("0 of 3 shards; extract numbers, pid ")


def test_a_set_with_an_altered_plan_is_damaged(store: FeatureStore, numbers: FeatureSet) -> None:
    numbers.shard_set.storage.write("plan.json", b"{")
    (row,) = contents(store)
    assert (row["name"], row["state"]) == (numbers.name, "damaged")


@pytest.mark.parametrize("kind", ARTIFACT_KINDS)
def test_artifacts_are_partial_until_their_card_exists(store: FeatureStore, kind: str) -> None:
    artifact = store.artifact(kind, "first")
    artifact.claim({"seed": 0})
    (before,) = contents(store)
    artifact.write({}, {}, plan={"seed": 0})
    (after,) = contents(store)
    assert (before["kind"], before["state"], after["state"]) == (kind, "partial", "complete")


def test_an_artifact_that_cannot_be_finished_has_a_reason(store: FeatureStore) -> None:
    head = store.artifact("head", "first")
    head.claim({"seed": 0})
    head.mark_failed({"seed": 1}, "of an earlier plan")
    assert [row["detail"] for row in contents(store)] == ["not finished"]
    head.mark_failed({"seed": 0}, "seed 0 collapsed")
    (row,) = contents(store)
    assert (row["state"], row["detail"]) == ("partial", "not finished: seed 0 collapsed")
    assert row["progress"] == "not finished"
    head.storage.write("plan.json", b"{")
    assert [row["detail"] for row in contents(store)] == ["not finished"]
    head.storage.write("plan.json", b'{"seed": 0}')
    head.storage.write("failed.json", b"{")
    assert [row["detail"] for row in contents(store)] == ["not finished"]


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


def damaged(store: FeatureStore) -> str:
    (row,) = contents(store)
    assert row["state"] == "damaged"
    return str(row["detail"])


def test_a_set_with_a_file_of_another_length_or_none_is_damaged_and_names_it(
    store: FeatureStore, numbers: FeatureSet
) -> None:
    numbers.shard_set.storage.write("square/c/1/0", b"torn")
    assert damaged(store).startswith("square/c/1/0 has 4 bytes, ")
    numbers.shard_set.storage.remove("square/c/1/0")
    assert damaged(store).startswith("square/c/1/0 is missing")


def test_a_set_with_an_altered_receipt_is_damaged(store: FeatureStore, numbers: FeatureSet) -> None:
    numbers.shard_set.storage.write("receipts/00001.json", b"{}")
    assert damaged(store).startswith("receipts/00001.json was altered")


def test_an_artifact_that_lost_a_file_is_damaged(store: FeatureStore) -> None:
    model = store.artifact("model", "net")
    model.claim({})
    model.write({"weights.safetensors": b"weights"}, {}, plan={})
    model.storage.remove("weights.safetensors")
    assert damaged(store).startswith("weights.safetensors is missing")


def test_shards_are_named_in_few_words() -> None:
    missing = [Shard(index, index, index + 1) for index in (0, 2, 3, 5, 7, 8, 9, 11)]
    assert spans(missing) == "0, 2-3, 5, 7-9, ..."


def write_model(store: FeatureStore, weights: str) -> None:
    model = store.artifact("model", "square")
    shutil.rmtree(model.storage.location, ignore_errors=True)
    model.claim({})
    model.write({}, {"card": {"weights_sha256": weights}}, plan={})


def stale(store: FeatureStore, kind: str) -> str:
    (row,) = [each for each in contents(store) if each["kind"] == kind]
    return str(row["detail"]) if row["state"] == "stale" else ""


def test_features_are_stale_when_their_model_was_made_again_or_removed(
    store: FeatureStore, fill: Fill
) -> None:
    write_model(store, "1f")
    plan = plan_of(10, 4)
    plan["inputs"]["model"]["weights_sha256"] = "1f"
    fill(store.create(plan))
    assert stale(store, "features") == ""
    write_model(store, "2e")
    assert stale(store, "features").endswith("model 'square' was recreated: it has other weights")
    shutil.rmtree(store.artifact("model", "square").storage.location)
    assert stale(store, "features").endswith("model 'square' was deleted")


def test_what_was_made_of_features_heads_and_results_is_stale_when_they_change(
    store: FeatureStore, numbers: FeatureSet
) -> None:
    def make(kind: str, inputs: dict[str, Any], data: bytes = b"1") -> None:
        artifact = store.artifact(kind, "first")
        shutil.rmtree(artifact.storage.location, ignore_errors=True)
        artifact.claim({"inputs": inputs})
        artifact.write({"file": data}, {}, plan={"inputs": inputs})

    make("head", {"features": numbers.name})
    head = store.artifact("head", "first")
    files = {"file": head.card()["files"]["file"]["sha256"]}
    judged = {"label": "H", "head": head.plan(), "files": files}
    make("result", {"features": numbers.plan, "heads": [judged]})
    result = fingerprint(store.artifact("result", "first").plan())
    make("report", {"results": [{"axes": {}, "result": "first", "plan": result}]})
    assert [row["state"] for row in contents(store)] == ["complete"] * 4

    make("head", {"features": numbers.name}, b"2")
    assert stale(store, "result") == "head 'H' was recreated: it has other weights"
    shutil.rmtree(head.storage.location)
    assert stale(store, "result") == "head 'H' was deleted"
    make("head", {"features": numbers.name})
    make("result", {"features": numbers.plan, "heads": []})
    assert stale(store, "report") == "result 'first' was recreated with another plan"
    shutil.rmtree(numbers.shard_set.storage.location)
    gone = f"features {numbers.name} were deleted"
    assert stale(store, "head") == stale(store, "result") == gone
