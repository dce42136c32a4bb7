"""The inputs that a plan records, as types. Plans of other stages record other inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from stages.typed import known, typed
from store.plan import Plan, fingerprint


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model and its weights; a model card has these fields too."""

    name: str = ""
    weights_sha256: str = ""


@dataclass(frozen=True, slots=True)
class PlannedHead:
    """A head: its label in the tables, its plan, and the SHA-256 of each of its files.

    The files count because another training of the same plan gives other weights.
    """

    label: str
    head: Mapping[str, Any]  # Any: JSON
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PlannedResult:
    """A result of a report: its values on the axes, its name, and the fingerprint of its plan."""

    axes: Mapping[str, str | int | float]
    result: str
    plan: str


@dataclass(frozen=True, slots=True)
class PlannedInputs:
    """The inputs of a plan that are in the store; ``features`` are names of feature sets."""

    model: PlannedModel = PlannedModel()
    features: tuple[str, ...] = ()
    heads: tuple[PlannedHead, ...] = ()
    results: tuple[PlannedResult, ...] = ()

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Read a plan; raises ``InputError`` if it is not in our format."""
        inputs = known(plan.get("inputs", {}), "plan: inputs")
        features = inputs.get("features", [])
        each_or_one = features if isinstance(features, list) else [features]
        return typed(cls, {**inputs, "features": [*map(_name_of, each_or_one)]}, "plan: inputs")


def _name_of(features: object) -> str:
    """Name of a feature set, which plans record by its name or its own plan."""
    if isinstance(features, str):
        return features
    plan = known(features, "plan: inputs: features")
    return f"{plan.get('name')}-{fingerprint(features)}"
