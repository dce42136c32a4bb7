"""A set with the predictions and confidences that `extract` writes, without images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.featureset import FeatureSet
from store.schema import ArraySpec, Schema

ARRAYS = (ArraySpec("features", (2,)), ArraySpec("logits", (3,)))


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def answered(store: FeatureStore, broken: Sequence[int] = ()) -> FeatureSet:
    """Rows with the prediction and confidence of `extract`; some failed, some without a label.

    The features alone are not finite in the ``broken`` rows.
    """
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(50, 3)).astype(np.float32)
    logits[[4, 27]] = np.nan
    features = np.ones((50, 2), np.float32)
    features[list(broken)] = np.inf
    labels = rng.integers(0, 3, 50)
    labels[[4, 9, 13]] = -1
    p = softmax(logits)
    columns = {
        "kind": np.array(["a", "b"])[np.arange(50) % 2],
        "label": labels,
        "prediction": np.where(np.isnan(p[:, 0]), -1, p.argmax(axis=1)),
        "confidence": p.max(axis=1),
    }
    kinds = (("kind", "string"), ("label", "int64"), ("prediction", "int64"))
    schema = Schema(ARRAYS, (*kinds, ("confidence", "float64")))
    plan = {
        "name": "answered-test@net",
        "n_rows": 50,
        "shard_rows": 20,
        "schema": schema.to_json(),
        "inputs": {"source": {"name": "answered"}, "model": {"name": "net"}},
    }
    found = store.prepare().create(plan)
    for shard in found.shard_set.shards:
        rows = slice(shard.start, shard.stop)
        here = {name: values[rows] for name, values in columns.items()}
        files = encode_rows(
            schema, shard, 20, {"features": features[rows], "logits": logits[rows]}, here
        )
        found.shard_set.commit(shard, files, {"failed": {}})
    return found
