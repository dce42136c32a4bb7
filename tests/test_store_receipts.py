"""Receipts: unchanged bytes, and one-line errors for those not written by intro-pipe."""

from typing import Any

import pytest

from store.catalog import FeatureStore
from store.errors import DamagedError
from store.featureset import FeatureSet
from store.receipts import Receipt
from store.seal import FileDigest, sealed, unsealed, vouch
from store.shards import Shard
from store.shardset import receipt_key
from store.verify import verify_artifact, verify_feature_set, verify_files

SHARD = Shard(1, 4, 8)
WRITTEN: dict[str, Any] = {
    "plan": "0123456789ab",
    "shard": {"index": 1, "start": 4, "stop": 8},
    "files": {"square/c/1/0": {"bytes": 3, "sha256": "ab"}},
    "failed": {"5": "cannot be read"},
    "images_crc32c": "00c0ffee",
    "host": "node-1",
    "written_at": 1.5,
}
"""A receipt as version 0.3.0 wrote it."""


def replace_receipt(found: FeatureSet, **changes: Any) -> None:
    """Seal a receipt of the first shard with other entries, as anyone can."""
    key = receipt_key(found.shard_set.shards[0])
    storage = found.shard_set.storage
    storage.write(key, sealed({**unsealed(storage.read(key)), **changes}))


def test_a_receipt_is_read_and_written_byte_by_byte() -> None:
    data = sealed(WRITTEN)
    receipt = Receipt.from_json(data)

    assert receipt.to_json() == data
    assert (receipt.plan, receipt.shard, receipt.failed) == (
        "0123456789ab",
        SHARD,
        {5: "cannot be read"},
    )
    assert receipt.files == {"square/c/1/0": FileDigest(3, "ab")}
    assert receipt.facts["host"] == "node-1"


def test_a_new_receipt_is_what_will_be_read() -> None:
    made = Receipt.of("0123456789ab", SHARD, {"a": b"1"}, {"failed": {5: "x"}, "pair": (1, 2)})

    assert Receipt.from_json(made.to_json()) == made
    assert made.facts == {"failed": {"5": "x"}, "pair": [1, 2]}
    assert made.files == {"a": FileDigest.of(b"1")}


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"shard": {"index": 1, "start": 4, "stop": 8}}, "belongs to another shard"),
        ({"shard": None}, "belongs to another shard"),
        ({"shard": {"index": "x", "start": [], "stop": 8}}, "belongs to another shard"),
        ({"shard": {"index": 0, "start": 0, "stop": 4, "more": 1}}, "belongs to another shard"),
        ({"plan": "0" * 12}, "belongs to another plan"),
        ({"plan": ["x"]}, "belongs to another plan"),
        ({"files": {}}, r"does not list square/c/0/0"),
        ({"files": {"x": {"bytes": "1", "sha256": "ab"}}}, "expected the size and the sha256"),
        ({"failed": {"x": "y"}}, "expected the failed rows by number"),
    ],
)
def test_verify_says_what_is_wrong_with_a_receipt(
    numbers: FeatureSet, changes: dict[str, Any], detail: str
) -> None:
    replace_receipt(numbers, **changes)
    problems = [p for p in verify_feature_set(numbers) if p.kind == "damaged receipt"]

    assert detail in problems[0].detail


@pytest.mark.parametrize("beside", [5, ["x"], {"labels": 5}, {"../labels": vouch(b"")}])
def test_digests_of_fixed_files_that_are_garbage_are_a_damaged_receipt(
    numbers: FeatureSet, beside: Any
) -> None:
    replace_receipt(numbers, beside=beside)

    assert [p.kind for p in verify_files(numbers.shard_set)] == ["damaged receipt"]
    with pytest.raises(DamagedError, match="cannot be trusted"):
        numbers.shard_set.receipt(numbers.shard_set.shards[0])


@pytest.mark.parametrize("plan", [5, {"bytes": 2}, [{}]])
def test_a_card_whose_digest_of_the_plan_is_garbage_is_altered(
    store: FeatureStore, plan: Any
) -> None:
    artifact = store.artifact("model", "net")
    artifact.storage.write("plan.json", b"{}")
    artifact.storage.write("model.json", sealed({"files": {}, "plan": plan}))

    assert [p.kind for p in verify_artifact(artifact)] == ["altered"]
