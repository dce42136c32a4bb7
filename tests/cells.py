"""A small corrupted set without images: three overlapping clouds, with shards across cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from made import make_in

from stages.introspection.train_head import TrainHead
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.featureset import FeatureSet
from store.schema import ArraySpec, Schema

N_CLASSES, WIDTH = 3, 4
UNREAD = 5
"""The row whose image could not be read."""

ARRAYS = (ArraySpec("features", (WIDTH,)), ArraySpec("logits", (N_CLASSES,)))
NAMES = (("sample_id", "string"), ("corruption", "string"), ("severity", "int64"))


def cells(
    store: FeatureStore,
    name: str = "shapes",
    *,
    n_rows: int = 84,
    shard_rows: int = 10,
    weights: str = "w1",
    has_cells: bool = True,
    has_labels: bool = True,
    is_all_wrong: bool = False,
    corruptions: tuple[str, str] = ("fog", "snow"),
    order: Sequence[int] | None = None,
    noise: float = 0.0,
    unread: Sequence[int] = (UNREAD,),
    source: Mapping[str, Any] | None = None,
    net: Mapping[str, Any] | None = None,
) -> FeatureSet:
    """Rows of two corruptions at three severities in turn: six cells of the same images.

    ``order`` stores the rows in another order, ``noise`` is added to the features, and the images
    of the rows ``unread`` could not be read. ``source`` and ``net`` are further facts of the data
    set and the network for the plan.
    """
    order = np.arange(n_rows) if order is None else np.asarray(order)
    is_unread = np.isin(np.arange(n_rows), unread)
    rng = np.random.default_rng([7, n_rows])
    labels = rng.integers(0, N_CLASSES, n_rows)
    centres = np.eye(N_CLASSES, WIDTH) * 2
    features = np.maximum(centres[labels] + rng.normal(size=(n_rows, WIDTH)), 0).astype(np.float32)
    features += np.float32(noise) * rng.normal(size=features.shape).astype(np.float32)
    logits = features @ np.eye(WIDTH, N_CLASSES, dtype=np.float32)
    if is_all_wrong:
        labels = (logits.argmax(axis=1) + 1) % N_CLASSES
    features[is_unread], logits[is_unread] = np.nan, np.nan
    image, cell = np.arange(n_rows) // 6, np.arange(n_rows) % 6
    corruption, severity = np.array(corruptions)[cell % 2], cell // 2 + 1
    places = zip(corruption, severity, image, strict=True)
    columns: dict[str, Any] = {
        "sample_id": [f"{where}/{level}/{number:05d}" for where, level, number in places],
        "corruption": corruption,
        "severity": severity,
        "label": labels if has_labels else np.full(n_rows, -1),
        "status": np.where(is_unread, "unreadable", "ok"),
    }
    kinds = (*(NAMES if has_cells else NAMES[:1]), ("label", "int64"), ("status", "string"))
    schema = Schema(ARRAYS, kinds)
    model = {"name": "net", "n_classes": N_CLASSES, "feature_dim": WIDTH, "M": 2.0}
    plan = {
        "name": f"{name}-test@net",
        "n_rows": n_rows,
        "shard_rows": shard_rows,
        "schema": schema.to_json(),
        "inputs": {
            "source": {"name": name, **(source or {})},
            "model": {**model, "weights_sha256": weights, **(net or {})},
        },
    }
    found = store.create(plan)
    for shard in found.shard_set.shards:
        rows = order[shard.start : shard.stop]
        here = {key: np.asarray(columns[key])[rows] for key, _ in kinds}
        arrays = {"features": features[rows], "logits": logits[rows]}
        files = encode_rows(schema, shard, shard_rows, arrays, here)
        failed = {str(shard.start + at): "unreadable" for at in np.flatnonzero(is_unread[rows])}
        found.shard_set.commit(shard, files, {"failed": failed})
    return found


def small_head(
    store: FeatureStore, found: FeatureSet, name: str = "h", seeds: tuple[int, ...] = (0,)
) -> None:
    """A head that has learned the cells a little."""
    head = TrainHead(
        features=found.name,
        name=name,
        layers=(8,),
        epochs=5,
        weight_decay=0.0,
        batch_size=16,
        seeds=seeds,
    )
    make_in(store, head)
