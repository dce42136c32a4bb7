"""Stages: the options of a verb, and the job that they describe.

A `Stage` describes what to compute. Its ``job`` opens the inputs and plans the output;
`pipeline.make` has the kinds of jobs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Strict, model_validator

from pipeline.fields import Place, mark_of
from store.plan import Plan

if TYPE_CHECKING:
    from pipeline.journal import Journal
    from pipeline.workspace import Workspace

T = TypeVar("T")
Several = Annotated[tuple[T, ...], Strict(False)]
"""A list of values, for a field of a stage; the type of each item is checked strictly."""


def _without_repetitions(values: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))


Distinct = Annotated[tuple[T, ...], Strict(False), AfterValidator(_without_repetitions)]
"""As `Several`, where a value that is given twice counts once."""


class State(StrEnum):
    """State of an output.

    partial: started. stale: missing, but the same step of a recipe has made one with another plan.
    """

    COMPLETE = "complete"
    PARTIAL = "partial"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True)
class Preview:
    """What a job would do, for people and for machines, and notes on its inputs.

    Attributes:
        text: printed after "would", such as "train head net-h on 1,000 rows".
        facts: the same for machines.
        notes: lines to print before the job runs.
    """

    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


NO_PREVIEW = Preview("")


@dataclass(frozen=True)
class Made:
    """The output of a job.

    Attributes:
        job: the job that made it.
        output: the artifact, the feature set or the folder.
        report: what this run has done; None if the job is one call.
        copied: files that were copied out of the store.
    """

    job: Job
    output: Any  # Any: each kind of job has its own
    report: Any = None  # Any: each kind of job has its own
    copied: Sequence[Path] = ()

    @property
    def name(self) -> str:
        """The name by which other stages refer to the output."""
        return self.job.output_name

    @property
    def n_units_run(self) -> int:
        """Number of units of a loop that this run computed."""
        return getattr(self.report, "n_units_run", 0)


class Job(Protocol):
    """A stage whose inputs are open."""

    @property
    def plan(self) -> Plan:
        """Everything that determines the output."""

    @property
    def place(self) -> str:
        """Folder of the output: relative to the store, or absolute."""

    @property
    def output_name(self) -> str:
        """The name by which other stages refer to the output."""

    @property
    def output(self) -> Any:  # Any: each kind of job has its own
        """The output, which may not exist yet."""

    @property
    def preview(self) -> Preview:
        """What the job would do."""

    def progress(self) -> tuple[State, str]:
        """State of the output, and its description. Raises ``ValueError`` if it is damaged."""

    def refuse(self) -> None:
        """Raise the errors that `run` would raise before it writes anything."""

    def failure(self) -> Exception | None:
        """Why the existing output does not count as complete, if too many of its rows failed."""

    def run(self, journal: Journal) -> Made:
        """Compute the missing parts of the output; a finished one is returned as it is."""


def stage_name(plan: Plan) -> str:
    """Name of the stage that a plan belongs to; empty if it does not say."""
    stage = plan.get("stage")
    return str(stage.get("name", "")) if isinstance(stage, Mapping) else ""


OLD_NAMES = {"batch": "batch_size"}


class Stage(BaseModel):
    """The options of a verb.

    Each field is an option. Its type, default, bounds and description are written once, here; the
    command line, the keys of a recipe step and the journal follow from it. Values are of the
    declared type, and unknown fields are refused.

    Attributes:
        verb: name of the command, and of the stage in recipes.
        makes: kind of the output, to which the fields of other stages refer (`pipeline.fields`).
        runs_with: the fields of `pipeline.workspace.Execution` that the verb uses.
        is_step: whether recipes can have it as a step.
        examples: command lines, without the name of the program.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    verb: ClassVar[str]
    makes: ClassVar[str]
    runs_with: ClassVar[tuple[str, ...]] = ()
    is_step: ClassVar[bool] = True
    examples: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _with_old_names(cls, values: Any) -> Any:  # Any: fields, or a value that is refused later
        """Recipes of version 0.4 and earlier have other names for a few fields."""
        if not isinstance(values, dict):
            return values
        renamed = {
            old: new
            for old, new in OLD_NAMES.items()
            if old not in cls.model_fields and new in cls.model_fields and new not in values
        }
        return {renamed.get(key, key): value for key, value in values.items()}

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """The verb, as ``stage``, and every field; the class of the verb can read it back."""
        return {"stage": self.verb, **self.model_dump(mode="json")}

    def networks(self) -> list[str]:
        """The networks that the fields name; they may be code."""
        fields = type(self).model_fields.items()
        named = [name for name, field in fields if mark_of(field, Place) is Place.NETWORK]
        return [network for name in named if (network := getattr(self, name))]

    def check_given(self, options: Collection[str]) -> None:
        """Raise ``ValueError`` if a given option has no effect beside the others.

        ``options`` are fields of the stage, and of `pipeline.workspace.Execution`.
        """

    def check(self, workspace: Workspace, needs: Mapping[str, Stage]) -> None:
        """Raise ``ValueError`` if something that the fields name does not exist.

        A recipe calls this for every stage before the first one runs. ``needs`` maps a field to the
        stage whose output it names; the output need not exist yet.
        """

    @abstractmethod
    def job(self, workspace: Workspace) -> Job:
        """Open the inputs and plan the output. Nothing is written.

        Raises:
            ValueError, LookupError: an input does not exist or does not fit.
        """
