"""The heads of a store: training one from stored features, loading one."""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.journal import Journal
from pipeline.loop import LoopReport, run_loop
from stages.errors import DataNotFoundError, InputError
from stages.introspection.head import Head, HeadSpec, load_head
from stages.introspection.train import HeadParams, TrainHead
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan

WEIGHTS_KEY = "weights.safetensors"


def head_spec(
    feature_set: FeatureSet,
    *,
    layers: tuple[int, ...],
    loss: str,
    variant: str,
    scaling: str,
    dropout: float,
) -> HeadSpec:
    """The spec of a head that fits a feature set; ``M`` is left open, training measures it."""
    model = feature_set.plan["inputs"]["model"]
    return HeadSpec(
        n_classes=model["n_classes"],
        feature_dim=model["feature_dim"],
        layers=layers,
        loss=loss,
        variant=variant,
        scaling=scaling,
        dropout=dropout,
    )


def choose_head(store: FeatureStore, feature_set: FeatureSet, name: str | None) -> Artifact:
    """The head of that name, or the only one that reads this network's gradients.

    Raises:
        DataNotFoundError: there is none; says how to train one.
        InputError: there are several, or the one named belongs to another network.
    """
    model = feature_set.plan["inputs"]["model"]
    if name is not None:
        artifact = store.artifact("head", name)
        card = artifact.card()
        if card["model_weights_sha256"] != model["weights_sha256"]:
            raise InputError(
                f"head '{name}' reads the gradients of model '{card['model']}' "
                f"({card['model_weights_sha256'][:12]}), {feature_set.name} was made with "
                f"'{model['name']}' ({model['weights_sha256'][:12]}): extract with that model, or "
                "train a head on this one"
            )
        return artifact
    finished = [artifact for artifact in store.artifacts("head") if artifact.is_complete()]
    fitting = [a for a in finished if a.card()["model_weights_sha256"] == model["weights_sha256"]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(
            f"{len(fitting)} heads read the gradients of model '{model['name']}': choose one of "
            f"{', '.join(artifact.name for artifact in fitting)} with --head"
        )
    raise DataNotFoundError(
        f"no head for model '{model['name']}' in {store.location}: train one with `intro-pipe "
        "train-head --features` and the features of its training set"
    )


def head_plan(feature_set: FeatureSet, spec: HeadSpec, params: HeadParams) -> Plan:
    """Everything that determines the weights of a head."""
    return {
        "stage": {
            "name": "train-head",
            "version": TrainHead.version,
            "params": {
                "spec": spec.to_dict(),
                "training": {**dataclasses.asdict(params), "milestones": list(params.milestones)},
            },
        },
        "inputs": {"features": feature_set.name},
    }


def train_head(
    store: FeatureStore,
    feature_set: FeatureSet,
    name: str,
    spec: HeadSpec,
    params: HeadParams,
    *,
    device: str,
    journal: Journal,
) -> LoopReport:
    """Train H under a name on the features of a training set, or go on with it.

    ``M`` is taken from these features where ``spec`` has none.

    Raises:
        PlanMismatchError: the name holds a head of other features or parameters.
        StageError: the head has collapsed; the message has the remedy.
    """
    model = feature_set.plan["inputs"]["model"]
    stage = TrainHead(
        feature_set.read("features"),
        feature_set.read("logits"),
        feature_set.samples()["label"].to_numpy(np.int64),
        spec,
        params,
        device,
    )
    origin = {
        "features": feature_set.name,
        "model": model["name"],
        "model_weights_sha256": model["weights_sha256"],
    }
    return run_loop(
        stage,
        store.artifact("head", name),
        head_plan(feature_set, spec, params),
        store,
        journal,
        title=f"train head {name}",
        rows="rows",
        facts=origin,
    )


def open_head(artifact: Artifact) -> Head:
    """A finished head, in eval mode; raises ``NotFoundError``, ``DamagedError``."""
    spec = HeadSpec.from_dict(artifact.card()["spec"])
    return load_head(spec, artifact.read(WEIGHTS_KEY))
