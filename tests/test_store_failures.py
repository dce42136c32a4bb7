"""Failed rows: how they are counted, how many a set may have, and how they are accepted."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.runner import finished
from stages.contents import contents, row_of_set
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.errors import FailedRowsError
from store.failures import (
    ACCEPTED_KEY,
    FREE_FAILURES,
    accept,
    check_failures,
    failures_of,
    is_failed,
)
from store.featureset import FeatureSet
from store.schema import ArraySpec, Schema
from store.shardset import RECEIPTS, ShardSet, receipt_key
from store.storage import LocalStorage
from store.verify import repair, verify_feature_set

SCHEMA = Schema(
    (ArraySpec("square", (1,)),),
    (("row", "int64"), ("sample_id", "string"), ("status", "string")),
)


def set_of(store: FeatureStore, n_rows: int, reasons: dict[int, str]) -> FeatureSet:
    """A complete set of which some rows failed; a small one has shards of ten rows."""
    plan: dict[str, Any] = {
        "name": "numbers-test@square",
        "n_rows": n_rows,
        "shard_rows": 10 if n_rows < 100 else 1000,
        "schema": SCHEMA.to_json(),
        "inputs": {"source": {"name": "numbers"}, "model": {"name": "square"}},
    }
    found = store.create(plan)
    put(found, reasons)
    return found


def put(found: FeatureSet, reasons: dict[int, str]) -> None:
    """Write all shards of a set."""
    shard_set = found.shard_set
    shard_set.discard(shard_set.shards, lambda: None)
    for shard in shard_set.shards:
        rows = np.arange(shard.start, shard.stop)
        values = rows[:, None].astype(np.float32)
        values[[row - shard.start for row in reasons if row in rows]] = np.nan
        columns = {
            "row": rows,
            "sample_id": [f"my photos/{row}.png" for row in rows],
            "status": [reasons.get(int(row), "ok") for row in rows],
        }
        failed = {str(row): reasons[row] for row in reasons if row in rows}
        files = encode_rows(SCHEMA, shard, shard_set.chunk_rows, {"square": values}, columns)
        shard_set.commit(shard, files, {"failed": failed})


def unreadable(row: int) -> str:
    name = f"my photos/{row}.png"
    return f"{name}: cannot identify image file '/data/{name}'"


def test_rows_that_failed_alike_are_one_reason_with_the_first_sample(store: FeatureStore) -> None:
    reasons = {row: unreadable(row) for row in range(3, 17)}
    reasons |= {18: "the network's logits are not finite"}
    failures = failures_of(set_of(store, 20, reasons).shard_set)
    assert failures.counts == {
        "cannot identify image file ...": 14,
        "the network's logits are not finite": 1,
    }
    assert str(failures) == (
        "15 of 20 rows failed, more than 1%: 14 x cannot identify image file ... (first: my photos/"
        "3.png), 1 x the network's logits are not finite (first: my photos/18.png)"
    )


def test_the_three_most_common_reasons_are_listed_each_on_100_characters(
    store: FeatureStore,
) -> None:
    reasons = dict(enumerate(["a" * 300, "b", "b", "c", "d", "e"]))
    assert str(failures_of(set_of(store, 20, reasons).shard_set)) == (
        f"6 of 20 rows failed: 2 x b (first: my photos/1.png), 1 x {'a' * 97}... (first: "
        "my photos/0.png), 1 x c (first: my photos/3.png), 2 other reasons"
    )


@pytest.mark.parametrize(
    ("n_rows", "n_failed", "is_bad"),
    [
        (11, 10, False),
        (10, 10, True),
        (11, 11, True),
        (500, 10, False),
        (500, 11, True),
        (2000, 20, False),
    ],
)
def test_ten_rows_or_one_percent_may_fail(
    store: FeatureStore, n_rows: int, n_failed: int, is_bad: bool
) -> None:
    found = set_of(store, n_rows, dict.fromkeys(range(n_failed), "bad"))
    assert failures_of(found.shard_set).are_too_many == is_bad
    assert is_failed(found.shard_set) == is_bad
    (row,) = contents(store)
    assert row["state"] == ("failed" if is_bad else "complete")
    assert f"{n_failed} of {n_rows:,} rows failed" in row["detail"]
    assert row["failed"] == {"bad": n_failed}


def test_a_failed_set_is_read_but_nothing_is_computed_from_it(store: FeatureStore) -> None:
    found = set_of(store, 20, dict.fromkeys(range(11), "bad"))
    assert np.isnan(store.open(found.name).read("square")).sum() == 11
    with pytest.raises(FailedRowsError, match=r"11 x bad .*compute these rows again, or accept"):
        found.require_usable()


@pytest.mark.parametrize("n_rows", [1, 2, 10])
def test_a_small_set_with_only_failed_rows_is_failed(store: FeatureStore, n_rows: int) -> None:
    found = set_of(store, n_rows, dict.fromkeys(range(n_rows), "bad"))
    assert is_failed(found.shard_set)
    with pytest.raises(FailedRowsError, match=f"{n_rows} of {n_rows} rows failed, all of them"):
        check_failures(found.shard_set)
    put(found, dict.fromkeys(range(n_rows - 1), "bad"))
    assert check_failures(found.shard_set) == n_rows - 1


class CountingStorage(LocalStorage):
    """Counts how often each file is read."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        object.__setattr__(self, "reads", Counter[str]())

    def read(self, key: str) -> bytes:
        self.reads[key] += 1
        return super().read(key)


Look = Callable[[ShardSet], object]


@pytest.mark.parametrize(
    ("look", "n_parts"),
    [
        (is_failed, 0),
        (check_failures, 0),
        (finished, 0),
        (failures_of, 2),
        (lambda shard_set: row_of_set(shard_set, "features", "numbers"), 2),
    ],
    ids=["is_failed", "check_failures", "finished", "failures_of", "row_of_set"],
)
def test_every_receipt_is_read_once(store: FeatureStore, look: Look, n_parts: int) -> None:
    """Sample columns are read only of shards with failed rows, to name examples."""
    found = set_of(store, 90, {3: "bad", 4: "bad", 12: "bad"})
    storage = CountingStorage(found.shard_set.storage.location)
    look(ShardSet.open(storage))
    receipts = {key: n for key, n in storage.reads.items() if key.startswith(RECEIPTS)}
    assert receipts == {receipt_key(shard): 1 for shard in found.shard_set.shards}
    assert sum(key.startswith("samples/") for key in storage.reads.elements()) == n_parts


def test_accepted_rows_stay_accepted_until_another_row_fails(store: FeatureStore) -> None:
    found = set_of(store, 30, dict.fromkeys(range(12), "bad"))
    accept(found.shard_set)
    assert found.require_usable() is found
    (row,) = contents(store)
    assert row["state"] == "complete"
    assert "12 of 30 rows failed, which was accepted: 12 x bad" in row["detail"]
    assert list(verify_feature_set(found)) == []
    put(found, dict.fromkeys(range(11), "bad"))
    check_failures(found.shard_set)
    put(found, dict.fromkeys(range(13), "bad"))
    with pytest.raises(FailedRowsError):
        check_failures(found.shard_set)


def test_nothing_is_recorded_if_nothing_must_be_accepted(store: FeatureStore) -> None:
    found = set_of(store, 30, dict.fromkeys(range(FREE_FAILURES), "bad"))
    accept(found.shard_set)
    assert found.shard_set.storage.size(ACCEPTED_KEY) is None


@pytest.mark.parametrize("turn", [(b'"failed_rows": 12', b'"failed_rows": 99'), (b"{", b"[")])
def test_an_altered_acceptance_is_ignored_and_removed(
    store: FeatureStore, turn: tuple[bytes, bytes]
) -> None:
    found = set_of(store, 30, dict.fromkeys(range(12), "bad"))
    accept(found.shard_set)
    storage = found.shard_set.storage
    storage.write(ACCEPTED_KEY, storage.read(ACCEPTED_KEY).replace(*turn, 1))
    assert failures_of(found.shard_set).are_too_many
    problems = list(verify_feature_set(found))
    assert [(each.kind, each.key) for each in problems] == [("altered", ACCEPTED_KEY)]
    assert repair(found.shard_set, problems) == ()
    assert list(verify_feature_set(found)) == []


def test_rows_accepted_in_another_set_do_not_count(store: FeatureStore) -> None:
    found = set_of(store, 30, dict.fromkeys(range(12), "bad"))
    other = set_of(store, 40, dict.fromkeys(range(12), "bad"))
    accept(other.shard_set)
    found.shard_set.storage.write(ACCEPTED_KEY, other.shard_set.storage.read(ACCEPTED_KEY))
    assert failures_of(found.shard_set).are_too_many


def test_a_reason_of_a_megabyte_is_compared_in_no_time(store: FeatureStore) -> None:
    began = time.process_time()
    failures = failures_of(set_of(store, 20, {3: "a" * 10**6, 4: "a" * 10**6}).shard_set)
    assert list(failures.counts.values()) == [2]
    assert time.process_time() - began < 5
