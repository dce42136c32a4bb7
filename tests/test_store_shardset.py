"""Sets: plans that are not mixed, data first, receipts last."""

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import Fill
from squares import plan_of

from store.catalog import FeatureStore
from store.errors import (
    DamagedError,
    FormatError,
    NotFoundError,
    PlanMismatchError,
    ShardSizeError,
    StoreError,
    SweptError,
    WriteError,
)
from store.featureset import FeatureSet, create_feature_set
from store.plan import read_object, readable_json
from store.schema import Schema
from store.shards import Shard
from store.shardset import ShardSet, find_set, receipt_key
from store.storage import LocalStorage
from store.verify import verify_feature_set

N_WRITES = 12
"""Of a run over three shards: plan, two of metadata, and chunk, part and receipt of each shard."""


class KilledError(BaseException):
    """Stands for a kill: nothing catches it."""


@dataclass(frozen=True)
class DyingStorage(LocalStorage):
    """Killed as it is about to publish for the n-th time: what was staged stays staged."""

    dies_at: int = 0
    written: list[str] = field(default_factory=list)

    def publish(self, staged: str, key: str) -> None:
        self._live(key)
        super().publish(staged, key)

    def publish_new(self, staged: str, key: str) -> bool:
        self._live(key)
        return super().publish_new(staged, key)

    def drop(self, staged: str) -> None:
        if len(self.written) < self.dies_at:  # the dead tidy nothing up
            super().drop(staged)

    def _live(self, key: str) -> None:
        if len(self.written) == self.dies_at:
            raise KilledError
        self.written.append(key)


def data_of(found: FeatureSet) -> dict[str, bytes]:
    """All files but receipts, which hold the time."""
    storage = found.shard_set.storage
    keys = [key for key in storage.keys("") if not key.startswith(("receipts/", "lease/"))]
    return {key: storage.read(key) for key in keys}


def dying_set(store: FeatureStore, dies_at: int) -> tuple[DyingStorage, dict[str, Any]]:
    plan = plan_of(10, 4)
    return DyingStorage(store.preview(plan)["location"], dies_at=dies_at), plan


def run_until_killed(storage: DyingStorage, plan: Mapping[str, Any], fill: Fill) -> None:
    with pytest.raises(KilledError):
        fill(create_feature_set(storage, plan))


def test_receipts_are_written_after_the_data_they_vouch_for(
    store: FeatureStore, fill: Fill
) -> None:
    storage, plan = dying_set(store, dies_at=N_WRITES - 1)
    run_until_killed(storage, plan, fill)
    assert storage.written[0] == "plan.json"
    assert [key.split("/")[0] for key in storage.written[3:]] == [
        *("square", "samples", "receipts"),
        *("square", "samples", "receipts"),
        *("square", "samples"),
    ]


@pytest.mark.parametrize("dies_at", range(N_WRITES))
def test_a_run_killed_at_any_write_resumes_to_the_same_bytes(
    store: FeatureStore, fill: Fill, template: FeatureSet, dies_at: int
) -> None:
    storage, plan = dying_set(store, dies_at)
    run_until_killed(storage, plan, fill)
    assert data_of(fill(store.create(plan))) == data_of(template)


@pytest.mark.parametrize("dies_at", range(3, N_WRITES))
def test_a_killed_run_leaves_incomplete_but_correct_rows(
    store: FeatureStore, fill: Fill, dies_at: int
) -> None:
    storage, plan = dying_set(store, dies_at)
    run_until_killed(storage, plan, fill)
    found = store.resolve(plan["name"])
    problems = list(verify_feature_set(found))
    assert all(problem.is_harmless for problem in problems)
    assert len(found.shard_set.missing()) == 3 - (dies_at - 3) // 3


def test_a_rerun_keeps_finished_shards(numbers: FeatureSet, fill: Fill) -> None:
    shard = numbers.shard_set.shards[0]
    before = numbers.shard_set.receipt(shard)
    fill(numbers, [shard], nan_rows=(0,))
    assert numbers.shard_set.receipt(shard) == before
    assert numbers.read("square")[0].tolist() == [0, 0]


def test_the_receipt_that_commit_gives_is_the_one_on_disk(begun: FeatureSet) -> None:
    shard = begun.shard_set.shards[0]
    given = begun.shard_set.commit(
        shard, {"a": b"1"}, {"failed": {10: "x", 9: "y"}, "pair": (1, 2)}
    )
    assert given == begun.shard_set.receipt(shard)


def test_facts_cannot_replace_checksums_of_the_set(begun: FeatureSet) -> None:
    shard = begun.shard_set.shards[0]
    receipt = begun.shard_set.commit(shard, {"a": b"1"}, {"files": {}, "shard": None})
    assert list(receipt.files) == ["a"]
    assert receipt.shard == shard


class OvertakenStorage(LocalStorage):
    """Another driver commits the shard while this one is about to publish its receipt."""

    def publish_new(self, staged: str, key: str) -> bool:
        if key.startswith("receipts/"):
            place = LocalStorage(self.root)
            shard = Shard(0, 0, 4)
            ShardSet(place, plan_of(10, 4)).commit(shard, {"a": b"theirs"}, {})
        return super().publish_new(staged, key)


def test_two_drivers_that_write_a_shard_at_once_with_other_bytes_leave_it_missing(
    begun: FeatureSet,
) -> None:
    ours = ShardSet(OvertakenStorage(begun.shard_set.storage.location), begun.plan)
    with pytest.raises(DamagedError, match="two drivers wrote this shard at once"):
        ours.commit(ours.shards[0], {"a": b"ours"}, {})
    assert 0 not in ours.done()


def test_two_drivers_that_write_a_shard_at_once_with_the_same_bytes_are_both_right(
    begun: FeatureSet,
) -> None:
    ours = ShardSet(OvertakenStorage(begun.shard_set.storage.location), begun.plan)
    receipt = ours.commit(ours.shards[0], {"a": b"theirs"}, {})
    assert receipt == ours.receipt(ours.shards[0])


def test_staged_files_do_not_exist_until_they_are_published(begun: FeatureSet) -> None:
    shards = begun.shard_set
    staged = shards.stage(shards.shards[0], {"a": b"1"}, {})
    assert (shards.done(), shards.storage.size("a")) == (set(), None)
    shards.publish(staged)
    assert (shards.done(), shards.storage.read("a")) == ({0}, b"1")


def test_a_shard_that_was_staged_twice_is_published_once(begun: FeatureSet) -> None:
    shards = begun.shard_set
    first, second = (shards.stage(shards.shards[0], {"a": data}, {}) for data in (b"1", b"2"))
    assert shards.publish(first) == shards.publish(second)
    assert shards.storage.read("a") == b"1"
    assert shards.storage.staged() == []


@pytest.mark.parametrize("n_published", range(3))
def test_a_driver_whose_staged_files_were_swept_publishes_no_receipt(
    begun: FeatureSet, n_published: int
) -> None:
    """Its successor sweeps while it publishes: after none, one or both of its files."""

    class Swept(LocalStorage):
        def publish(self, staged: str, key: str) -> None:
            if key == f"file-{n_published}":
                self.sweep()
            super().publish(staged, key)

        def publish_new(self, staged: str, key: str) -> bool:
            if n_published == 2:
                self.sweep()
            return super().publish_new(staged, key)

    sleeper = ShardSet(Swept(begun.shard_set.storage.location), begun.plan)
    with pytest.raises(SweptError, match="removed before it was published"):
        sleeper.commit(sleeper.shards[0], {"file-0": b"0", "file-1": b"1"}, {})
    assert sleeper.done() == set()


def test_a_stage_that_the_disk_cannot_hold_leaves_nothing(tiny_disk: Path) -> None:
    found = FeatureStore(str(tiny_disk)).prepare().create(plan_of(10, 4))
    shards = found.shard_set
    with pytest.raises(WriteError, match="the disk is full"):
        shards.stage(shards.shards[0], {"a": b"1", "b": bytes(2**20)}, {})
    assert shards.storage.staged() == []


def test_a_discarded_shard_is_missing(numbers: FeatureSet) -> None:
    shard = numbers.shard_set.shards[1]
    numbers.shard_set.discard([shard], lambda: None)
    assert numbers.shard_set.missing() == (shard,)
    assert not numbers.shard_set.is_complete()


@pytest.mark.parametrize(
    "name", ["2.json", "²².json", "٠٠٠٠٢.json", "00099.json", "sub/00002.json"]
)
def test_files_that_only_look_like_receipts_do_not_count(begun: FeatureSet, name: str) -> None:
    begun.shard_set.storage.write(f"receipts/{name}", b"{}")
    assert begun.shard_set.done() == set()


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff", b'{"a": NaN}', b"[" * 99])
def test_a_receipt_that_is_garbage_is_damaged(numbers: FeatureSet, data: bytes) -> None:
    shard = numbers.shard_set.shards[0]
    numbers.shard_set.storage.write(receipt_key(shard), data)
    with pytest.raises(DamagedError, match=r"receipts/00000\.json"):
        numbers.shard_set.receipt(shard)


def test_a_receipt_edited_by_hand_is_damaged(numbers: FeatureSet) -> None:
    shard = numbers.shard_set.shards[0]
    whole = numbers.shard_set.storage.read(receipt_key(shard))
    edited = {**read_object(whole), "failed": {"0": "invented"}}
    numbers.shard_set.storage.write(receipt_key(shard), readable_json(edited))
    with pytest.raises(DamagedError, match=r"cannot be read|altered"):
        numbers.shard_set.receipt(shard)


def test_receipts_come_in_row_order(numbers: FeatureSet) -> None:
    assert tuple(r.shard for r in numbers.shard_set.receipts()) == numbers.shard_set.shards


def test_another_plan_in_the_same_place_is_refused_with_the_fields_that_differ(
    tmp_path: Path,
) -> None:
    storage = LocalStorage(str(tmp_path))
    ShardSet.create(storage, plan_of(10, 4, weights="aa"), {})
    with pytest.raises(PlanMismatchError, match=r'inputs\.weights: "bb", found "aa"'):
        ShardSet.create(storage, plan_of(10, 4, weights="bb"), {})


def test_of_many_creators_with_their_own_plans_one_wins(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))

    def create(n_rows: int) -> type[StoreError] | None:
        try:
            ShardSet.create(storage, plan_of(n_rows, 4), {"labels": b"%d" % n_rows})
        except PlanMismatchError as error:
            return type(error)
        return None

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(create, range(1, 9)))
    assert outcomes.count(None) == 1
    winner = outcomes.index(None) + 1
    assert ShardSet.open(storage).n_rows == winner
    assert storage.read("labels") == b"%d" % winner


def test_creators_with_one_plan_share_the_set(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        sets = list(pool.map(lambda _: ShardSet.create(storage, plan_of(10, 4), {}), range(8)))
    assert {found.fingerprint for found in sets} == {ShardSet.open(storage).fingerprint}


@pytest.mark.parametrize(("n_rows", "shard_rows"), [(0, 4), (10, 0), (-1, 4)])
def test_a_plan_without_rows_is_refused_and_nothing_is_written(
    store: FeatureStore, n_rows: int, shard_rows: int
) -> None:
    with pytest.raises(FormatError, match="expected one or more"):
        ShardSet.create(store.storage.child("set"), plan_of(n_rows, shard_rows), {})
    assert list(store.storage.keys("set")) == []


def test_more_shards_than_names_sort_by_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardSizeError, match="use more rows per shard"):
        ShardSet.create(LocalStorage(str(tmp_path)), plan_of(100_001, 1), {})


def test_one_shard_holds_everything_where_shard_rows_are_huge(
    store: FeatureStore, fill: Fill
) -> None:
    found = fill(store.create(plan_of(10, 10**15)))
    assert found.read("square").shape == (10, 2)
    assert list(verify_feature_set(found)) == []


def without_rows(plan: dict[str, Any]) -> Any:
    return {key: value for key, value in plan.items() if key != "n_rows"}


EDITS: list[Callable[[dict[str, Any]], Any]] = [
    without_rows,
    lambda plan: [plan],
    lambda plan: {**plan, "n_rows": "ten"},
    lambda plan: {**plan, "n_rows": 10**15},
    lambda plan: {**plan, "shard_rows": 0},
]


@pytest.mark.parametrize("edit", EDITS)
def test_an_invalid_plan_is_refused_with_a_remedy(
    begun: FeatureSet, edit: Callable[[dict[str, Any]], Any]
) -> None:
    storage = begun.shard_set.storage
    storage.write("plan.json", json.dumps(edit(dict(begun.plan))).encode())
    with pytest.raises(FormatError, match=r"is not a plan .* remove the folder"):
        ShardSet.open(storage)


def test_a_place_without_a_plan_holds_no_set(tmp_path: Path) -> None:
    assert find_set(LocalStorage(str(tmp_path))) is None
    with pytest.raises(NotFoundError):
        ShardSet.open(LocalStorage(str(tmp_path)))


def test_a_run_on_a_full_disk_leaves_a_valid_store_and_resumes(tiny_disk: Path, fill: Fill) -> None:
    found = FeatureStore(str(tiny_disk)).prepare().create(plan_of(10, 4))
    fill(found, found.shard_set.shards[:1])
    ballast = tiny_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(512 * 1024))
    os.truncate(ballast, ballast.stat().st_size - 4096)  # room for the chunk alone
    with pytest.raises(StoreError, match="the disk is full"):
        fill(found)
    problems = list(verify_feature_set(found))
    assert [problem.kind for problem in problems] == ["missing shard", "missing shard"]
    ballast.unlink()
    assert list(verify_feature_set(fill(found))) == []


@pytest.mark.parametrize("n_rows", [10**12 + 1, 2**63, 10**40, 10**4000])
def test_a_plan_of_more_rows_than_arrays_can_count_is_refused(
    store: FeatureStore, n_rows: int
) -> None:
    with pytest.raises(FormatError, match="expected at most 1,000,000,000,000 rows in a set"):
        store.create(plan_of(n_rows, n_rows))


@pytest.mark.parametrize("shape", [[2**40], [10**40], [2**20, 2**20], [1] * 17])
def test_a_schema_of_rows_that_cannot_be_laid_out_is_refused(shape: list[int]) -> None:
    array = {"name": "square", "row_shape": shape, "dtype": "float32"}
    with pytest.raises(FormatError, match="expected a schema of arrays and columns"):
        Schema.from_json({"arrays": [array], "columns": [["row", "int64"]]})
