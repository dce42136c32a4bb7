"""Running a recipe: how far each of its steps is, and making what is not there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.errors import RecipeError, RunFailedError
from pipeline.journal import Journal
from pipeline.progress import duration
from pipeline.recipe import Recipe
from pipeline.steps import Axes, Instance
from store.catalog import FeatureStore
from store.errors import NotFoundError
from store.plan import Plan, differences, read_object, readable_json
from store.shardset import PLAN_KEY

FOLDER = "recipes"
"""Where a store keeps what each recipe made last: a note for people, no result depends on it."""

N_DIFFERENCES = 3


class State(StrEnum):
    """How far a step is.

    partial: begun. stale: not there, but the same step has made something with another plan.
    """

    COMPLETE = "complete"
    PARTIAL = "partial"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True)
class Task:
    """A step whose inputs are there: what it makes, how far that is, and how to make it.

    Attributes:
        plan: everything that determines it.
        place: its folder, relative to the store, or absolute.
        state: complete, partial or missing.
        detail: the same in words, for people.
        output: what steps that refer to this one are given.
        run: makes it, or what is missing of it.
    """

    plan: Plan
    place: str
    state: State
    detail: str
    output: Any  # Any: each kind of step has its own
    run: Callable[[Journal], object]


@dataclass(frozen=True)
class Collected:
    """One of the steps that a key collects."""

    label: str
    axes: Axes
    output: Any  # Any: each kind of step has its own


@dataclass(frozen=True)
class Status:
    """How far an instance is.

    ``task`` is there when its inputs are; ``problem`` says why there can be none.
    """

    instance: Instance
    state: State
    detail: str
    task: Task | None = None
    problem: ValueError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.state == State.COMPLETE


@dataclass(frozen=True)
class RecipeReport:
    """What a run of a recipe came to."""

    statuses: tuple[Status, ...]
    n_made: int
    seconds: float


@dataclass
class RecipeRun:
    """A recipe in a store.

    Attributes:
        context: what kinds of steps are given: where data lies, what to compute on.
    """

    recipe: Recipe
    store: FeatureStore
    context: Any  # Any: the kinds' own
    _done: dict[str, Status] = field(default_factory=dict)
    _made: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._made = _record(self.store, self.recipe.name)

    def statuses(self) -> Iterator[Status]:
        """How far each instance is, in order; nothing is written."""
        for instance in self.recipe.instances:
            self._done[instance.label] = status = self._status(instance)
            yield status

    def run(self, journal: Journal, say: Callable[[str], object]) -> RecipeReport:
        """Make what is missing, in order; the same again goes on.

        ``say`` is told of every step that is made.

        Raises:
            RecipeError: something that a step names is not there; nothing was written.
            Exception: what a step raised; what was finished before is kept.
        """
        started = time.monotonic()
        statuses = list(self.statuses())
        left = [status for status in statuses if not status.is_complete]
        self._check(left)
        n_all, n_left = len(statuses), len(left)
        say(f"{self.recipe.name}: {n_all - n_left} of {n_all} steps are there, {n_left} to make")
        for number, status in enumerate(statuses, start=1):
            if not status.is_complete:
                self._make(status.instance, f"[{number}/{n_all}]", journal, say)
            self._remember(status.instance.label)
        return RecipeReport(tuple(self._done.values()), n_left, time.monotonic() - started)

    def _check(self, statuses: list[Status]) -> None:
        """Raise ``RecipeError`` where what the steps name is not there."""
        params = {each.label: each.params for each in self.recipe.instances}
        for status in statuses:
            instance = status.instance
            needs = {key: params[need] for key, need in instance.one.items()}
            try:
                if status.problem is not None:
                    raise status.problem
                instance.kind.check(self.context, instance.params, needs)
            except ValueError as error:
                raise RecipeError(f"{instance.where}: step {instance.label}: {error}") from error

    def _make(
        self, instance: Instance, number: str, journal: Journal, say: Callable[[str], object]
    ) -> None:
        """Run one step, and make sure that it is there then."""
        started, title = time.monotonic(), f"{number} {instance.label}"
        try:
            status = self._status(instance)
            if status.problem is not None:
                raise status.problem
            if status.task is not None and not status.is_complete:  # another run may have made it
                is_stale = status.state == State.STALE
                why = "to be made again" if is_stale else status.detail
                say(f"{title}: {instance.kind.name}, {why}")
                status.task.run(journal)
                status = self._status(instance)
            if not status.is_complete:
                raise RunFailedError(f"it has ended and is not there: {status.detail}")
        except Exception as error:
            if is_begun := journal.is_begun():
                say(f"{title} failed; what was finished is kept: `intro-pipe resume` goes on")
            # What is refused after other work was done is no slip in the command: it is resumed.
            if isinstance(error, ValueError) and type(error) is not ValueError and is_begun:
                raise RunFailedError(f"step {instance.label}: {error}") from error
            raise
        self._done[instance.label] = status
        seconds = time.monotonic() - started
        say(f"{title}: {status.detail}, {duration(seconds)}")
        if journal.is_begun():
            journal.note("step", name=instance.label, seconds=round(seconds, 3))

    def _status(self, instance: Instance) -> Status:
        waits = [need for need in instance.needs if not self._done[need].is_complete]
        if waits:
            return self._waiting(instance, waits)
        try:
            task: Task = instance.kind.task(self.context, instance.params, self._inputs(instance))
        except ValueError as error:  # what it names is not there, or does not fit
            return Status(instance, State.MISSING, str(error), problem=error)
        if task.state == State.MISSING and (why := self._why_stale(instance.label, task.plan)):
            return Status(instance, State.STALE, why, task)
        return Status(instance, task.state, task.detail, task)

    def _waiting(self, instance: Instance, waits: list[str]) -> Status:
        """A step whose inputs are not there; it is stale where one of them is."""
        stale = [need for need in waits if self._done[need].state == State.STALE]
        if stale and instance.label in self._made:
            return Status(instance, State.STALE, f"waits for {stale[0]}, which is stale")
        return Status(instance, State.MISSING, f"waits for {waits[0]}")

    def _inputs(self, instance: Instance) -> dict[str, Any]:
        """What the steps that an instance refers to have made, by key."""
        one = {key: self._output(need) for key, need in instance.one.items()}
        many = {
            key: tuple(
                Collected(label, self._done[need].instance.axes, self._output(need))
                for label, need in found
            )
            for key, found in instance.many.items()
        }
        return {**one, **many}

    def _output(self, label: str) -> Any:
        task = self._done[label].task
        assert task is not None  # it is complete
        return task.output

    def _why_stale(self, label: str, plan: Plan) -> str:
        """How what this step made last differs from what it is to make; empty if it does not."""
        place = self._made.get(label)
        try:
            there = read_object(self.store.storage.child(place).read(PLAN_KEY)) if place else plan
            found = list(differences(plan, there))
        except (NotFoundError, ValueError):
            return ""
        more = f" and {len(found) - N_DIFFERENCES} more" if len(found) > N_DIFFERENCES else ""
        return f"{place} differs: {'; '.join(found[:N_DIFFERENCES])}{more}" if found else ""

    def _remember(self, label: str) -> None:
        """Keep where a step's output lies, so that a changed recipe can say what changed."""
        task = self._done[label].task
        if task is not None and self._made.get(label) != task.place:
            self._made[label] = task.place
            self.store.storage.write(_record_key(self.recipe.name), readable_json(self._made))


def _record_key(name: str) -> str:
    return f"{FOLDER}/{name}.json"


def _record(store: FeatureStore, name: str) -> dict[str, str]:
    """Step -> where what it made last lies; empty where there is no record, or no longer one."""
    try:
        found = read_object(store.storage.read(_record_key(name)))
        return {step: place for step, place in found.items() if isinstance(place, str)}
    except (NotFoundError, ValueError):
        return {}
