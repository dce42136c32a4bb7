"""The feature sets to compare: in-distribution images, and others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stages.errors import InputError
from stages.introspection.contenders import Contender, check_contenders
from stages.introspection.preparation import (
    PREPARED_BY,
    OfModel,
    check_preparation,
    models_differ,
)
from stages.reflection.feature_plan import FeaturePlan
from stages.scores.known_scores import DETECTORS
from store.catalog import FeatureStore
from store.plan import Plan, fingerprint


@dataclass(frozen=True)
class Planned:
    """A feature set, or the plan of one that does not exist yet."""

    plan: Plan

    @property
    def name(self) -> str:
        """Name of the set."""
        return f"{self.plan['name']}-{fingerprint(self.plan)}"


@dataclass(frozen=True)
class Sides:
    """Feature sets to compare, of one network, or their plans.

    Attributes:
        inside: features of in-distribution images.
        outside: features of other images.
        training: features of the images that f was trained on, for detectors that are fitted.
    """

    inside: OfModel
    outside: OfModel
    training: OfModel | None = None

    @property
    def name(self) -> str:
        """``cifar10 against svhn``."""
        return f"{plan_of(self.inside).source.name} against {plan_of(self.outside).source.name}"

    @property
    def all(self) -> list[OfModel]:
        """The two or three sets."""
        sets = (self.inside, self.outside, self.training)
        return [each for each in sets if each is not None]

    def opened(self, store: FeatureStore) -> Sides:
        """The same sides, with plans replaced by the feature sets that exist in the store."""
        return Sides(*(store.find(each.plan) or each for each in self.all))


def check_sides(sides: Sides, contenders: Sequence[Contender], name: str) -> None:
    """Raise ``InputError`` if sets and heads cannot be compared by a detector; plans are enough."""
    weights = {plan_of(each).model.weights_sha256 for each in sides.all}
    if len(weights) > 1:
        raise InputError(
            f"ood {sides.name}: expected features of one network, found those of "
            f"{', '.join(sorted(each.name for each in sides.all))}"
        )
    for each in sides.all:
        if different := models_differ(*(plan_of(side).model for side in (each, sides.inside))):
            raise InputError(
                f"ood {sides.name}: the images of {each.name} and {sides.inside.name} were "
                f"prepared differently ({'; '.join(different)}), expected the same preparation: "
                f"extract both with the same {PREPARED_BY}"
            )
    check_contenders(contenders)
    detector = DETECTORS[name]
    if detector.fit is not None and sides.training is None:
        raise InputError(f"ood: {name} needs features of the training images to be fitted to")
    for each in (sides.inside, sides.outside):
        if plan_of(each).is_moved_by_odin != detector.is_perturbed:
            wanted = "perturbed by ODIN" if detector.is_perturbed else "without ODIN"
            raise InputError(f"ood: {name} needs features of images {wanted}, found {each.name}")


def check_heads(
    store: FeatureStore, sides: Sides, contenders: Sequence[Contender], detectors: Collection[str]
) -> None:
    """Raise ``InputError`` for a head that was made of other images, or that lacks what is read."""
    from stages.scores.predictor import check_scores

    for contender in contenders:
        check_preparation(store, sides.inside, contender.head)
        check_scores(contender.head, detectors)


def plan_of(found: OfModel) -> FeaturePlan:
    """The plan of a feature set, as types."""
    return FeaturePlan.of(found.plan)
