"""What a plan was made of, held against what the store has now."""

from collections.abc import Iterator, Mapping
from typing import Any

from store.catalog import FEATURES, FeatureStore
from store.errors import StoreError
from store.plan import Plan, fingerprint
from store.shardset import PLAN_KEY


def why_stale(store: FeatureStore, plan: Plan) -> str:
    """Which input of a plan is gone from the store, or was made again; empty where none is.

    Damaged inputs are passed over: they have lines of their own. Data sets lie elsewhere.
    """
    inputs = plan.get("inputs", {})
    for reason in (*_of_model(store, inputs), *_of_features(store, inputs)):
        return reason
    for reason in (*_of_heads(store, inputs), *_of_results(store, inputs)):
        return reason
    return ""


def _of_model(store: FeatureStore, inputs: Mapping[str, Any]) -> Iterator[str]:
    planned = inputs.get("model", {})
    if "weights_sha256" not in planned:
        return
    model = store.artifact("model", planned["name"])
    if not model.is_complete():
        yield f"model '{model.name}' is gone"
        return
    try:
        found = model.card()["card"]["weights_sha256"]
    except StoreError:
        return
    if found != planned["weights_sha256"]:
        yield f"model '{model.name}' was made again: it has other weights"


def _of_features(store: FeatureStore, inputs: Mapping[str, Any]) -> Iterator[str]:
    planned = inputs.get("features", [])
    for each in planned if isinstance(planned, list) else [planned]:
        name = each if isinstance(each, str) else f"{each['name']}-{fingerprint(each)}"
        if store.storage.size(f"{FEATURES}/{name}/{PLAN_KEY}") is None:
            yield f"features {name} are gone"


def _of_heads(store: FeatureStore, inputs: Mapping[str, Any]) -> Iterator[str]:
    for each in inputs.get("heads", []):
        there = [head for head in store.made_by("head", each["head"]) if head.is_complete()]
        if not there:
            yield f"head '{each['label']}' is gone"
            continue
        try:
            found = [{k: v["sha256"] for k, v in head.card()["files"].items()} for head in there]
        except StoreError:
            continue
        if each["files"] not in found:
            yield f"head '{each['label']}' was made again: it has other weights"


def _of_results(store: FeatureStore, inputs: Mapping[str, Any]) -> Iterator[str]:
    for each in inputs.get("results", []):
        result = store.artifact("result", each["result"])
        if not result.is_complete():
            yield f"result '{result.name}' is gone"
            continue
        try:
            found = fingerprint(result.plan())
        except StoreError:
            continue
        if found != each["plan"]:
            yield f"result '{result.name}' was made again, by another plan"
