"""Networks that nobody trained, and features whose logits are those of their last layer."""

import numpy as np
import torch

from stages.sensing.build import build_network
from stages.sensing.card import CIFAR10_MEAN, CIFAR10_STD, ModelCard
from stages.sensing.models import WEIGHTS_KEY
from stages.sensing.train_params import TrainParams
from stages.sensing.trained import TrainedModel
from stages.sensing.weights import save_weights, weights_hash
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.featureset import FeatureSet
from store.schema import ArraySpec, Schema

N_CLASSES, N_ROWS = 3, 120


def a_network(store: FeatureStore, name: str, seed: int) -> ModelCard:
    """A network whose last layer tells the classes apart by its first features."""
    torch.manual_seed(seed)
    network = build_network("cnn2", N_CLASSES)
    layer = network.get_submodule("linear")
    assert isinstance(layer, torch.nn.Linear)
    with torch.no_grad():
        layer.weight[:, :N_CLASSES] += torch.eye(N_CLASSES)
    card = ModelCard(
        name=name,
        network="cnn2",
        n_classes=N_CLASSES,
        class_names=(),
        image_size=32,
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        last_layer="linear",
        feature_dim=layer.in_features,
        family="clouds",
        M=None,
        weights_sha256=weights_hash(network),
    )
    made = TrainedModel(
        card=card,
        M=1.0,
        train_accuracy=1.0,
        test_accuracy=None,
        n_train=N_ROWS,
        n_train_left_out=0,
        n_held_out=0,
        n_test=0,
        recipe=TrainParams(),
    )
    artifact, plan = store.artifact("model", name), {"inputs": {}}
    artifact.claim(plan)
    artifact.write({WEIGHTS_KEY: save_weights(network)}, made.to_dict(), plan=plan)
    for split in ("train", "test"):
        _features(store, card, layer, split)
    return card


def _features(
    store: FeatureStore, card: ModelCard, layer: torch.nn.Linear, split: str
) -> FeatureSet:
    """Rows of three overlapping clouds in shards of 50, the same for every network."""
    rng = np.random.default_rng(len(split))
    labels = rng.integers(0, N_CLASSES, N_ROWS)
    features = rng.normal(size=(N_ROWS, card.feature_dim)) / 4
    features[np.arange(N_ROWS), labels] += 2
    features = np.maximum(features, 0).astype(np.float32)
    with torch.no_grad():
        logits = layer(torch.from_numpy(features)).numpy()
    arrays = (ArraySpec("features", (card.feature_dim,)), ArraySpec("logits", (N_CLASSES,)))
    schema = Schema(arrays, (("label", "int64"), ("status", "string")))
    source = {"name": "clouds", "split": split, "fingerprint": split}
    found = store.create(
        {
            "name": f"clouds-{split}@{card.name}",
            "n_rows": N_ROWS,
            "shard_rows": 50,
            "schema": schema.to_json(),
            "inputs": {"source": source, "model": card.to_dict()},
        }
    )
    for shard in found.shard_set.shards:
        rows = slice(shard.start, shard.stop)
        columns = {"label": labels[rows], "status": ["ok"] * shard.n_rows}
        here = {"features": features[rows], "logits": logits[rows]}
        found.shard_set.commit(shard, encode_rows(schema, shard, 50, here, columns), {"failed": {}})
    return found
