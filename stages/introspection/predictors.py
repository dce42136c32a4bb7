"""Finished heads of a store: load one, and predict with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.introspection import temperature
from stages.introspection.head import Head, head_factors, load_head, predict_probabilities
from stages.introspection.head_card import (
    FittedLaplace,
    FittedTemperature,
    TrainedNetwork,
    Votes,
    head_card,
)
from stages.introspection.head_training import WEIGHTS_KEY
from stages.introspection.heads import factors_in_memory, labels_of
from stages.introspection.laplace import Posterior, probit_logits, read_posterior
from stages.introspection.neighbours import Neighbours
from stages.introspection.preparation import check_only_last_layer
from stages.reflection.losses import softmax
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet

_LAPLACE_ROWS = 1024

Predict = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""Maps features ``[n, d]`` and logits ``[n, N]`` to probabilities ``[n, N]``."""


LastLayer = Callable[[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
"""Maps features and logits of f to input ``[n, h]`` and output ``[n, N]`` of the last layer."""


def sensing_probabilities(
    features: NDArray[np.float32],  # noqa: ARG001 - the signature of all predictors
    logits: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Predictions of f itself: the softmax of its logits, in float64."""
    return softmax(logits.astype(np.float64)).astype(np.float64, copy=False)


def open_head(artifact: Artifact, seed: int | None = None, *, device: str = "cpu") -> Head:
    """Load a trained head in eval mode, as a ``torch.nn.Module``.

    Args:
        artifact: the head in its store: ``store.artifact("head", "resnet18-h")``.
        seed: one of the seeds with which it was trained; by default the first.
        device: "cpu" or "cuda".

    Raises:
        NotFoundError, DamagedError: it is not finished, or was altered.
        InputError: it was fitted, not trained, or has no such seed.
    """
    card = head_card(artifact)
    network = card.predictor
    if not isinstance(network, TrainedNetwork):
        raise InputError(f"head '{artifact.name}': expected a trained network, found {card.kind}")
    seeds = network.params.seeds
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise InputError(f"head '{artifact.name}': expected a seed of {list(seeds)}, found {seed}")
    weights = artifact.read(WEIGHTS_KEY)
    return load_head(network.spec, weights, seeds.index(seed), device=device)


def predictors(
    store: FeatureStore, artifact: Artifact, *, device: str = "cpu"
) -> dict[int, Predict]:
    """A prediction function for each seed of a finished head; thread-safe.

    A temperature, nearest neighbours and a Laplace approximation (`probit_logits`) are
    deterministic, and have the seed 0.

    Args:
        store: store of the head and, for nearest neighbours, of the features that vote.
        artifact: the head in its store: ``store.artifact("head", "resnet18-h")``.
        device: "cpu" or "cuda".

    Returns:
        Seed -> function from features ``[n, d]`` and logits ``[n, N]``, both float32, to
        probabilities ``[n, N]``. Rows with a NaN get probabilities of NaN.

    Raises:
        NotFoundError, DamagedError: the head is not finished, or was altered.
        InputError: the head was trained by intro-pipe 0.1.
    """
    card = head_card(artifact)
    match card.predictor:
        case FittedTemperature(temperature=value):
            return {0: partial(_tempered, value)}
        case Votes() as votes:
            feature_set = store.open(card.features)
            return {0: neighbours_in(feature_set, votes, device).probabilities}
        case FittedLaplace(structure, has_bias=has_bias):
            posterior = read_posterior(artifact, structure, has_bias=has_bias)
            return {0: partial(_marginalised, posterior)}
        case TrainedNetwork(params=params):
            check_only_last_layer(artifact)
            return {
                seed: partial(predict_probabilities, open_head(artifact, seed, device=device))
                for seed in params.seeds
            }


def factors(artifact: Artifact) -> dict[int, LastLayer]:
    """Input and output of the last layer of a finished head, for each of its seeds.

    A temperature and a Laplace approximation have the features of f, and its logits divided by the
    temperature or as `probit_logits`. Raises ``InputError`` for a head without a last layer.
    """
    card = head_card(artifact)
    match card.predictor:
        case FittedTemperature(temperature=value):
            return {0: partial(divided, value)}
        case FittedLaplace(structure, has_bias=has_bias):
            return {0: partial(scaled, read_posterior(artifact, structure, has_bias=has_bias))}
        case TrainedNetwork(params=params):
            check_only_last_layer(artifact)
            return {seed: partial(head_factors, open_head(artifact, seed)) for seed in params.seeds}
    raise InputError(
        f"head '{artifact.name}': expected a trained network, a temperature or a Laplace "
        f"approximation, which have logits, found {card.kind}; omit it"
    )


def divided(
    value: float, features: NDArray[Any], logits: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Features, and logits divided by a temperature."""
    return features, logits / value


def scaled(
    posterior: Posterior, features: NDArray[Any], logits: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Features, and the logits of the probit approximation, in blocks of rows."""
    found = np.empty(logits.shape)
    for start in range(0, len(logits), _LAPLACE_ROWS):
        rows = slice(start, start + _LAPLACE_ROWS)
        variances = posterior.variances(features[rows])
        found[rows] = probit_logits(logits[rows].astype(np.float64), variances)
    return features, found


def _marginalised(
    posterior: Posterior, features: NDArray[Any], logits: NDArray[Any]
) -> NDArray[np.float64]:
    _, z = scaled(posterior, features, logits)
    return softmax(z).astype(np.float64, copy=False)


def _tempered(
    value: float,
    features: NDArray[Any],  # noqa: ARG001 - the signature of all predictors
    logits: NDArray[Any],
) -> NDArray[np.float64]:
    return temperature.tempered(logits, value)


def neighbours_in(feature_set: FeatureSet, votes: Votes, device: str) -> Neighbours:
    """Read the labelled rows of a training set into memory, to vote."""
    features, logits = factors_in_memory(feature_set, "nearest neighbours")
    return Neighbours.of(
        features,
        logits,
        labels_of(feature_set),
        votes.reading,
        k=votes.k,
        temperature=votes.temperature,
        device=device,
    )
