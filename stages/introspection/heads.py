"""Making the heads of a store: trained or fitted on stored features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ResourceError
from pipeline.journal import Journal
from pipeline.loop import LoopReport, run_loop
from pipeline.memory import free_bytes, gib
from stages.errors import InputError
from stages.introspection import temperature
from stages.introspection.head import HeadSpec
from stages.introspection.predictors import neighbours_in
from stages.introspection.reading import Reading
from stages.introspection.recipe import HeadParams
from stages.introspection.train import TrainHead
from stages.reflection.losses import DEFAULT_LOSS
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan

Rows = Literal["all", "held-out"]
ROWS: tuple[Rows, ...] = ("all", "held-out")

_PARAMETER_BYTES = 28
"""Of one parameter in training: itself, gradient, momentum, and a checkpoint as it is made."""


def head_spec(
    feature_set: FeatureSet,
    *,
    layers: tuple[int, ...] = (300, 100),
    reads: str = "reflection",
    loss: str = DEFAULT_LOSS,
    variant: str = "single-pass",
    scaling: str = "minmax",
    dropout: float = 0.0,
    rank: int | None = None,
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
        rank=rank,
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
        ResourceError: the parameters do not fit into memory.
        StageError: a head has collapsed; the message has the seed and the remedy.
    """
    if not store.artifact("head", name).is_complete():
        check_size(spec, params)
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


def check_size(spec: HeadSpec, params: HeadParams) -> None:
    """Raise ``ResourceError`` where the heads are too large to be trained in the memory there is.

    At 1,000 classes and 2,048 features the paper's first layer has 614 million parameters.
    """
    needed, free = spec.n_parameters * len(params.seeds) * _PARAMETER_BYTES, free_bytes()
    if needed > free:
        way_out = "take a lower --rank" if spec.rank else "take a compact first layer (--rank 256)"
        raise ResourceError(
            f"head training: {spec.n_parameters:,} parameters take {gib(needed)} for "
            f"{len(params.seeds)} seed{'s' * (len(params.seeds) > 1)}, {gib(free)} are free: "
            f"{way_out if spec.reads == 'reflection' else 'take narrower --layers'}, or fewer seeds"
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
    if artifact.refuse_other(plan) and artifact.is_settled():
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
    if artifact.refuse_other(plan) and artifact.is_settled():
        return artifact.card()
    fitted = neighbours_in(feature_set, reading, k, "cpu")
    spec = {"k": k, **fitted.reading.to_dict()}
    facts = {"predictor": "neighbours", "reads": reads, "spec": spec}
    return _keep(store, artifact, plan, feature_set, facts, len(fitted), journal)


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
