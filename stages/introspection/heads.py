"""The heads of a store: training or fitting one on stored features, finding one, predicting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.journal import Journal
from pipeline.loop import LoopReport, run_loop
from stages.errors import DataNotFoundError, InputError
from stages.introspection import temperature
from stages.introspection.head import Head, HeadSpec, load_head, predict_probabilities
from stages.introspection.neighbours import Neighbours
from stages.introspection.reading import Reading
from stages.introspection.train import WEIGHTS_KEY, HeadParams, TrainHead
from stages.reflection.losses import DEFAULT_LOSS, softmax
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan

Predict = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""Features ``[n, d]`` and logits ``[n, N]`` to probabilities ``[n, N]``."""

Rows = Literal["all", "held-out"]
ROWS: tuple[Rows, ...] = ("all", "held-out")


def sensing_probabilities(
    features: NDArray[np.float32],  # noqa: ARG001 - what every predictor is given
    logits: NDArray[np.float32],
) -> NDArray[np.float64]:
    """What f itself says: the softmax of its logits, in float64."""
    return softmax(logits.astype(np.float64)).astype(np.float64, copy=False)


def head_spec(
    feature_set: FeatureSet,
    *,
    layers: tuple[int, ...] = (300, 100),
    reads: str = "reflection",
    loss: str = DEFAULT_LOSS,
    variant: str = "single-pass",
    scaling: str = "minmax",
    dropout: float = 0.0,
) -> HeadSpec:
    """The spec of a head that fits a feature set; ``M`` is left open, training measures it."""
    model = feature_set.plan["inputs"]["model"]
    return HeadSpec(
        n_classes=model["n_classes"],
        feature_dim=model["feature_dim"],
        layers=layers,
        reads=reads,
        loss=loss,
        variant=variant,
        scaling=scaling,
        dropout=dropout,
    )


def neighbours_reading(
    feature_set: FeatureSet,
    *,
    reads: str = "features",
    loss: str = DEFAULT_LOSS,
    variant: str = "single-pass",
    scaling: str | None = None,
) -> Reading:
    """What neighbours compare in a feature set.

    Without a ``scaling`` the reflection is scaled by ``minmax`` and other vectors are left alone.
    """
    model = feature_set.plan["inputs"]["model"]
    return Reading(
        n_classes=model["n_classes"],
        feature_dim=model["feature_dim"],
        reads=reads,
        loss=loss,
        variant=variant,
        scaling=scaling or ("minmax" if reads == "reflection" else "none"),
    )


def head_plan(
    feature_set: FeatureSet, spec: HeadSpec, params: HeadParams, *, rows: Rows = "all"
) -> Plan:
    """Everything that determines the weights of a head."""
    return {
        "stage": {
            "name": "train-head",
            "version": TrainHead.version,
            "params": {"spec": spec.to_dict(), "training": params.to_dict(), "rows": rows},
        },
        "inputs": {"features": feature_set.name},
    }


def temperature_plan(feature_set: FeatureSet) -> Plan:
    """Everything that determines a temperature."""
    return {
        "stage": {"name": "fit-temperature", "version": 1},
        "inputs": {"features": feature_set.name},
    }


def neighbours_plan(feature_set: FeatureSet, reading: Reading, *, k: int = 10) -> Plan:
    """Everything that determines the votes of neighbours; the name of the set has its hash."""
    params = {"k": k, "reading": reading.to_dict()}
    return {
        "stage": {"name": "fit-neighbours", "version": 1, "params": params},
        "inputs": {"features": feature_set.name},
    }


def train_head(
    store: FeatureStore,
    feature_set: FeatureSet,
    name: str,
    spec: HeadSpec,
    params: HeadParams,
    *,
    rows: Rows = "all",
    device: str,
    journal: Journal,
) -> LoopReport:
    """Train a head under a name on the features of a training set, or go on with it.

    ``M`` is taken from the rows that are trained on where ``spec`` has none. ``rows`` may be those
    that were held out of the sensing network's training.

    Raises:
        PlanMismatchError: the name holds a head of other features or parameters.
        InputError: no row was held out of the network's training.
        StageError: a head has collapsed; the message has the seed and the remedy.
    """
    chosen = training_rows(store, feature_set, rows)
    stage = TrainHead(
        feature_set.read("features")[chosen],
        feature_set.read("logits")[chosen],
        _labels(feature_set)[chosen],
        spec,
        params,
        device,
    )
    return run_loop(
        stage,
        store.artifact("head", name),
        head_plan(feature_set, spec, params, rows=rows),
        store,
        journal,
        title=f"train head {name}",
        rows="rows",
        facts={"predictor": "mlp", **_origin(feature_set), "rows": rows},
    )


def training_rows(
    store: FeatureStore, feature_set: FeatureSet, rows: Rows
) -> slice | NDArray[np.int64]:
    """The rows a head is trained on: all, or those held out of the sensing network's training.

    Raises:
        InputError: none were held out, or the set is not the one that the network was trained on.
    """
    if rows not in ROWS:
        raise InputError(f"rows: expected {' or '.join(ROWS)}, found {rows!r}")
    if rows == "all":
        return slice(None)
    from stages.sensing.recipe import held_out_rows

    model = feature_set.plan["inputs"]["model"]
    artifact = store.artifact("model", model["name"])
    card, plan = artifact.card(), artifact.plan()
    n_held_out = card.get("recipe", {}).get("held_out", 0)
    if card["card"]["weights_sha256"] != model["weights_sha256"] or not n_held_out:
        raise InputError(
            f"rows held-out: model '{model['name']}' held no row out of its training; train it "
            "with `intro-pipe train-sensing --held-out`, or take all rows"
        )
    trained_on = plan["inputs"]["source"]["fingerprint"]
    if feature_set.plan["inputs"]["source"]["fingerprint"] != trained_on:
        raise InputError(
            f"rows held-out: {feature_set.name} is not of the images that model '{model['name']}' "
            "was trained on; extract its whole training set"
        )
    return held_out_rows(feature_set.n_rows, n_held_out, card["recipe"]["seed"])


def fit_temperature(
    store: FeatureStore, feature_set: FeatureSet, name: str, *, journal: Journal
) -> dict[str, Any]:  # Any: JSON
    """Fit the temperature of f on labelled features, and give its card; a fitted one is read.

    Raises:
        PlanMismatchError: the name holds another head.
        InputError: no labels, or no best temperature.
    """
    artifact, plan = store.artifact("head", name), temperature_plan(feature_set)
    if artifact.refuse_other(plan) and artifact.is_complete():
        return artifact.card()
    labels = _labels(feature_set)
    fitted = temperature.fit(feature_set.read("logits"), labels)
    facts = {
        "predictor": "temperature",
        "reads": "logits",
        "split": feature_set.plan["inputs"]["source"].get("split"),
        "temperature": fitted.value,
        "nll_before": fitted.nll_before,
        "nll_after": fitted.nll_after,
    }
    return _keep(store, artifact, plan, feature_set, facts, fitted.n_rows, journal)


def fit_neighbours(
    store: FeatureStore,
    feature_set: FeatureSet,
    name: str,
    *,
    k: int = 10,
    reads: str = "features",
    loss: str = DEFAULT_LOSS,
    variant: str = "single-pass",
    scaling: str | None = None,
    journal: Journal,
) -> dict[str, Any]:  # Any: JSON
    """Let the k nearest rows of a labelled training set vote, and give the card.

    The features stay where they are: the card names the set, predicting reads it.

    Raises:
        PlanMismatchError: the name holds another head.
        InputError: fewer than k labelled rows, or choices that do not go together.
    """
    reading = neighbours_reading(
        feature_set, reads=reads, loss=loss, variant=variant, scaling=scaling
    )
    artifact, plan = store.artifact("head", name), neighbours_plan(feature_set, reading, k=k)
    if artifact.refuse_other(plan) and artifact.is_complete():
        return artifact.card()
    fitted = _neighbours(feature_set, reading, k, "cpu")
    spec = {"k": k, **fitted.reading.to_dict()}
    facts = {"predictor": "neighbours", "reads": reads, "spec": spec}
    return _keep(store, artifact, plan, feature_set, facts, len(fitted), journal)


def choose_head(store: FeatureStore, feature_set: FeatureSet, name: str | None) -> Artifact:
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


def check_model(feature_set: FeatureSet, artifact: Artifact) -> None:
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
        return {0: _neighbours(feature_set, reading, k, device).probabilities}
    return {
        seed: partial(predict_probabilities, open_head(artifact, seed, device=device))
        for seed in card["params"]["seeds"]
    }


def _tempered(
    value: float,
    features: NDArray[Any],  # noqa: ARG001 - what every predictor is given
    logits: NDArray[Any],
) -> NDArray[np.float64]:
    return temperature.tempered(logits, value)


def _neighbours(feature_set: FeatureSet, reading: Reading, k: int, device: str) -> Neighbours:
    features, logits = feature_set.read("features"), feature_set.read("logits")
    return Neighbours.of(features, logits, _labels(feature_set), reading, k=k, device=device)


def _labels(feature_set: FeatureSet) -> NDArray[np.int64]:
    return feature_set.samples()["label"].to_numpy(np.int64)


def _keep(
    store: FeatureStore,
    artifact: Artifact,
    plan: Plan,
    feature_set: FeatureSet,
    facts: Mapping[str, Any],
    n_rows: int,
    journal: Journal,
) -> dict[str, Any]:
    """Write a head that has no files of its own; gives its card."""
    store.prepare()
    artifact.claim(plan)
    journal.begin()
    counted = {"train_rows": n_rows, "excluded_rows": feature_set.n_rows - n_rows}
    return artifact.write({}, {**facts, **_origin(feature_set), "seeds": [0], **counted})


def _origin(feature_set: FeatureSet) -> dict[str, str]:
    model = feature_set.plan["inputs"]["model"]
    return {
        "features": feature_set.name,
        "model": model["name"],
        "model_weights_sha256": model["weights_sha256"],
    }
