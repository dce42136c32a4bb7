"""Temperatures of a trained head: one for each seed, by which its last layer is divided."""

from __future__ import annotations

from typing import Any

from safetensors import torch as safetensors_torch

from stages.errors import InputError
from stages.introspection import temperature
from stages.introspection.head import layer_names, predict_logits
from stages.introspection.head_card import TrainedNetwork, head_card
from stages.introspection.head_training import WEIGHTS_KEY
from stages.introspection.heads import Fit, factors_in_memory, labels_of
from stages.introspection.predictors import open_head
from store.artifacts import Artifact
from store.featureset import FeatureSet

_OF_TRAINING = ("train_loss", "history")
"""Facts of the trained head that do not hold for the result."""


def trained_network(head: Artifact) -> TrainedNetwork:
    """The network of a head; raises ``InputError`` if it has none, or a temperature already."""
    card = head_card(head)
    if not isinstance(card.predictor, TrainedNetwork):
        raise InputError(f"head '{head.name}': expected a trained network, found {card.kind}")
    if card.predictor.tempered_on:
        raise InputError(
            f"head '{head.name}': expected a head without a temperature, found one that was fitted "
            f"on {card.predictor.tempered_on}; use the head that was trained"
        )
    return card.predictor


def fit_tempered_head(head: Artifact, feature_set: FeatureSet) -> Fit:
    """A head that predicts ``softmax(h / T)``, where ``h`` are the logits of a trained one.

    Each seed has its own temperature. A linear last layer that is divided by ``T`` gives ``h / T``,
    so the result is a head like any other.

    Raises:
        InputError: no labelled row, or a likelihood without a maximum; see `temperature.fit`.
        ResourceError: features and logits do not fit into the free memory.
    """
    network = trained_network(head)
    arrays = factors_in_memory(feature_set, "temperatures of a head")
    further = network.spec.further.read(feature_set, slice(None))
    labels = labels_of(feature_set)
    fits = []
    for seed in network.params.seeds:
        logits = predict_logits(open_head(head, seed), *arrays, further)
        fits.append(temperature.fit(logits, labels, f"head '{head.name}', seed {seed},"))
    weights = safetensors_torch.load(head.read(WEIGHTS_KEY))
    for name in layer_names(len(network.spec.layers)):
        for stacked, fit in zip(weights[name], fits, strict=True):
            stacked /= fit.value
    facts: dict[str, Any] = {
        **{key: value for key, value in head.card().items() if key not in _OF_TRAINING},
        "tempered_on": feature_set.name,
        "tempered_rows": fits[0].n_rows,
        "temperatures": [fit.value for fit in fits],
        "nll_before": [fit.nll_before for fit in fits],
        "nll_after": [fit.nll_after for fit in fits],
    }
    return Fit(fits[0].n_rows, facts, {WEIGHTS_KEY: bytes(safetensors_torch.save(weights))})
