"""Verification finds and describes damage, and repair recovers from it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Fill, fill
from hypothesis import given, settings
from hypothesis import strategies as st
from squares import plan_of

from store.catalog import FeatureStore
from store.encoding import chunk_key, encode_chunk
from store.errors import LeaseError
from store.featureset import FeatureSet
from store.lease import Lease
from store.verify import Problem, repair, verify_artifact, verify_feature_set, verify_plans

CHUNK = "square/c/1/0"
PART = "samples/part-00001.parquet"
RECEIPT = "receipts/00001.json"


def found_in(found: FeatureSet) -> list[tuple[str, str]]:
    return [(problem.kind, problem.key) for problem in verify_feature_set(found)]


def vouched_for(found: FeatureSet) -> list[str]:
    """All keys except leases, which record the driver."""
    keys = found.shard_set.storage.keys("")
    return [key for key in keys if not key.startswith(("lease/", "quarantine/"))]


def data_of(found: FeatureSet) -> dict[str, bytes]:
    """All files but receipts, which hold the time."""
    storage = found.shard_set.storage
    keys = [key for key in vouched_for(found) if not key.startswith("receipts/")]
    return {key: storage.read(key) for key in keys}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """A complete set that the tests with many examples damage and repair."""
    store = FeatureStore(str(tmp_path_factory.mktemp("whole"))).prepare()
    return fill(store.create(plan_of(10, 4)), nan_rows=(3,))


def repaired(found: FeatureSet, problems: list[Problem]) -> FeatureSet:
    """As `intro-pipe repair` does: discard damaged shards, then rerun the command."""
    repair(found.shard_set, problems)
    store = FeatureStore(str(Path(found.shard_set.storage.location).parents[1]))
    return fill(store.create(found.plan), nan_rows=(3,))


@st.composite
def places(draw: st.DrawFn) -> tuple[int, float]:
    """A file, and a place in it as a share of its length."""
    return draw(st.integers(0, 99)), draw(st.floats(0, 1, exclude_max=True))


@settings(max_examples=25, deadline=None)
@given(places(), st.integers(1, 255))
def test_every_flipped_byte_in_any_file_is_found_and_repaired(
    whole: FeatureSet, place: tuple[int, float], mask: int
) -> None:
    storage, before = whole.shard_set.storage, data_of(whole)
    keys = vouched_for(whole)
    key = keys[place[0] % len(keys)]
    data = bytearray(storage.read(key))
    data[int(place[1] * len(data))] ^= mask
    storage.write(key, bytes(data))
    problems = list(verify_feature_set(whole))
    assert any(not problem.is_harmless for problem in problems)
    assert {problem.key for problem in problems} == {key}
    assert found_in(repaired(whole, problems)) == []
    assert data_of(whole) == before


@settings(max_examples=15, deadline=None)
@given(places())
def test_every_truncation_of_any_file_is_found_and_repaired(
    whole: FeatureSet, place: tuple[int, float]
) -> None:
    storage, before = whole.shard_set.storage, data_of(whole)
    keys = vouched_for(whole)
    key = keys[place[0] % len(keys)]
    data = storage.read(key)
    storage.write(key, data[: int(place[1] * len(data))])
    problems = list(verify_feature_set(whole))
    assert any(not problem.is_harmless for problem in problems)
    assert found_in(repaired(whole, problems)) == []
    assert data_of(whole) == before


@pytest.mark.parametrize("index", range(12))
def test_every_missing_file_is_found_and_repaired(whole: FeatureSet, index: int) -> None:
    storage, before = whole.shard_set.storage, data_of(whole)
    key = vouched_for(whole)[index]
    storage.remove(key)
    problems = list(verify_feature_set(whole))
    assert problems
    assert found_in(repaired(whole, problems)) == []
    assert data_of(whole) == before


def test_without_checksums_a_flipped_byte_would_not_be_found(
    numbers: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is the checksums that find it."""
    data = bytearray(numbers.shard_set.storage.read(PART))
    at = data.index(b"snow")
    data[at] ^= 1
    numbers.shard_set.storage.write(PART, bytes(data))
    assert found_in(numbers) == [("altered", PART)]
    monkeypatch.setattr("store.verify._difference", lambda storage, key, expected: None)
    assert found_in(numbers) == []


def test_a_whole_set_has_no_problem(numbers: FeatureSet) -> None:
    assert found_in(numbers) == []


def test_progress_counts_every_row(numbers: FeatureSet) -> None:
    ticks: list[int] = []
    list(verify_feature_set(numbers, ticks.append))
    assert ticks == [4, 4, 2]


@pytest.mark.parametrize("key", [CHUNK, PART])
def test_a_missing_file_is_missing(numbers: FeatureSet, key: str) -> None:
    numbers.shard_set.storage.remove(key)
    assert found_in(numbers) == [("missing", key)]


@pytest.mark.parametrize("key", [CHUNK, PART])
def test_a_shorter_file_is_truncated_and_a_longer_one_altered(
    numbers: FeatureSet, key: str
) -> None:
    data = numbers.shard_set.storage.read(key)
    numbers.shard_set.storage.write(key, data[:-1])
    assert found_in(numbers) == [("truncated", key)]
    numbers.shard_set.storage.write(key, data + b"\0")
    assert found_in(numbers) == [("altered", key)]


def test_data_without_a_receipt_is_found_and_harmless(numbers: FeatureSet) -> None:
    numbers.shard_set.discard([numbers.shard_set.shards[1]], lambda: None)
    problems = list(verify_feature_set(numbers))
    assert {(p.kind, p.key) for p in problems} == {
        ("data without receipt", CHUNK),
        ("data without receipt", PART),
    }
    assert all(problem.is_harmless for problem in problems)


def test_a_receipt_without_data_is_found_and_repaired(numbers: FeatureSet) -> None:
    numbers.shard_set.storage.remove(CHUNK)
    numbers.shard_set.storage.remove(PART)
    problems = list(verify_feature_set(numbers))
    assert [(each.kind, each.key) for each in problems] == [("receipt without data", RECEIPT)]
    assert repair(numbers.shard_set, problems) == (numbers.shard_set.shards[1],)
    assert numbers.shard_set.missing() == (numbers.shard_set.shards[1],)


def test_shards_that_were_not_computed_are_missing_but_not_wrong(begun: FeatureSet) -> None:
    problems = list(verify_feature_set(begun))
    assert [problem.kind for problem in problems] == ["missing shard"] * 3
    assert all(problem.is_harmless for problem in problems)


def test_rows_of_nan_that_the_receipt_lists_are_no_problem(begun: FeatureSet, fill: Fill) -> None:
    assert found_in(fill(begun, nan_rows=(5,))) == []


def test_rows_of_nan_that_no_receipt_explains_are_found(numbers: FeatureSet, fill: Fill) -> None:
    shard = numbers.shard_set.shards[1]
    key = chunk_key(numbers.schema.arrays[0], shard)
    receipt = numbers.shard_set.receipt(shard)
    fill(numbers, nan_rows=(5,))
    numbers.shard_set.discard([shard], lambda: None)
    fill(numbers, [shard], nan_rows=(5, 6))
    with_nan = {file: numbers.shard_set.storage.read(file) for file in (key, PART)}
    numbers.shard_set.discard([shard], lambda: None)
    numbers.shard_set.commit(shard, with_nan, {"failed": {"5": receipt.facts["host"]}})
    (problem,) = verify_feature_set(numbers)
    assert (problem.kind, problem.key) == ("unexplained NaN", key)
    assert problem.detail == "1 rows, first 6"


def test_a_row_with_one_nan_is_found(begun: FeatureSet, fill: Fill) -> None:
    fill(begun)
    shard, storage = begun.shard_set.shards[2], begun.shard_set.storage
    key = chunk_key(begun.schema.arrays[0], shard)
    values = np.array([[8, 64], [9, np.nan]], np.float32)
    part = storage.read("samples/part-00002.parquet")
    begun.shard_set.discard([shard], lambda: None)
    files = {
        key: encode_chunk(begun.schema.arrays[0], values, 4),
        "samples/part-00002.parquet": part,
    }
    begun.shard_set.commit(shard, files, {})
    assert found_in(begun) == [("unexplained NaN", key)]


def test_a_receipt_of_another_shard_copied_over_is_found(numbers: FeatureSet) -> None:
    storage = numbers.shard_set.storage
    storage.write(RECEIPT, storage.read("receipts/00000.json"))
    (problem,) = verify_feature_set(numbers)
    assert (problem.kind, problem.detail) == ("damaged receipt", "belongs to another shard")


def test_a_chunk_of_another_shard_copied_over_is_found(numbers: FeatureSet) -> None:
    storage = numbers.shard_set.storage
    storage.write("square/c/1/0", storage.read("square/c/0/0"))
    assert found_in(numbers) == [("altered", "square/c/1/0")]


def test_an_altered_file_of_a_model_and_an_altered_card_are_found(store: FeatureStore) -> None:
    model = store.artifact("model", "net")
    model.claim({"seed": 1})
    assert list(verify_artifact(model)) == []  # not finished, so nothing is promised yet
    model.write({"weights.safetensors": b"weights"}, {"M": 2.5}, plan={"seed": 1})
    assert list(verify_artifact(model)) == []
    model.storage.write("weights.safetensors", b"Weights")
    assert [problem.kind for problem in verify_artifact(model)] == ["altered"]
    card = model.storage.read("model.json")
    model.storage.write("model.json", card.replace(b"2.5", b"3.5"))
    assert [problem.key for problem in verify_artifact(model)] == ["model.json"]


def test_rows_of_another_plan_are_found_though_their_receipts_fit_them(
    store: FeatureStore, numbers: FeatureSet, fill: Fill
) -> None:
    other = fill(store.create(plan_of(10, 4, weights="other")))
    for key in (CHUNK, PART, RECEIPT):
        numbers.shard_set.storage.write(key, other.shard_set.storage.read(key))
    (problem,) = verify_feature_set(numbers)
    assert (problem.kind, problem.detail) == ("damaged receipt", "belongs to another plan")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff"])
def test_a_receipt_of_garbage_is_damaged(numbers: FeatureSet, data: bytes) -> None:
    numbers.shard_set.storage.write(RECEIPT, data)
    assert found_in(numbers) == [("damaged receipt", RECEIPT)]


def test_unfinished_writes_are_litter_that_repair_sweeps(numbers: FeatureSet) -> None:
    key = f".staging/{numbers.shard_set.storage.stage('samples/part-00001.parquet', b'torn')}"
    problems = list(verify_feature_set(numbers))
    assert [(p.kind, p.key, p.is_harmless) for p in problems] == [("litter", key, True)]
    repair(numbers.shard_set, problems)
    assert found_in(numbers) == []


def test_repair_keeps_files_that_do_not_belong_to_the_set(numbers: FeatureSet) -> None:
    numbers.shard_set.storage.write("notes.txt", b"mine")
    repair(numbers.shard_set, list(verify_feature_set(numbers)))
    assert numbers.shard_set.storage.read("notes.txt") == b"mine"
    assert found_in(numbers) == [("litter", "notes.txt")]


def test_repair_discards_only_the_shards_that_are_damaged(numbers: FeatureSet) -> None:
    numbers.shard_set.storage.remove(CHUNK)
    (shard,) = repair(numbers.shard_set, list(verify_feature_set(numbers)))
    assert shard.index == 1
    assert numbers.shard_set.missing() == (shard,)


@pytest.mark.parametrize("key", [CHUNK, RECEIPT])
def test_repair_keeps_shards_that_were_recomputed_meanwhile(numbers: FeatureSet, key: str) -> None:
    storage = numbers.shard_set.storage
    storage.write(key, storage.read(key)[:-1])
    problems = list(verify_feature_set(numbers))
    repaired(numbers, problems)
    assert repair(numbers.shard_set, problems) == ()
    assert numbers.shard_set.is_complete()


def test_repair_keeps_away_from_a_set_at_work(numbers: FeatureSet) -> None:
    numbers.shard_set.storage.remove(CHUNK)
    problems = list(verify_feature_set(numbers))
    with (
        Lease(numbers.shard_set.storage, purpose="extract"),
        pytest.raises(LeaseError, match="being written by extract"),
    ):
        repair(numbers.shard_set, problems)
    assert numbers.shard_set.is_complete()


def test_array_metadata_is_written_again_by_repair(numbers: FeatureSet) -> None:
    before = data_of(numbers)
    numbers.shard_set.storage.write("zarr.json", b"{}")
    numbers.shard_set.storage.remove("square/zarr.json")
    problems = list(verify_feature_set(numbers))
    assert {(p.kind, p.key) for p in problems} == {
        ("altered", "zarr.json"),
        ("missing", "square/zarr.json"),
    }
    assert repair(numbers.shard_set, problems) == ()
    assert data_of(numbers) == before


def test_a_set_that_cannot_be_opened_for_its_plan_is_a_problem_of_the_store(
    store: FeatureStore, numbers: FeatureSet
) -> None:
    assert list(verify_plans(store)) == []
    numbers.shard_set.storage.write("plan.json", b"{")
    (problem,) = verify_plans(store)
    assert (problem.set_name, problem.kind) == (numbers.name, "altered plan")
    assert not problem.is_harmless


@pytest.fixture
def copied(numbers: FeatureSet, tmp_path: Path) -> FeatureSet:
    """A copy of the whole store, as `cp -r` makes it."""
    shutil.copytree(Path(numbers.shard_set.storage.location).parents[1], tmp_path / "copy")
    return FeatureStore(str(tmp_path / "copy")).open("numbers@square")


def test_a_copied_store_is_as_good(numbers: FeatureSet, copied: FeatureSet) -> None:
    assert found_in(copied) == []
    assert data_of(copied) == data_of(numbers)
