"""Shared by the stages that make heads: options, and facts of a feature set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.fields import LabelledList, OneOf, Ref, Written
from pipeline.make import ArtifactJob, Output
from pipeline.memory import check_free
from pipeline.stage import Preview
from stages.data.option_types import FeatureSetName
from stages.errors import InputError
from stages.introspection.head_card import origin_of
from stages.metrics.definitions import REFERENCE
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.losses import LOSSES
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan

TrainingFeatures = Annotated[
    FeatureSetName, Field(description="Features of the training set, e.g. cifar10-train@f.")
]
Loss = Annotated[
    str,
    OneOf(tuple(LOSSES)),
    Field(description="Loss whose gradient is used."),
]
VARIANT = "Variant of the gradient."
Heads = Annotated[
    LabelledList | None,
    Ref(("head",), taken_labels=(REFERENCE,)),
    Written("--head", "[LABEL=]NAME", is_repeated=True),
    Field(
        description="Head of the store as [LABEL=]NAME, where LABEL is its name in the tables; may "
        "be repeated. none for f alone. (default: the model's only head, as H, or as T if it "
        "is a temperature)"
    ),
]
"""Heads to compare with f; none for f alone, None for the model's only head."""


def model_name(feature_set: FeatureSet) -> str:
    """Name of the network that made the features."""
    return FeaturePlan.of(feature_set.plan).model.name


def labels_of(feature_set: FeatureSet) -> NDArray[np.int64]:
    """The label of each row, shape ``(n,)``; -1 if it is unknown."""
    return feature_set.samples()["label"].to_numpy(np.int64)


def check_labels(feature_set: FeatureSet) -> None:
    """Raise ``InputError`` if a label is no class of the network."""
    check_classes(labels_of(feature_set), feature_set)


def check_classes(labels: NDArray[np.integer[Any]], feature_set: FeatureSet) -> None:
    """Raise ``InputError`` if one of some labels of a set is no class of the network."""
    n_classes = feature_set.schema.array("logits").row_shape[0]
    if len(labels) and labels.max() >= n_classes:
        raise InputError(
            f"{feature_set.name}: expected labels of the network's {n_classes:,} classes, "
            f"found {labels.max()}"
        )


def factors_in_memory(
    feature_set: FeatureSet, what: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features ``[n, d]`` and logits ``[n, N]`` of all rows.

    Raises:
        ResourceError: they do not fit into the free memory twice, as read and as selected rows.
    """
    names, n_rows = ("features", "logits"), feature_set.n_rows
    check_free(
        2 * n_rows * sum(feature_set.schema.array(name).row_bytes for name in names),
        f"{what}: two copies of the {n_rows:,} rows of {feature_set.name}",
        "use a feature set with fewer rows",
    )
    features, logits = (feature_set.read(name) for name in names)
    return features, logits


def check_labelled(feature_set: FeatureSet, what: str) -> None:
    """Raise ``InputError`` if no row of a set has a label; reads that column alone."""
    parts = (feature_set.read_samples(each, ["label"]) for each in feature_set.shard_set.shards)
    if not any((np.asarray(part["label"]) >= 0).any() for part in parts):
        raise InputError(
            f"{what} {feature_set.name}: expected labelled rows, found none among "
            f"{feature_set.n_rows:,}; use a split that has labels"
        )


class Fit(NamedTuple):
    """Number of rows that a head was fitted to, facts of its card, and its files by key."""

    n_rows: int
    facts: Mapping[str, Any]  # Any: JSON
    files: Mapping[str, bytes] = MappingProxyType({})


def fit_job(
    store: FeatureStore, name: str, plan: Plan, feature_set: FeatureSet, fit: Callable[[], Fit]
) -> ArtifactJob:
    """The job of a head that is fitted in one call, before anything is written.

    Facts of the fit replace those that the job adds to the card: origin, seed 0, and rows.
    """
    fitted = cache(fit)

    def compute() -> Output:
        n_rows, facts, files = fitted()
        of_rows = {"train_rows": n_rows, "excluded_rows": feature_set.n_rows - n_rows}
        return files, {**origin_of(feature_set), "seeds": [0], **of_rows, **facts}

    what = f"fit {name} on {feature_set.n_rows:,} rows of {feature_set.name}"
    return ArtifactJob(
        store,
        store.artifact("head", name),
        plan,
        title=f"fit {name}",
        preview=Preview(what, {"name": name, "plan": plan}),
        compute=compute,
        check=fitted,
    )
