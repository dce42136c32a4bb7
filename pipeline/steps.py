"""What a recipe is made of: kinds of steps, steps as they are written, and instances of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Strict

from pipeline.yaml_lines import Key

Scalar = str | int | float
Axes = Mapping[str, Scalar]

T = TypeVar("T")
Several = Annotated[tuple[T, ...], Strict(False)]
"""A list in YAML, for fields of ``StepParams``; its items are as strict as those."""

REPORT = "report"
"""The last step, which a recipe writes beside its steps; also what its kind is called."""


class StepParams(BaseModel):
    """What a step of some kind takes: a subclass has a field for each key.

    No key but these is taken, and no value of another type. Fields that refer to steps hold names.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


@dataclass(frozen=True)
class StepKind:
    """What a recipe can do: a name, its keys, and the function that says how far a step is.

    Attributes:
        name: what ``stage:`` says.
        params: the keys and their types.
        task: from context, parameters and inputs to a ``Task``, see ``pipeline.recipe_run``.
        one: keys that refer to a step, and the kinds that it may be of.
        many: the same for keys that collect steps: a mapping from labels to steps, or a list.
        labelled: those of ``many`` whose labels must tell the instances apart.
        taken_labels: what none of these labels can be; nor can it be empty.
        taken_axes: what no axis of the steps that ``many`` collects can be called.
        check: raises ``ValueError`` where what the parameters name is not there; it is given the
            context, the parameters, and those of the steps that ``one`` refers to, and is asked of
            every step before the first one starts.
    """

    name: str
    params: type[StepParams]
    task: Callable[..., Any]  # Any: a Task, which pipeline.recipe_run defines
    one: Mapping[str, Sequence[str]] = field(default_factory=dict)
    many: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labelled: Sequence[str] = ()
    taken_labels: Sequence[str] = ()
    taken_axes: Sequence[str] = ()
    check: Callable[..., None] = lambda *_: None


Kinds = Mapping[str, StepKind]


@dataclass(frozen=True)
class Instance:
    """A step at one point of its axes.

    Attributes:
        one: key -> label of the instance that it refers to.
        many: key -> ``(label of the entry, label of the instance)`` of what is collected.
        where: ``file:line`` of the step.
    """

    step: str
    kind: StepKind
    axes: Axes
    params: StepParams
    one: Mapping[str, str]
    many: Mapping[str, tuple[tuple[str, str], ...]]
    where: str

    @cached_property
    def label(self) -> str:
        """``H[network=resnet18,loss=ce]``."""
        inside = ",".join(f"{axis}={value}" for axis, value in self.axes.items())
        return f"{self.step}[{inside}]" if inside else self.step

    @property
    def needs(self) -> tuple[str, ...]:
        """The labels of the instances that must be there first."""
        return (*self.one.values(), *(need for each in self.many.values() for _, need in each))


@dataclass(frozen=True)
class WrittenStep:
    """A step as it is written: its kind, the axes it adds, and the names of steps it refers to."""

    name: str
    path: tuple[Key, ...]
    kind: StepKind
    each: Mapping[str, Sequence[Scalar]]
    one: Mapping[str, str]
    many: Mapping[str, Mapping[str, str]]

    @property
    def references(self) -> list[tuple[str, str]]:
        """Every key that refers to a step, with that step."""
        collected = [(key, name) for key, found in self.many.items() for name in found.values()]
        return [*self.one.items(), *collected]
