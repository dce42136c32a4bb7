"""The finished heads of a store: choosing one, opening one, and what it says of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataNotFoundError, InputError
from stages.introspection import temperature
from stages.introspection.head import Head, HeadSpec, head_factors, load_head, predict_probabilities
from stages.introspection.neighbours import Neighbours
from stages.introspection.reading import Reading
from stages.introspection.train import WEIGHTS_KEY
from stages.reflection.losses import softmax
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan

Predict = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""Features ``[n, d]`` and logits ``[n, N]`` to probabilities ``[n, N]``."""


LastLayer = Callable[[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
"""Features and logits of f to input ``[n, h]`` and output ``[n, N]`` of a head's last layer."""


def sensing_probabilities(
    features: NDArray[np.float32],  # noqa: ARG001 - what every predictor is given
    logits: NDArray[np.float32],
) -> NDArray[np.float64]:
    """What f itself says: the softmax of its logits, in float64."""
    return softmax(logits.astype(np.float64)).astype(np.float64, copy=False)


class OfModel(Protocol):
    """A feature set, or the plan of one."""

    @property
    def plan(self) -> Plan:
        """Says which network made the features, or will."""

    @property
    def name(self) -> str:
        """What the set is called."""


def choose_head(store: FeatureStore, feature_set: OfModel, name: str | None) -> Artifact:
    """The head of that name, or the only one that belongs to this network.

    Raises:
        DataNotFoundError: there is none; says how to train one.
        InputError: there are several, or the one named belongs to another network.
    """
    model = feature_set.plan["inputs"]["model"]
    if name is not None:
        artifact = store.artifact("head", name)
        check_model(feature_set, artifact)
        return artifact
    finished = [artifact for artifact in store.artifacts("head") if artifact.is_complete()]
    fitting = [a for a in finished if a.card()["model_weights_sha256"] == model["weights_sha256"]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(
            f"{len(fitting)} heads belong to model '{model['name']}': choose one of "
            f"{', '.join(artifact.name for artifact in fitting)} with --head"
        )
    raise DataNotFoundError(
        f"no head for model '{model['name']}' in {store.location}: train one with `intro-pipe "
        "train-head --features` and the features of its training set"
    )


def check_model(feature_set: OfModel, artifact: Artifact) -> None:
    """Raise ``InputError`` where a head belongs to another network than the features."""
    model, card = feature_set.plan["inputs"]["model"], _card(artifact)
    if card["model_weights_sha256"] != model["weights_sha256"]:
        raise InputError(
            f"head '{artifact.name}' belongs to model '{card['model']}' "
            f"({card['model_weights_sha256'][:12]}), {feature_set.name} was made with "
            f"'{model['name']}' ({model['weights_sha256'][:12]}): extract with that model, or "
            "train a head on this one"
        )


def _card(artifact: Artifact) -> dict[str, Any]:  # Any: JSON
    """The card of a head; raises ``InputError`` for one of version 0.1, which had one seed."""
    card = artifact.card()
    if "predictor" not in card:
        raise InputError(
            f"head '{artifact.name}' was trained by intro-pipe 0.1 and cannot be read any more: "
            f"train it again under another --name, or remove {artifact.storage.location}"
        )
    return card


def open_head(artifact: Artifact, seed: int | None = None, *, device: str = "cpu") -> Head:
    """A trained head in eval mode: of one seed, the first unless another is named.

    Raises:
        NotFoundError, DamagedError: it is not finished, or was altered.
        InputError: it was fitted, not trained, or has no such seed.
    """
    card = _card(artifact)
    if card["predictor"] != "mlp":
        raise InputError(
            f"head '{artifact.name}': expected a trained network, found {card['predictor']}"
        )
    seeds = card["params"]["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise InputError(f"head '{artifact.name}': expected a seed of {seeds}, found {seed}")
    spec, weights = HeadSpec.from_dict(card["spec"]), artifact.read(WEIGHTS_KEY)
    return load_head(spec, weights, seeds.index(seed), device=device)


def predictors(
    store: FeatureStore, artifact: Artifact, *, device: str = "cpu"
) -> dict[int, Predict]:
    """What a finished head says, for each of its seeds; safe in several threads at once.

    Rows with a NaN get probabilities of NaN. What was fitted without chance has the seed 0.
    """
    card = _card(artifact)
    if card["predictor"] == "temperature":
        return {0: partial(_tempered, card["temperature"])}
    if card["predictor"] == "neighbours":
        feature_set = store.open(card["features"])
        plain = dict(card["spec"])
        k, reading = plain.pop("k"), Reading.from_dict(plain)
        return {0: neighbours_in(feature_set, reading, k, device).probabilities}
    return {
        seed: partial(predict_probabilities, open_head(artifact, seed, device=device))
        for seed in card["params"]["seeds"]
    }


def factors(artifact: Artifact) -> dict[int, LastLayer]:
    """What goes into a finished head's last layer and what comes out, for each of its seeds.

    A temperature has the features of f and its logits divided. Raises ``InputError`` for a head
    that has no last layer.
    """
    card = _card(artifact)
    if card["predictor"] == "temperature":
        return {0: partial(divided, card["temperature"])}
    if card["predictor"] != "mlp":
        raise InputError(
            f"head '{artifact.name}': expected a trained network or a temperature, which have "
            f"logits, found {card['predictor']}; leave it out"
        )
    return {
        seed: partial(head_factors, open_head(artifact, seed)) for seed in card["params"]["seeds"]
    }


def divided(
    value: float, features: NDArray[Any], logits: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Features, and logits divided by a temperature."""
    return features, logits / value


def _tempered(
    value: float,
    features: NDArray[Any],  # noqa: ARG001 - what every predictor is given
    logits: NDArray[Any],
) -> NDArray[np.float64]:
    return temperature.tempered(logits, value)


def neighbours_in(feature_set: FeatureSet, reading: Reading, k: int, device: str) -> Neighbours:
    """Those who vote: the labelled rows of a training set, read into memory."""
    features, logits = feature_set.read("features"), feature_set.read("logits")
    labels = feature_set.samples()["label"].to_numpy(np.int64)
    return Neighbours.of(features, logits, labels, reading, k=k, device=device)
