"""The last layer of a model of the store, without running the network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.sensing.logit_layers import linear_map, logit_layers
from stages.sensing.model import load_network
from stages.sensing.models import model_card, require_trusted_code, weights_path
from store.catalog import FeatureStore


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """``z = W f + b``.

    Attributes:
        weight: ``W``, float64 ``[n_classes, d]``.
        bias: ``b``, float64 ``[n_classes]``; ``None`` if the layer has none.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64] | None


def stored_layer(store: FeatureStore, model: str, weights_sha256: str) -> StoredLayer:
    """The last layer of the model from which features were extracted.

    Args:
        store: store of the model.
        model: its name.
        weights_sha256: hash of the weights, as the features record it.

    Raises:
        NotFoundError: the model was deleted.
        InputError: it has other weights, or is code that is not trusted.
    """
    card = model_card(store.artifact("model", model))
    if card.weights_sha256 != weights_sha256:
        raise InputError(
            f"model '{model}' has the weights {card.weights_sha256[:12]}, expected "
            f"{weights_sha256[:12]}, with which the features were made: extract them again"
        )
    require_trusted_code(card)
    layers = logit_layers(load_network(card, weights_path(store, model)), card.last_layer)
    weight, bias = linear_map(layers)
    has_bias = any(each.bias is not None for each in layers)
    return StoredLayer(weight.double().numpy(), bias.double().numpy() if has_bias else None)
