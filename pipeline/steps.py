"""The parts of a recipe: kinds of steps, steps as written, and their instances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.fields import Scalar
from pipeline.stage import Job, Stage
from pipeline.workspace import Workspace
from pipeline.yaml_lines import Key

Axes = Mapping[str, Scalar]
Settings = Mapping[Scalar, Mapping[str, Any]]  # Any: YAML values
"""The keys of a step that each value of an axis sets."""

REPORT = "report"
"""Name and kind of the last step, which is a top-level key of a recipe."""


@dataclass(frozen=True)
class Collected:
    """One of the steps that a key collects, with the name of its output."""

    label: str
    axes: Axes
    name: str


Inputs = Mapping[str, str | tuple[Collected, ...]]
"""The names of the outputs that a step refers to, by key."""


@dataclass(frozen=True)
class StepKind:
    """A kind of step: its name, its stage, and how a step becomes the job of a stage.

    Attributes:
        name: value of ``stage:``.
        stage: its fields are the keys of a step; those that refer to steps hold their names.
        job: returns the job of a step, given the workspace, the stage and the inputs.
        one: keys that refer to one step, and the accepted kinds of that step.
        many: the same for keys that collect steps: a mapping from labels to steps, or a list.
        labelled: keys of ``many`` whose labels must be distinct and not blank.
        taken_labels: labels that these keys cannot have.
        taken_axes: names that an axis of the steps of ``many`` cannot have.
        refused: keys that a recipe cannot have: places outside the store that would be written.
    """

    name: str
    stage: type[Stage]
    job: Callable[[Workspace, Any, Inputs], Job]  # Any: the stage of this kind
    one: Mapping[str, Sequence[str]] = field(default_factory=dict)
    many: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labelled: Sequence[str] = ()
    taken_labels: Sequence[str] = ()
    taken_axes: Sequence[str] = ()
    refused: Sequence[str] = ()


Kinds = Mapping[str, StepKind]


@dataclass(frozen=True)
class Instance:
    """A step at one point of its axes.

    Attributes:
        one: label of the instance that a key refers to, by key.
        many: ``(label of the entry, label of the instance)`` of the collected instances, by key.
        where: ``file:line`` of the step.
    """

    step: str
    kind: StepKind
    axes: Axes
    stage: Stage
    one: Mapping[str, str]
    many: Mapping[str, tuple[tuple[str, str], ...]]
    where: str

    @cached_property
    def label(self) -> str:
        """Name with axes, such as ``H[network=resnet18,loss=ce]``."""
        inside = ",".join(f"{axis}={value}" for axis, value in self.axes.items())
        return f"{self.step}[{inside}]" if inside else self.step

    @property
    def needs(self) -> tuple[str, ...]:
        """The labels of the instances that must be complete first."""
        return (*self.one.values(), *(need for each in self.many.values() for _, need in each))


@dataclass(frozen=True)
class WrittenStep:
    """A step as written: its kind, the axes that it adds, and the steps that it refers to.

    ``unlike`` has the axes that never have the value of another axis, and the other axis; ``sets``
    has the axes whose values set keys of the step.
    """

    name: str
    path: tuple[Key, ...]
    kind: StepKind
    each: Mapping[str, Sequence[Scalar]]
    one: Mapping[str, str]
    many: Mapping[str, Mapping[str, str]]
    unlike: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, Settings] = field(default_factory=dict)

    @property
    def references(self) -> list[tuple[str, str]]:
        """``(key, step)`` for every reference to a step."""
        collected = [(key, name) for key, found in self.many.items() for name in found.values()]
        return [*self.one.items(), *collected]
