"""Loops of ordered units that checkpoint: epochs of training, rounds of acquisition."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pipeline.errors import LoopFailedError
from pipeline.journal import Journal
from pipeline.memory import keep_freed_memory
from pipeline.progress import Progress
from pipeline.work import Tick
from store.artifacts import CHECKPOINTS, Artifact
from store.catalog import FeatureStore
from store.errors import DamagedError, NotFoundError
from store.lease import Lease
from store.machine import Machine
from store.plan import Plan
from store.seal import sealed, unsealed
from store.storage import Storage, checksum


class LoopStage(Protocol):
    """A loop whose units run in order, each starting from the state of the previous one.

    Random numbers come from (seed, unit) alone, so a resumed loop equals an uninterrupted one.
    """

    @property
    def n_units(self) -> int:
        """Number of units."""

    @property
    def unit_name(self) -> str:
        """Name of a unit, such as "epoch"."""

    @property
    def rows_per_unit(self) -> int:
        """Number of rows that a unit processes, for progress output."""

    def start(self) -> Any:  # Any: each stage has its own state
        """The seeded state before the first unit."""

    def step(self, state: Any, unit: int, tick: Tick) -> dict[str, float]:
        """Run a unit, which updates the state in place; returns its metrics."""

    def save(self, state: Any) -> bytes:
        """Everything that the next unit needs."""

    def load(self, data: bytes) -> Any:
        """The inverse of ``save``."""

    def finish(self, state: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Files and facts of the artifact."""


History = list[dict[str, float]]
"""The metrics of each unit so far."""

Keep = Callable[[Any, History], None]  # Any: each stage has its own state
"""Keeps something of a checkpointed state, such as a snapshot; a second call does nothing."""


@dataclass(frozen=True)
class Loop:
    """Work that runs in units and writes a checkpoint after each.

    Attributes:
        start: makes the stage; called only if the artifact is not finished.
        n_units: number of units.
        rows: name of the rows in progress output.
        facts: facts of the card, beside those of the stage.
        keep: returns a function that is called after every checkpoint, and with the last one of a
            run that was killed.
    """

    start: Callable[[], LoopStage]
    n_units: int
    rows: str = "images"
    facts: Mapping[str, Any] = field(default_factory=dict)
    keep: Callable[[], Keep] = lambda: lambda _state, _history: None


@dataclass(frozen=True)
class Claim:
    """An artifact, and what it is claimed for.

    Attributes:
        artifact: where the output is written.
        plan: everything that determines the output.
        store: the store of the artifact.
        title: name of the work in progress output, the journal and the lease.
        machine: replaces this machine in tests.
    """

    artifact: Artifact
    plan: Plan
    store: FeatureStore
    title: str
    machine: Machine | None = None

    def is_settled(self) -> bool:
        """Whether the artifact is finished; raises ``PlanMismatchError`` if it has another plan."""
        return self.artifact.holds(self.plan) and self.artifact.is_settled()

    @contextmanager
    def leased(self) -> Iterator[Lease | None]:
        """Claim the place of the artifact for the plan, and hold its lease inside the block.

        The lease is None if another driver has finished the artifact in the meantime.

        Raises:
            PlanMismatchError: the place holds another plan.
            LeaseError: another driver is computing the artifact.
        """
        self.store.prepare()
        self.artifact.claim(self.plan)
        with Lease(self.artifact.storage, purpose=self.title, machine=self.machine) as lease:
            self.artifact.holds(self.plan)  # another plan may have taken the place in the meantime
            yield None if self.artifact.is_settled() else lease


@dataclass(frozen=True, slots=True)
class LoopReport:
    """The result of a run of a loop."""

    card: dict[str, Any]
    history: History
    n_units_run: int
    seconds: float


def run_loop(loop: Loop, claim: Claim, journal: Journal) -> LoopReport:
    """Run the missing units, then write the artifact; returns at once if it is finished.

    A loop that was killed resumes from its last checkpoint.

    Args:
        loop: the loop.
        claim: the artifact.
        journal: of the run.

    Raises:
        PlanMismatchError: the name holds an artifact of another plan.
        LeaseError: another driver is running.
        LoopFailedError: a unit failed for good; another plan may use the name.
    """
    started = time.monotonic()
    with leased_loop(loop, claim) as leased:
        if leased is None:
            return LoopReport(claim.artifact.card(), history_of(claim.artifact), 0, 0.0)
        journal.begin()
        stage, n_left = leased.stage, leased.resume()
        place, unit = claim.artifact.storage.location, stage.unit_name
        journal.note("work", title=claim.title, place=place, unit=unit, units=n_left)
        n_rows = stage.rows_per_unit * n_left
        with Progress(claim.title, n_rows, unit=loop.rows) as progress:
            for index, metrics in leased.units(progress.advance):
                shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
                progress.remark(f"{unit} {index + 1}/{stage.n_units}: {shown}")
                journal.note(unit, index=index, **metrics)
        card = leased.publish()
    return LoopReport(card, leased.history, n_left, time.monotonic() - started)


@contextmanager
def leased_loop(loop: Loop, claim: Claim) -> Iterator[LeasedLoop | None]:
    """A loop that holds the lease of its artifact; None if the artifact is finished.

    Raises the errors of ``run_loop``. If a unit fails for good, the artifact is marked as failed.
    """
    is_begun = claim.artifact.holds(claim.plan)
    if is_begun and claim.artifact.is_settled():
        yield None
        return
    keep_freed_memory()
    loop = replace(loop, facts={**loop.facts, **claim.store.contents_read(claim.plan)})
    stage = loop.start()
    # A loop that cannot start fails here, before anything is written.
    fresh = None if is_begun else stage.start()
    with claim.leased() as lease:
        try:
            yield None if lease is None else LeasedLoop(loop, stage, fresh, claim.artifact, lease)
        except LoopFailedError as error:
            claim.artifact.mark_failed(claim.plan, str(error))
            raise


class LeasedLoop:
    """A loop that holds the lease of its artifact: first `resume`, then `units`, then `publish`."""

    def __init__(
        self,
        loop: Loop,
        stage: LoopStage,
        fresh: Any,  # Any: each stage has its own state
        artifact: Artifact,
        lease: Lease,
    ) -> None:
        self.stage = stage
        self.history: History = []
        self._loop = loop
        self._state = fresh
        self._artifact = artifact
        self._lease = lease
        self._keep = loop.keep()

    def resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the number of units that are left."""
        storage = self._artifact.storage
        self.history, self._state = _last_checkpoint(self.stage, storage, self._state)
        if self.history:
            self._keep(self._state, self.history)
        return self.stage.n_units - len(self.history)

    def units(self, tick: Tick) -> Iterator[tuple[int, dict[str, float]]]:
        """Run the units that are left; yields the index and the metrics of each.

        Before that, the state after the unit is written as a checkpoint.
        """
        for unit in range(len(self.history), self.stage.n_units):
            started = time.monotonic()
            metrics = self.stage.step(self._state, unit, tick)
            metrics = {**metrics, "seconds": round(time.monotonic() - started, 3)}
            self.history.append(metrics)
            data, storage = self.stage.save(self._state), self._artifact.storage
            _write_checkpoint(storage, data, self.history, self._lease)
            self._keep(self._state, self.history)
            yield unit, metrics

    def publish(self) -> dict[str, Any]:  # Any: JSON
        """Write the artifact and remove the checkpoints; returns the card."""
        files, found = self.stage.finish(self._state)
        facts = {**self._loop.facts, **found, "history": self.history}
        staged = self._artifact.stage(files, facts)
        self._lease.check()
        card = self._artifact.publish(staged)
        _remove_checkpoints(self._artifact.storage, before=self.stage.n_units)
        return card


def history_of(artifact: Artifact) -> History:
    """The metrics of each unit, from the card of a finished artifact; empty if it has no units.

    Raises ``DamagedError`` if they are not in our format.
    """
    history = artifact.card().get("history", [])
    if not isinstance(history, list) or not all(map(_are_metrics, history)):
        raise DamagedError(
            f"card of {artifact.kind} '{artifact.name}': history: expected names and numbers"
        )
    return history


def _are_metrics(unit: object) -> bool:
    return isinstance(unit, dict) and all(isinstance(each, int | float) for each in unit.values())


def n_units_done(artifact: Artifact) -> int:
    """Number of finished units, according to the card or the last checkpoint."""
    if artifact.is_complete():
        return len(history_of(artifact))
    history, _ = next(_intact_checkpoints(artifact.storage), ([], b""))
    return len(history)


def _write_checkpoint(storage: Storage, data: bytes, history: History, lease: Lease) -> None:
    """Write the state, then the note with its checksum, then remove older checkpoints."""
    unit = len(history) - 1
    note = sealed({"history": history, "sha256": checksum(data)})
    staged = storage.stage_all({_state_key(unit): data, _note_key(unit): note})
    lease.check()
    for key, name in staged.items():
        storage.publish(name, key)
    _remove_checkpoints(storage, before=unit)


def _last_checkpoint(stage: LoopStage, storage: Storage, fresh: Any) -> tuple[History, Any]:
    """The newest intact state, else ``fresh``, or a new state if that is None."""
    storage.sync(CHECKPOINTS)  # the process that wrote the last one may have crashed before syncing
    for history, data in _intact_checkpoints(storage):
        with suppress(ValueError, KeyError):  # try an older checkpoint, as below
            return history, stage.load(data)
    return [], stage.start() if fresh is None else fresh


def _intact_checkpoints(storage: Storage) -> Iterator[tuple[History, bytes]]:
    """The checkpoints whose checksums match their notes, newest first."""
    notes = [key for key in storage.keys(CHECKPOINTS) if key.endswith(".json")]
    for key in reversed(notes):
        try:
            note = unsealed(storage.read(key))
            data = storage.read(_state_key(len(note["history"]) - 1))
            if checksum(data) == note["sha256"]:
                yield list(note["history"]), data
        except (ValueError, KeyError, TypeError, NotFoundError):
            continue  # an older checkpoint, or none, costs time but no correctness


def _remove_checkpoints(storage: Storage, *, before: int) -> None:
    """Remove the checkpoints of earlier units.

    Later ones are kept: if this driver was suspended, another may have written them.
    """
    for key in storage.keys(CHECKPOINTS):
        if key < _state_key(before)[: -len(".safetensors")]:
            storage.remove(key)


def _state_key(unit: int) -> str:
    return f"{CHECKPOINTS}/{unit:05d}.safetensors"


def _note_key(unit: int) -> str:
    return f"{CHECKPOINTS}/{unit:05d}.json"
