"""A small feature set without images: clouds that a linear network partly separates."""

from typing import Any

import numpy as np

from stages.sensing.card import CIFAR10_MEAN, CIFAR10_STD, ModelCard
from stages.sensing.train_params import TrainParams
from stages.sensing.trained import TrainedModel
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
    first_label: int = 0,
    is_right: bool = False,
) -> FeatureSet:
    """Rows of three clouds in shards of 100; row 5 could not be read.

    ``first_label`` is added to the labels, and ``is_right`` makes them what the network predicts.
    """
    rng = np.random.default_rng(sum(name.encode()))
    labels = rng.integers(0, N_CLASSES, N_ROWS)
    centres = 2 * np.eye(N_CLASSES, WIDTH)
    features = np.maximum(centres[labels] + rng.normal(size=(N_ROWS, WIDTH)), 0).astype(np.float32)
    logits = 3 * features @ np.eye(WIDTH, N_CLASSES, dtype=np.float32)
    labels = logits.argmax(axis=1) if is_right else labels
    features[5], logits[5] = np.nan, np.nan
    columns: dict[str, Any] = {
        "label": labels + first_label if is_labelled else np.full(N_ROWS, -1),
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
    plan = {"inputs": {"source": {"fingerprint": source}}}
    artifact.claim(plan)
    card = ModelCard(
        name="net",
        network="cnn2",
        n_classes=N_CLASSES,
        class_names=(),
        image_size=32,
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        last_layer="fc",
        feature_dim=WIDTH,
        family="clouds",
        M=None,
        weights_sha256="w1",
    )
    model = TrainedModel(
        card=card,
        M=1.0,
        train_accuracy=1.0,
        test_accuracy=None,
        n_train=N_ROWS,
        n_train_left_out=0,
        n_held_out=recipe.get("held_out", 0),
        n_test=0,
        recipe=TrainParams(**recipe),
    )
    artifact.write({}, model.to_dict(), plan=plan)
