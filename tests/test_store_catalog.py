"""The store by name: formats, places, prefixes, and plans that were tampered with."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Fill
from squares import plan_of

from store.catalog import FORMAT, STORE_KEY, FeatureStore
from store.errors import (
    AmbiguousNameError,
    DamagedError,
    FormatError,
    IncompleteError,
    NotFoundError,
    StoreNotFoundError,
    WriteError,
)
from store.featureset import FeatureSet
from store.verify import verify_feature_set


def plan_named(dataset: str, split: str, model: str, **inputs: Any) -> dict[str, Any]:
    plan = plan_of(4, 4, **inputs)
    plan["inputs"] |= {"source": {"name": dataset}, "model": {"name": model}}
    return {**plan, "name": f"{dataset}-{split}@{model}"}


def test_a_new_store_records_its_format(store: FeatureStore) -> None:
    assert json.loads(store.storage.read("store.json")) == {"format": FORMAT}
    assert list(store.storage.keys()) == ["store.json"]


def test_a_store_of_a_newer_format_is_refused(store: FeatureStore) -> None:
    store.storage.write("store.json", b'{"format": 99}')
    with pytest.raises(FormatError, match=r"has store format 99, .* upgrade intro-pipe"):
        FeatureStore(store.location)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"format": "x"}', b"\xff"])
def test_a_folder_other_than_a_store_is_refused(store: FeatureStore, data: bytes) -> None:
    store.storage.write("store.json", data)
    with pytest.raises(FormatError, match="does not name a store format: is this a store"):
        FeatureStore(store.location)


def test_a_file_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be read: Not a directory"):
        FeatureStore(str(tmp_path / "file"))


def test_a_missing_store_is_empty_and_is_not_created_by_reading(tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path / "nothing"))
    assert list(store.feature_sets()) == []
    with pytest.raises(StoreNotFoundError, match=r"^there is no store at .*/nothing$"):
        store.open("cifar10c@resnet18")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("folder", ["with space", "größe-店", "a'b\"c", "100%#?[x]*"])
def test_a_store_may_be_in_a_folder_of_any_name(tmp_path: Path, folder: str, fill: Fill) -> None:
    store = FeatureStore(str(tmp_path / folder)).prepare()
    found = fill(store.create(plan_of(10, 4)))
    assert list(verify_feature_set(found)) == []
    assert store.open("numbers@square").array("square").shape == (10, 2)


def test_a_relative_store_stays_where_it_was_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill: Fill
) -> None:
    monkeypatch.chdir(tmp_path)
    found = FeatureStore("store").prepare().create(plan_of(10, 4))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert len(fill(found).read("square")) == 10
    assert (tmp_path / "store" / "store.json").is_file()


def test_a_store_may_be_reached_through_a_link(
    store: FeatureStore, numbers: FeatureSet, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(store.location)
    found = FeatureStore(str(tmp_path / "link")).open("numbers@square")
    assert list(verify_feature_set(found)) == []


def test_a_feature_set_may_be_a_link_to_another_disk(
    store: FeatureStore, numbers: FeatureSet, tmp_path: Path
) -> None:
    place = Path(numbers.shard_set.storage.location)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert list(verify_feature_set(store.open("numbers@square"))) == []


def test_a_store_on_a_read_only_disk_is_read_and_verified_but_not_prepared(
    tiny_disk: Path, fill: Fill
) -> None:
    fill(FeatureStore(str(tiny_disk)).prepare().create(plan_of(10, 4)))
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    store = FeatureStore(str(tiny_disk))
    assert list(verify_feature_set(store.open("numbers@square"))) == []
    with pytest.raises(WriteError, match="read-only: choose another location"):
        store.prepare()


@pytest.mark.parametrize(
    "name", ["", "a/b", "../../out", ".hidden", "line\nbreak", "nul\0", "n" * 250]
)
def test_invalid_folder_names_are_refused(store: FeatureStore, name: str) -> None:
    with pytest.raises(FormatError, match="cannot be the name of a feature set"):
        store.create({**plan_of(10, 4), "name": name})
    with pytest.raises(FormatError, match="cannot be the name of a model"):
        store.artifact("model", name)
    assert list(store.storage.keys()) == ["store.json"]


@pytest.mark.parametrize(
    "name", ["größe-test@mein netz", "数字@網", "a@b@c", "[x]*?@%20", "n" * 180]
)
def test_names_in_any_script_are_found_again(store: FeatureStore, name: str, fill: Fill) -> None:
    created = fill(store.create({**plan_of(10, 4), "name": name}))
    assert store.open(created.name).plan == created.plan
    assert store.open(name).plan == created.plan
    assert list(verify_feature_set(created)) == []


def test_equal_plans_share_a_set_and_other_plans_do_not(store: FeatureStore) -> None:
    first = store.create(plan_of(10, 4))
    assert store.create(plan_of(10, 4)).name == first.name
    assert store.create(plan_of(10, 5)).name != first.name
    assert len(list(store.feature_sets())) == 2


def test_only_a_started_set_is_found(store: FeatureStore) -> None:
    assert store.find(plan_of(10, 4)) is None
    store.create(plan_of(10, 4))
    assert store.find(plan_of(10, 4)) is not None


@pytest.mark.parametrize(
    "name", ["numbers@square", "numbers-test@square", "numbers-test@square-", "{full}", "{cut}"]
)
def test_names_may_leave_out_the_split_and_cut_the_fingerprint(
    store: FeatureStore, numbers: FeatureSet, name: str
) -> None:
    found = store.open(name.format(full=numbers.name, cut=numbers.name[:-8]))
    assert found.name == numbers.name


def test_the_split_may_be_left_out_before_a_fingerprint(
    store: FeatureStore, numbers: FeatureSet
) -> None:
    assert store.open(f"numbers@square-{numbers.fingerprint[:4]}").name == numbers.name


@pytest.mark.parametrize("name", ["numbers", "numbers-test", "numbers-test@squ", "square", "", "x"])
def test_half_a_name_does_not_answer(store: FeatureStore, numbers: FeatureSet, name: str) -> None:
    with pytest.raises(NotFoundError, match=f"no feature set '{name}' .*existing: {numbers.name}"):
        store.open(name)


def test_a_misspelt_name_is_answered_with_the_nearest(
    store: FeatureStore, numbers: FeatureSet
) -> None:
    with pytest.raises(
        NotFoundError, match=r"'numbrs@square' \(did you mean numbers-test@square\?\)"
    ):
        store.open("numbrs@square")


def test_models_whose_names_share_a_prefix_are_distinguished(
    store: FeatureStore,
) -> None:
    store.create(plan_named("digits", "test", "net2"))
    first = store.create(plan_named("digits", "test", "net"))
    assert store.resolve("digits@net").name == first.name


def test_an_ambiguous_name_lists_the_sets_and_what_differs(store: FeatureStore) -> None:
    one = store.create(plan_named("digits", "test", "net", weights="aa"))
    other = store.create(plan_named("digits", "test", "net", weights="bb"))
    with pytest.raises(AmbiguousNameError, match=r'weights: "[ab]{2}" in the first') as raised:
        store.open("digits@net")
    assert one.name in str(raised.value)
    assert other.name in str(raised.value)


def test_an_option_in_which_sets_differ_is_given_in_words(store: FeatureStore) -> None:
    plain = plan_named("digits", "test", "net")
    layers = [{"layer": "layer1", "channels": 16}, {"layer": "layer2", "channels": 32}]
    stage = {"name": "extract", "params": {"statistics": layers}}
    one = store.create({**plain, "stage": {"name": "extract", "params": {}}})
    other = store.create({**plain, "stage": stage})
    layers = "layer layer1, channels 16; layer layer2, channels 32"
    assert store.siblings(one)[0].endswith(f"it differs in statistics: {layers} instead of nothing")
    values = ["nothing", layers] if one.name < other.name else [layers, "nothing"]
    message = "(statistics: {} in the first, {} in the second)".format(*values)
    with pytest.raises(AmbiguousNameError, match=re.escape(message)):
        store.open("digits@net")


def test_two_splits_make_the_short_name_ambiguous(store: FeatureStore) -> None:
    train = store.create(plan_named("digits", "train", "net"))
    store.create(plan_named("digits", "test", "net"))
    with pytest.raises(AmbiguousNameError):
        store.resolve("digits@net")
    assert store.resolve("digits-train@net").name == train.name


def test_an_incomplete_set_is_resolved_but_not_opened(
    store: FeatureStore, begun: FeatureSet
) -> None:
    assert store.resolve("numbers@square").name == begun.name
    with pytest.raises(IncompleteError, match="expected a complete set"):
        store.open("numbers@square")


def test_siblings_list_their_differences(store: FeatureStore) -> None:
    one = store.create(plan_named("digits", "test", "net", weights="aa"))
    other = store.create(plan_named("digits", "test", "net", weights="bb"))
    store.create(plan_named("digits", "train", "net"))
    (line,) = store.siblings(one)
    assert line.startswith(f"note: {other.name} ")
    assert line.endswith('it differs in weights: "bb" instead of "aa"')


def test_a_preview_counts_what_is_missing_and_writes_nothing(
    store: FeatureStore, numbers: FeatureSet
) -> None:
    numbers.shard_set.discard([numbers.shard_set.shards[2]], lambda: None)
    before = list(store.storage.keys())
    preview = store.preview(plan_of(10, 4))
    assert (preview["rows_to_do"], preview["shards_to_do"]) == (2, 1)
    assert preview["bytes_to_write"] == 4 * 2 * 4
    assert preview["location"] == numbers.shard_set.storage.location
    assert store.preview(plan_of(20, 4))["shards_to_do"] == 5
    assert list(store.storage.keys()) == before


PLANS = [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"n_rows": 10, "shard_rows": 4}']


@pytest.mark.parametrize("data", PLANS)
def test_a_damaged_plan_is_named_and_leaves_the_other_sets_alone(
    store: FeatureStore, numbers: FeatureSet, fill: Fill, data: bytes
) -> None:
    fill(store.create(plan_named("digits", "test", "net")))
    numbers.shard_set.storage.write("plan.json", data)
    assert len(store.open("digits@net")) == 4
    assert store.damaged_sets() == [numbers.name]
    with pytest.raises(DamagedError, match=r"plan.json is missing or was altered"):
        store.open("numbers-test@square")


def test_a_plan_edited_by_hand_is_not_believed(store: FeatureStore, numbers: FeatureSet) -> None:
    plan = numbers.shard_set.storage.read("plan.json")
    numbers.shard_set.storage.write("plan.json", plan.replace(b'"n_rows": 10', b'"n_rows": 4'))
    assert store.find(plan_of(10, 4)) is None
    with pytest.raises(DamagedError):
        store.open(numbers.name)


def test_the_same_command_writes_a_damaged_plan_again_and_keeps_the_rows(
    store: FeatureStore, numbers: FeatureSet
) -> None:
    before = numbers.shard_set.storage.read("plan.json")
    numbers.shard_set.storage.write("plan.json", b"{")
    assert store.create(plan_of(10, 4)).shard_set.is_complete()
    assert numbers.shard_set.storage.read("plan.json") == before


def test_a_renamed_set_is_damaged(store: FeatureStore, numbers: FeatureSet) -> None:
    place = Path(numbers.shard_set.storage.location)
    place.rename(place.with_name(f"renamed-{numbers.fingerprint}"))
    assert list(store.feature_sets()) == []
    assert store.damaged_sets() == [f"renamed-{numbers.fingerprint}"]


def test_other_things_in_the_folder_of_sets_do_not_matter(
    store: FeatureStore, numbers: FeatureSet
) -> None:
    store.storage.write("features/notes.txt", b"")
    store.storage.write("features/empty/file", b"")
    assert [found.name for found in store.feature_sets()] == [numbers.name]


def test_artifacts_are_listed_by_name(store: FeatureStore) -> None:
    for name in ("b", "a"):
        store.artifact("head", name).claim({"seed": 0})
    assert [artifact.name for artifact in store.artifacts("head")] == ["a", "b"]


def test_artifacts_are_found_by_their_plan_the_finished_first(store: FeatureStore) -> None:
    for name, plan in (("b", {"seed": 0}), ("c", {"seed": 0}), ("a", {"seed": 1})):
        store.artifact("head", name).claim(plan)
    store.artifact("head", "c").write({}, {}, plan={"seed": 0})
    assert [head.name for head in store.made_by("head", {"seed": 0})] == ["c", "b"]
    assert store.made_by("head", {"seed": 2}) == []
    assert store.made_by("model", {"seed": 0}) == []


def test_a_damaged_artifact_does_not_keep_others_from_being_found(store: FeatureStore) -> None:
    for name in ("a", "z"):
        store.artifact("model", name).claim({"seed": 0})
    store.artifact("model", "a").storage.write("plan.json", b"{")
    assert [model.name for model in store.made_by("model", {"seed": 0})] == ["z"]


def test_a_store_without_its_file_is_distinguished_from_no_store(store: FeatureStore) -> None:
    store.create(plan_of(4, 2))
    store.storage.remove(STORE_KEY)
    with pytest.raises(NotFoundError, match=r"has lost its store\.json"):
        store.require()
    assert store.prepare().require() is store
