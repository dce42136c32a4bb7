"""A small feature set without images: clouds that a linear network partly tells apart."""

from typing import Any

import numpy as np

from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.featureset import FeatureSet
from store.schema import ArraySpec, Schema

N_CLASSES, WIDTH, N_ROWS = 3, 4, 300
SCHEMA = Schema(
    (ArraySpec("features", (WIDTH,)), ArraySpec("logits", (N_CLASSES,))),
    (("label", "int64"), ("status", "string")),
)


def clouds(
    store: FeatureStore,
    name: str = "clouds-train",
    *,
    weights: str = "w1",
    is_labelled: bool = True,
) -> FeatureSet:
    """Rows of three clouds in shards of 100; row 5 could not be read."""
    rng = np.random.default_rng(sum(name.encode()))
    labels = rng.integers(0, N_CLASSES, N_ROWS)
    centres = 2 * np.eye(N_CLASSES, WIDTH)
    features = np.maximum(centres[labels] + rng.normal(size=(N_ROWS, WIDTH)), 0).astype(np.float32)
    logits = 3 * features @ np.eye(WIDTH, N_CLASSES, dtype=np.float32)
    features[5], logits[5] = np.nan, np.nan
    columns: dict[str, Any] = {
        "label": labels if is_labelled else np.full(N_ROWS, -1),
        "status": ["unreadable" if row == 5 else "ok" for row in range(N_ROWS)],
    }
    model = {"name": "net", "n_classes": N_CLASSES, "feature_dim": WIDTH, "weights_sha256": weights}
    source = {"name": name, "split": name.rpartition("-")[2], "fingerprint": name}
    plan = {
        "name": f"{name}@net",
        "n_rows": N_ROWS,
        "shard_rows": 100,
        "schema": SCHEMA.to_json(),
        "inputs": {"source": source, "model": model},
    }
    found = store.create(plan)
    for shard in found.shard_set.shards:
        rows = slice(shard.start, shard.stop)
        here = {key: values[rows] for key, values in columns.items()}
        arrays = {"features": features[rows], "logits": logits[rows]}
        files = encode_rows(SCHEMA, shard, 100, arrays, here)
        failed = {"5": "unreadable"} if shard.index == 0 else {}
        found.shard_set.commit(shard, files, {"failed": failed})
    return found


def a_model(store: FeatureStore, recipe: dict[str, int], source: str = "clouds-train") -> None:
    """The model of the clouds, as far as heads look at it."""
    artifact = store.artifact("model", "net")
    artifact.claim({"inputs": {"source": {"fingerprint": source}}})
    artifact.write({}, {"card": {"weights_sha256": "w1"}, "recipe": recipe})
