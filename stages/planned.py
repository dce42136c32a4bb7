"""The inputs that a plan records, as types. Plans of other stages record other inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from stages.errors import InputError
from stages.typed import known, typed
from store.catalog import sets_in
from store.plan import Plan


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model and its weights; a model card has these fields too."""

    name: str = ""
    weights_sha256: str = ""


@dataclass(frozen=True, slots=True)
class PlannedHead:
    """A head: its label in the tables, its plan, and the SHA-256 of each of its files.

    The files count because another training of the same plan gives other weights. The label and
    the files may be empty in the plan of a stage that reads a single head.
    """

    label: str
    head: Mapping[str, Any]  # Any: JSON
    files: Mapping[str, str]

    @property
    def called(self) -> str:
        """What a message calls it."""
        return f"head '{self.label}'" if self.label else "its head"


@dataclass(frozen=True, slots=True)
class PlannedResult:
    """A result of a report: its values on the axes, its name, and the fingerprint of its plan."""

    axes: Mapping[str, str | int | float]
    result: str
    plan: str


@dataclass(frozen=True, slots=True)
class PlannedInputs:
    """The inputs of a plan that are in the store; ``features`` are the names of `sets_in` it."""

    model: PlannedModel = PlannedModel()
    features: tuple[str, ...] = ()
    heads: tuple[PlannedHead, ...] = ()
    results: tuple[PlannedResult, ...] = ()

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Read a plan; raises ``InputError`` if it is not in our format."""
        inputs = known(plan.get("inputs", {}), "plan: inputs")
        heads = inputs.get("heads", [])
        if not isinstance(heads, list):
            raise InputError("plan: inputs: heads: expected a list")
        heads = [*heads, *([inputs["head"]] if "head" in inputs else [])]
        found = {**inputs, "features": sets_in(plan), "heads": [*map(_planned_head, heads)]}
        return typed(cls, found, "plan: inputs")


def _planned_head(head: object) -> dict[str, Any]:  # Any: JSON
    """A head, which stages that read a single one record without a label, or without its files."""
    values = known(head, "plan: inputs: head")
    return {"label": values.pop("name", ""), "files": {}, "head": values.pop("plan", {}), **values}
