"""Contenders: heads that are compared with f and with each other, under labels for tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipeline.fields import Labelled
from stages.errors import DataNotFoundError, InputError
from stages.introspection.head_card import head_card
from stages.introspection.preparation import OfModel, check_model, difference_of
from stages.metrics.definitions import REFERENCE
from stages.planned import PlannedHead
from stages.reflection.feature_plan import FeaturePlan
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import Plan

LABELS = {"temperature": "T", "neighbours": "kNN", "laplace": "L"}
"""Kind of a head -> its label where it is the only head; H for a network."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A head and its label in tables."""

    label: str
    head: Artifact


def contenders_of(
    store: FeatureStore, feature_set: OfModel, heads: Sequence[Labelled] | None
) -> list[Contender]:
    """The heads of a stage's option: see `stages.introspection.heads.Heads`.

    Raises as `choose_head`.
    """
    if heads is None:
        head = choose_head(store, feature_set, None)
        return [Contender(LABELS.get(head_card(head).kind, "H"), head)]
    if [(each.label, each.name) for each in heads] == [("none", "none")]:
        return []
    return [Contender(each.label, choose_head(store, feature_set, each.name)) for each in heads]


def choose_head(store: FeatureStore, feature_set: OfModel, name: str | None) -> Artifact:
    """The head with that name, or the only one that belongs to the network of a set.

    Among several, one whose images were prepared in the same way is preferred. The caller runs
    `check_preparation`, because existing results are read without it.

    Raises:
        DataNotFoundError: there is none; the message says how to train one.
        InputError: there are several, or the named one belongs to another network.
    """
    model = FeaturePlan.of(feature_set.plan).model
    if name is not None:
        artifact = store.artifact("head", name)
        check_model(feature_set, artifact)
        return artifact
    finished = [artifact for artifact in store.artifacts("head") if artifact.is_complete()]
    fitting = [a for a in finished if _belongs_to(a, model.weights_sha256)]
    if len(fitting) > 1:
        alike = [a for a in fitting if difference_of(store, feature_set, a) is None]
        fitting = alike or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(
            f"{len(fitting)} heads belong to model '{model.name}': choose one of "
            f"{', '.join(artifact.name for artifact in fitting)} with --head, or several, each as "
            "--head LABEL=NAME"
        )
    raise DataNotFoundError(
        f"no head for model '{model.name}' in {store.location}: train one with `intro-pipe "
        "train-head --features` and the features of its training set"
    )


def _belongs_to(artifact: Artifact, weights_sha256: str) -> bool:
    try:
        return head_card(artifact).model_weights_sha256 == weights_sha256
    except InputError:  # a head in another format does not affect the choice of others
        return False


def check_contenders(contenders: Sequence[Contender]) -> None:
    """Raise ``InputError`` if labels clash."""
    check_labels([REFERENCE, *(each.label for each in contenders)])


def check_labels(labels: Sequence[str]) -> None:
    """Raise ``InputError`` if a label of f or a contender is unusable, or occurs twice."""
    for label in labels:
        if not label.isprintable():
            raise InputError(
                f"contenders: expected labels of printable characters, found {label!r}: name "
                "heads as LABEL=NAME"
            )
        if not label.strip() or labels.count(label) > 1:
            raise InputError(
                f"contenders: expected a unique label for each, other than '{REFERENCE}', "
                f"which is the network itself; found '{label}': name heads as LABEL=NAME"
            )


def planned_heads(contenders: Sequence[Contender]) -> list[Plan]:
    """What a plan records about heads: the plan of each, and the checksums of its files."""
    return [
        asdict(PlannedHead(each.label, each.head.plan(), checksums_of(each.head)))
        for each in contenders
    ]


def checksums_of(head: Artifact) -> dict[str, str]:
    """The SHA-256 of each file of a finished head, by key."""
    return {key: digest.sha256 for key, digest in sorted(head.files().items())}
