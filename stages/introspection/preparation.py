"""Whether a head fits features: one network, images prepared alike, labels of the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from stages.data.resize import ONE_LAYOUT, shape_after
from stages.errors import InputError
from stages.introspection.head_card import further_of, head_card
from stages.reflection.feature_plan import FeaturePlan, ModelFacts, SourceFacts
from stages.sensing.card import ModelCard
from stages.sensing.class_check import other_label
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import StoreError
from store.plan import Plan, differences

PREPARED_BY = "model, --normalisation and --batch-statistics"
"""What determines how a network prepares images."""


class OfModel(Protocol):
    """A feature set, or the plan of one."""

    @property
    def plan(self) -> Plan:
        """Plan that names the network of the features."""

    @property
    def name(self) -> str:
        """Name of the set."""


def check_model(feature_set: OfModel, artifact: Artifact) -> None:
    """Raise ``InputError`` if a head belongs to another network than the features."""
    model, card = FeaturePlan.of(feature_set.plan).model, head_card(artifact)
    if card.model_weights_sha256 != model.weights_sha256:
        raise InputError(
            f"head '{artifact.name}' belongs to model '{card.model}' "
            f"({card.model_weights_sha256[:12]}), {feature_set.name} was made with "
            f"'{model.name}' ({model.weights_sha256[:12]}): extract with that model, or "
            "train a head on this one"
        )


def check_same_network(feature_set: OfModel, other: OfModel, option: str) -> None:
    """Raise ``InputError`` if the features that an option names were made by another network."""
    ours, theirs = (FeaturePlan.of(each.plan).model for each in (feature_set, other))
    if ours.weights_sha256 != theirs.weights_sha256:
        raise InputError(
            f"{option} {other.name}: made with the model '{theirs.name}' "
            f"({theirs.weights_sha256[:12]}), expected '{ours.name}' "
            f"({ours.weights_sha256[:12]}), with which {feature_set.name} was made"
        )


def check_same_classes(feature_set: OfModel, other: OfModel, option: str) -> None:
    """Raise ``InputError`` if the network of features that an option names has other classes."""
    ours, theirs = (FeaturePlan.of(each.plan) for each in (feature_set, other))
    different = labels_differ(ours.source.class_names, theirs.source.class_names)
    if different or theirs.model.n_classes != ours.model.n_classes:
        named = f" ({'; '.join(different)})" if different else ""
        raise InputError(
            f"{option}: expected networks with the same classes, found {theirs.model.n_classes} of "
            f"'{theirs.model.name}' and {ours.model.n_classes} of '{ours.model.name}'{named}: use "
            "features of a network with the same classes"
        )


def check_preparation(
    store: FeatureStore, found: OfModel, artifact: Artifact, *, reads_further: bool = False
) -> None:
    """Raise ``InputError`` if a head was trained on images that were prepared differently.

    The size, the normalisation and the last layer must be the same, and photographs must not be
    stretched in one case and cropped in the other. Labels must mean the same classes, because one
    network may be in the store twice, with its outputs in two orders. A head whose features were
    deleted is not checked in these respects. If the caller ``reads_further`` arrays, the features
    must have those of the head; otherwise the head must read only features and logits.
    """
    if reads_further:
        further_of(head_card(artifact)).check(found.plan, artifact.name, found.name)
    else:
        check_only_last_layer(artifact)
    if (difference := difference_of(store, found, artifact)) is not None:
        raise difference


def check_only_last_layer(artifact: Artifact) -> None:
    """Raise ``InputError`` if a head reads arrays other than features and logits."""
    if further := further_of(head_card(artifact)).names:
        raise InputError(
            f"head '{artifact.name}' reads {' and '.join(further)}, which this command does not "
            "read; evaluate and uncertainty do, and predict computes statistics: omit the head"
        )


def made_of(store: FeatureStore, artifact: Artifact) -> FeaturePlan | None:
    """The plan of the features that a head was trained on; ``None`` if they were deleted."""
    if name := head_card(artifact).features:
        with suppress(StoreError):
            return FeaturePlan.of(store.resolve(name).plan)
    return None


def difference_of(store: FeatureStore, found: OfModel, artifact: Artifact) -> InputError | None:
    """The error of `check_preparation`, or ``None`` if the head matches."""
    if (theirs := made_of(store, artifact)) is None:
        return None
    plan = FeaturePlan.of(found.plan)
    prepared = models_differ(plan.model, theirs.model)
    resized = resized_differently(plan.source, theirs.source)
    labelled = labels_differ(plan.source.class_names, theirs.source.class_names)
    if not (different := prepared + resized + labelled):
        return None
    how = "prepared" if prepared or resized else "labelled"
    ways_out = [f"extract these with the head's {PREPARED_BY}"] * bool(prepared + labelled)
    ways_out += [ONE_LAYOUT] * bool(resized)
    return InputError(
        f"head '{artifact.name}' was trained on {head_card(artifact).features}, whose images "
        f"were {how} differently from those of {found.name} ({'; '.join(different)}): train a "
        f"head on images that are {how} in the same way, or {' and '.join(ways_out)}"
    )


def models_differ(ours: ModelFacts | ModelCard, theirs: ModelFacts | ModelCard) -> list[str]:
    """How two models prepare images differently; empty if they do not."""
    return list(differences(_preparation(ours), _preparation(theirs)))


def _preparation(model: ModelFacts | ModelCard) -> dict[str, Any]:  # Any: JSON
    """Facts of a model that, besides the weights, determine ``f`` and ``z`` of an image."""
    facts = {
        "image_size": model.image_size,
        "mean": model.mean,
        "std": model.std,
        "last_layer": model.last_layer,
        "resizing": model.resizing and model.resizing.rule(None),
        "batch_statistics": model.batch_statistics or "running",
    }
    return {key: value for key, value in facts.items() if value is not None}


def labels_differ(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """How labels mean different classes in two lists of classes; empty if they do not."""
    label = other_label(names, others)
    return [f"classes: {label}"] if label else []


def resized_differently(ours: SourceFacts, theirs: SourceFacts) -> list[str]:
    """The rules of two sources if one stretches images and the other crops them, else empty.

    Plans do not say whether image files were square, so both are compared as if they were not.
    """
    rules = [each.resize or "none" for each in (ours, theirs)]
    if {shape_after(rule) for rule in rules} != {"stretched", "cropped"}:
        return []
    return [f"resize: {rules[0]}, found {rules[1]}"]


def check_alike(found: OfModel, other: OfModel) -> None:
    """Raise ``InputError`` unless two feature sets are of one network and prepared alike."""
    ours, theirs = (FeaturePlan.of(each.plan) for each in (found, other))
    if ours.model.weights_sha256 != theirs.model.weights_sha256:
        raise InputError(
            f"expected features of one network, found {found.name} of '{ours.model.name}' "
            f"({ours.model.weights_sha256[:12]}) and {other.name} of '{theirs.model.name}' "
            f"({theirs.model.weights_sha256[:12]})"
        )
    different = models_differ(ours.model, theirs.model)
    different += labels_differ(ours.source.class_names, theirs.source.class_names)
    if different:
        raise InputError(
            f"{found.name} and {other.name} were prepared differently ({'; '.join(different)}): "
            f"extract both with the same {PREPARED_BY}"
        )
