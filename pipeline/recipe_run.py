"""The job of a recipe: reports the state of each step and computes the missing ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipeline.errors import LoopFailedError, RecipeError, RunFailedError
from pipeline.journal import Journal
from pipeline.progress import duration
from pipeline.recipe import Recipe
from pipeline.stage import Job, Made, Preview, State
from pipeline.steps import Collected, Inputs, Instance
from pipeline.terminal import printable
from pipeline.workspace import Workspace
from store.errors import NotFoundError
from store.plan import Plan, differences, read_object, readable_json
from store.shardset import PLAN_KEY

FOLDER = "recipes"
"""Folder of the store that records the last outputs of each recipe; no result depends on it."""

N_DIFFERENCES = 3


@dataclass(frozen=True)
class Status:
    """State of a step.

    ``job`` is set if its inputs exist; ``problem`` says why the step cannot be planned.
    """

    instance: Instance
    state: State
    detail: str
    job: Job | None = None
    problem: ValueError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the output is complete."""
        return self.state == State.COMPLETE

    def to_dict(self) -> dict[str, str]:
        """Name, stage, state and its description."""
        kind = self.instance.kind.name
        names = {"step": self.instance.label, "stage": kind}
        return {**names, "state": str(self.state), "detail": self.detail}


@dataclass(frozen=True)
class RecipeReport:
    """The result of a run of a recipe."""

    statuses: tuple[Status, ...]
    n_made: int
    seconds: float


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)


@dataclass
class RecipeJob:
    """A recipe in a workspace; ``say`` is called with a line about every step that is computed."""

    recipe: Recipe
    workspace: Workspace
    say: Callable[[str], object] = _say
    _done: dict[str, Status] = field(default_factory=dict)
    _made: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workspace = replace(self.workspace, recipe=self.recipe)
        self._made = self._record()

    @property
    def plan(self) -> Plan:
        """The stage of each step."""
        return {each.label: each.stage.to_json() for each in self.recipe.instances}

    @property
    def place(self) -> str:
        """The record of its outputs, relative to the store."""
        return f"{FOLDER}/{self.recipe.name}.json"

    @property
    def output_name(self) -> str:
        """Name of the recipe."""
        return self.recipe.name

    @property
    def output(self) -> Any:  # Any: each kind of job has its own
        """The output of the last step, which may not exist yet."""
        last = self._done[self.statuses[-1].instance.label]
        return last.job and last.job.output

    @property
    def preview(self) -> Preview:
        """The missing steps."""
        rows = [each.to_dict() for each in self.statuses if not each.is_complete]
        lines = [f"{row['step']}: {row['stage']}, {row['detail']}" for row in rows]
        text = f"compute {len(rows)} of {len(self.statuses)} steps of {self.recipe.name}"
        facts = {"recipe": self.recipe.name, "parameters": self.recipe.parameters, "steps": rows}
        return Preview("\n".join([text, *lines]), facts)

    @cached_property
    def statuses(self) -> tuple[Status, ...]:
        """The status of each step before the run, in order; nothing is written."""
        for instance in self.recipe.instances:
            self._done[instance.label] = self._status(instance)
        return tuple(self._done.values())

    def progress(self) -> tuple[State, str]:
        """Whether all steps are complete, and how many are."""
        n_all = len(self.statuses)
        n_done = sum(each.is_complete for each in self._done.values())
        state = State.COMPLETE if n_done == n_all else State.PARTIAL
        return state, f"{n_done} of {n_all} steps of {self.recipe.name}"

    def refuse(self) -> None:
        """Raise ``RecipeError`` if a missing step names something that does not exist."""
        stages = {each.label: each.stage for each in self.recipe.instances}
        for status in self.statuses:
            instance = status.instance
            needs = {key: stages[need] for key, need in instance.one.items()}
            try:
                if status.problem is not None:
                    raise status.problem
                if not status.is_complete:
                    instance.stage.check(self.workspace, needs)
            except ValueError as error:
                raise RecipeError(f"{instance.where}: step {instance.label}: {error}") from error

    def failure(self) -> None:
        """Return None: a step whose rows failed is not complete."""

    def run(self, journal: Journal) -> Made:
        """Compute the missing steps in order; a second call resumes.

        Raises:
            RecipeError: something that a step names does not exist; nothing was written.
            Exception: raised by a step; finished steps are kept.
        """
        started = time.monotonic()
        self.refuse()
        n_all = len(self.statuses)
        n_left = sum(not status.is_complete for status in self.statuses)
        self.say(f"{self.recipe.name}: {n_all} steps: {n_all - n_left} cached, {n_left} to compute")
        for number, status in enumerate(self.statuses, start=1):
            if not status.is_complete:
                self._make(status.instance, f"[{number}/{n_all}]", journal)
            self._remember(status.instance.label)
        seconds = time.monotonic() - started
        return Made(self, self.output, RecipeReport(tuple(self._done.values()), n_left, seconds))

    def _make(self, instance: Instance, number: str, journal: Journal) -> None:
        """Run one step, and check that its output is complete."""
        started, title = time.monotonic(), f"{number} {instance.label}"
        try:
            status = self._run(self._status(instance), title, journal)
        except Exception as error:
            if is_begun := journal.is_begun():
                self.say(f"{title} failed; finished work is kept: {_way_on(error)}")
            # A refusal after other work was done is not a mistake in the command: allow resuming.
            if isinstance(error, ValueError) and type(error) is not ValueError and is_begun:
                raise RunFailedError(f"step {instance.label}: {error}") from error
            raise
        self._done[instance.label] = status
        seconds = time.monotonic() - started
        self.say(f"{title}: {status.detail}, {duration(seconds)}")
        if journal.is_begun():
            journal.note("step", name=instance.label, seconds=round(seconds, 3))

    def _run(self, status: Status, title: str, journal: Journal) -> Status:
        """Run the job of a step unless another run has completed it; returns the new status."""
        if status.problem is not None:
            raise status.problem
        if status.job is not None and not status.is_complete:
            is_stale = status.state == State.STALE
            why = "to be recomputed" if is_stale else status.detail
            self.say(f"{title}: {status.instance.kind.name}, {why}")
            status.job.run(journal)
            state, detail = status.job.progress()
            status = replace(status, state=state, detail=detail)
        if not status.is_complete:
            raise RunFailedError(f"the step ended without a complete output: {status.detail}")
        return status

    def _status(self, instance: Instance) -> Status:
        waits = [need for need in instance.needs if not self._done[need].is_complete]
        if waits:
            return self._waiting(instance, waits)
        try:
            job = instance.kind.job(self.workspace, instance.stage, self._inputs(instance))
            state, detail = job.progress()
        except ValueError as error:  # an input does not exist or does not fit
            return Status(instance, State.MISSING, str(error), problem=error)
        if state == State.MISSING and (why := self._why_stale(instance.label, job.plan)):
            return Status(instance, State.STALE, why, job)
        return Status(instance, state, detail, job)

    def _waiting(self, instance: Instance, waits: list[str]) -> Status:
        """The status of a step with incomplete inputs; stale if one of them is stale."""
        stale = [need for need in waits if self._done[need].state == State.STALE]
        if stale and instance.label in self._made:
            return Status(instance, State.STALE, f"waits for {stale[0]}, which is stale")
        return Status(instance, State.MISSING, f"waits for {waits[0]}")

    def _inputs(self, instance: Instance) -> Inputs:
        one = {key: self._job(need).output_name for key, need in instance.one.items()}
        many = {
            key: tuple(
                Collected(label, self._done[need].instance.axes, self._job(need).output_name)
                for label, need in found
            )
            for key, found in instance.many.items()
        }
        return {**one, **many}

    def _job(self, label: str) -> Job:
        job = self._done[label].job
        assert job is not None  # it is complete
        return job

    def _why_stale(self, label: str, plan: Plan) -> str:
        """How the plan of the step's last output differs from ``plan``; empty if it does not."""
        place = self._made.get(label)
        try:
            storage = self.workspace.store.storage
            last = read_object(storage.child(place).read(PLAN_KEY)) if place else plan
            found = list(differences(plan, last))
        except (NotFoundError, ValueError):
            return ""
        more = f" and {len(found) - N_DIFFERENCES} more" if len(found) > N_DIFFERENCES else ""
        return f"{place} differs: {'; '.join(found[:N_DIFFERENCES])}{more}" if found else ""

    def _remember(self, label: str) -> None:
        """Record the place of a step's output, so that a later status can report what changed."""
        job = self._done[label].job
        if job is not None and self._made.get(label) != job.place:
            self._made[label] = job.place
            self.workspace.store.storage.write(self.place, readable_json(self._made))

    def _record(self) -> dict[str, str]:
        """Place of the last output by step; empty if there is no readable record."""
        try:
            found = read_object(self.workspace.store.storage.read(self.place))
        except (NotFoundError, ValueError):
            return {}
        return {step: place for step, place in found.items() if isinstance(place, str)}


def _way_on(error: Exception) -> str:
    """How to continue after a step failed."""
    if isinstance(error, LoopFailedError):
        return "the step would fail again, so change its settings and run the recipe again"
    return "continue with `intro-pipe resume`"
