"""A model as version 0.6 imported it: the layout of a data set says how photographs are resized."""

from collections.abc import Sequence

import torch

from stages.sensing.build import build_network
from stages.sensing.model import describe
from stages.sensing.models import WEIGHTS_KEY
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore


def import_as_before(store: FeatureStore, class_names: Sequence[str]) -> None:
    """Store a ``cnn2`` for 32 pixels as model ``net``, without a rule for photographs."""
    torch.manual_seed(0)
    network = build_network("cnn2", len(class_names)).eval()
    card = describe(
        network,
        name="net",
        network_name="cnn2",
        class_names=tuple(class_names),
        image_size=32,
        family="photos",
    ).to_dict()
    plan = {"stage": {"name": "import-model", "version": 1}, "card": card}
    artifact = store.prepare().artifact("model", "net")
    artifact.claim(plan)
    artifact.write({WEIGHTS_KEY: save_weights(network)}, {"card": card}, plan=plan)
