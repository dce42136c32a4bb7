"""Artifacts whose inputs were deleted, recreated, or recomputed in place."""

from pathlib import Path
from typing import Any

import pytest
from cells import cells, small_head
from made import make_in

from stages.contents import contents
from stages.evaluation.evaluate import Evaluate
from stages.introspection.fit_temperature import FitTemperature
from stages.stale import why_stale
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet


def states(store: FeatureStore) -> dict[str, tuple[str, str]]:
    return {row["kind"]: (row["state"], row["detail"]) for row in contents(store)}


def compute_again(found: FeatureSet, store: FeatureStore, **options: Any) -> None:
    """Compute the rows of a set in place, as ``repair`` and ``extract --retry-failed`` do."""
    found.shard_set.discard(found.shard_set.shards, lambda: None)
    cells(store, **options)


def evaluated(store: FeatureStore, features: str) -> Artifact:
    return make_in(store, Evaluate(features=features, heads={"H": "h"}, resamples=0)).output


def test_what_was_computed_from_rows_that_were_recomputed_is_stale(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cells(store, weights="")  # the store need not have its model
    small_head(store, found)
    result = evaluated(store, found.name)
    before = result.read("average.parquet")
    assert {state for state, _ in states(store).values()} == {"complete"}

    compute_again(found, store, weights="", noise=0.5)  # the same plan, other bytes
    found_states = states(store)
    assert found_states["features"][0] == "complete"
    for kind in ("head", "result"):
        state, why = found_states[kind]
        assert (state, found.name in why) == ("stale", True)

    capsys.readouterr()
    assert evaluated(store, found.name).read("average.parquet") == before
    assert f"result '{result.name}' is older than {found.name}: remove" in capsys.readouterr().err


def test_the_same_bytes_again_make_nothing_stale(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found)
    compute_again(found, store)
    assert states(store)["head"][0] == "complete"


def test_a_set_that_is_not_whole_makes_nothing_stale(store: FeatureStore) -> None:
    """Its missing rows may come back as they were."""
    found = cells(store)
    small_head(store, found)
    Path(found.shard_set.storage.location, "receipts/00001.json").unlink()
    assert states(store)["head"][0] == "complete"


@pytest.mark.parametrize("key", ["training", "test", "against", "select_on", "snapshots"])
@pytest.mark.parametrize("form", ["name", "plan", "list"])
def test_every_feature_set_of_a_plan_is_an_input(store: FeatureStore, key: str, form: str) -> None:
    found, other = cells(store), cells(store, "gone")
    value: Any = {"name": other.name, "plan": other.plan, "list": [other.name]}[form]
    plan = {"inputs": {"features": found.name, key: value}}
    assert why_stale(store, plan) == ""

    Path(other.shard_set.storage.location, "plan.json").unlink()
    assert why_stale(store, plan) == f"features {other.name} were deleted"


def test_a_head_with_a_temperature_is_stale_without_the_head(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found)
    tempered = make_in(store, FitTemperature(features=found.name, head="h", name="h-t")).output
    assert why_stale(store, tempered.plan()) == ""

    store.artifact("head", "h").storage.remove("head.json")
    assert why_stale(store, tempered.plan()) == "its head was deleted"


@pytest.mark.parametrize(
    ("contents_read", "state"),
    [
        (7, "damaged"),
        (["a"], "damaged"),
        ({"../a": "b"}, "complete"),
        ({"a\0": "b"}, "complete"),
        ({"a": 7}, "complete"),
    ],
)
def test_a_card_with_odd_contents_is_listed(
    store: FeatureStore, contents_read: Any, state: str
) -> None:
    result = store.artifact("result", "odd")
    result.claim({})
    result.write({}, {"contents": contents_read}, plan={})
    assert states(store)["result"][0] == state


@pytest.mark.parametrize("inputs", [{"heads": 7}, {"head": 7}, {"test": 7}, {"training": [{}]}, 7])
def test_a_plan_with_odd_inputs_is_damaged(store: FeatureStore, inputs: Any) -> None:
    result = store.artifact("result", "odd")
    result.claim({"inputs": inputs})
    result.write({}, {}, plan={"inputs": inputs})
    assert states(store)["result"][0] == "damaged"
