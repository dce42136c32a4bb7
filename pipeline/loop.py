"""Loops of ordered units that checkpoint: epochs of training, rounds of acquisition."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from pipeline.journal import Journal
from pipeline.memory import keep_freed_memory
from pipeline.progress import Progress
from pipeline.stage import Tick
from store.artifacts import CHECKPOINTS, Artifact
from store.catalog import FeatureStore
from store.errors import NotFoundError
from store.lease import Lease
from store.machine import Machine
from store.plan import Plan
from store.seal import sealed, unsealed
from store.storage import Storage, checksum


class LoopStage(Protocol):
    """A loop whose units run in order, each from the state the one before it left.

    Random numbers come from (seed, unit) alone, so a resumed loop equals an uninterrupted one.
    """

    @property
    def name(self) -> str:
        """What progress calls it."""

    @property
    def n_units(self) -> int:
        """How many units there are."""

    @property
    def unit_name(self) -> str:
        """What a unit is called: "epoch"."""

    @property
    def rows_per_unit(self) -> int:
        """Rows that a unit goes through, for progress."""

    def start(self) -> Any:  # Any: each stage has its own state
        """The state before the first unit, seeded."""

    def step(self, state: Any, unit: int, tick: Tick) -> dict[str, float]:
        """Run a unit in place; gives its metrics."""

    def save(self, state: Any) -> bytes:
        """Everything that the next unit needs."""

    def load(self, data: bytes) -> Any:
        """The inverse of ``save``."""

    def finish(self, state: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Files and facts of the artifact."""


History = list[dict[str, float]]
"""The metrics of each unit so far."""

Keep = Callable[[Any, History], None]  # Any: each stage has its own state
"""Keeps something of a state that is safe in its checkpoint; where it is there, does nothing."""


@dataclass(frozen=True, slots=True)
class LoopReport:
    """What a run of a loop came to."""

    card: dict[str, Any]
    history: History
    n_units_run: int
    seconds: float


def run_loop(
    stage: LoopStage,
    artifact: Artifact,
    plan: Plan,
    store: FeatureStore,
    journal: Journal,
    *,
    title: str,
    rows: str = "images",
    facts: Mapping[str, Any] | None = None,
    keep: Keep | None = None,
    stream: TextIO | None = None,
    machine: Machine | None = None,
) -> LoopReport:
    """Run the units that are missing, then write the artifact; a finished one is read, not made.

    ``rows`` is what progress calls them; ``facts`` go into the card beside the stage's own.
    ``keep`` is called after every checkpoint, and with the last one of a run that was killed.
    After a kill the loop goes on from its last checkpoint. Raises ``PlanMismatchError`` where the
    name holds an artifact of another plan, ``LeaseError`` where another driver is at work.
    """
    started = time.monotonic()
    is_begun = artifact.refuse_other(plan)
    if is_begun and artifact.is_settled():
        return _finished(artifact)
    keep_freed_memory()
    # What cannot start is refused before anything is written.
    fresh = None if is_begun else stage.start()
    store.prepare()
    artifact.claim(plan)
    with Lease(artifact.storage, purpose=title, machine=machine) as lease:
        if artifact.is_settled():  # another driver has finished it meanwhile
            return _finished(artifact)
        journal.begin()
        history, state = _last_checkpoint(stage, artifact.storage, fresh)
        first = len(history)
        left = stage.n_units - first
        place = artifact.storage.location
        journal.note("work", title=title, place=place, unit=stage.unit_name, units=left)
        if keep and history:
            keep(state, history)
        n_rows = stage.rows_per_unit * (stage.n_units - first)
        with Progress(title, n_rows, unit=rows, stream=stream) as progress:
            for unit in range(first, stage.n_units):
                history.append(_step(stage, state, unit, progress))
                _checkpoint(stage, artifact.storage, state, history, lease)
                if keep:
                    keep(state, history)
                journal.note(stage.unit_name, index=unit, **history[-1])
        files, found = stage.finish(state)
        staged = artifact.stage(files, {**(facts or {}), **found, "history": history})
        lease.check()
        card = artifact.publish(staged)
        _forget(artifact.storage, before=stage.n_units)
    return LoopReport(card, history, stage.n_units - first, time.monotonic() - started)


def _finished(artifact: Artifact) -> LoopReport:
    card = artifact.card()
    return LoopReport(card, card["history"], 0, 0.0)


def n_units_done(artifact: Artifact) -> int:
    """How many units a loop has behind it: those of its card, or of its last checkpoint."""
    if artifact.is_complete():
        return len(artifact.card()["history"])
    history, _ = next(_vouched_checkpoints(artifact.storage), ([], b""))
    return len(history)


def _step(stage: LoopStage, state: Any, unit: int, progress: Progress) -> dict[str, float]:
    started = time.monotonic()
    metrics = stage.step(state, unit, progress.advance)
    seconds = time.monotonic() - started
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    progress.remark(f"{stage.unit_name} {unit + 1}/{stage.n_units}: {shown}")
    return {**metrics, "seconds": round(seconds, 3)}


def _checkpoint(
    stage: LoopStage, storage: Storage, state: Any, history: History, lease: Lease
) -> None:
    """The state first, then the note that vouches for it; older ones are dropped after that."""
    unit = len(history) - 1
    data = stage.save(state)
    note = sealed({"history": history, "sha256": checksum(data)})
    files = {_state_key(unit): data, _note_key(unit): note}
    staged = storage.stage_all(files)
    lease.check()
    for key, name in staged.items():
        storage.publish(name, key)
    _forget(storage, before=unit)


def _last_checkpoint(stage: LoopStage, storage: Storage, fresh: Any) -> tuple[History, Any]:
    """The newest state that its note vouches for, else the fresh one, made where it is None."""
    storage.sync(CHECKPOINTS)  # who wrote the last one may have died before that
    for history, data in _vouched_checkpoints(storage):
        with suppress(ValueError, KeyError):  # as below
            return history, stage.load(data)
    return [], stage.start() if fresh is None else fresh


def _vouched_checkpoints(storage: Storage) -> Iterator[tuple[History, bytes]]:
    """The checkpoints that their notes vouch for, newest first."""
    notes = [key for key in storage.keys(CHECKPOINTS) if key.endswith(".json")]
    for key in reversed(notes):
        try:
            note = unsealed(storage.read(key))
            data = storage.read(_state_key(len(note["history"]) - 1))
            if checksum(data) == note["sha256"]:
                yield list(note["history"]), data
        except (ValueError, KeyError, TypeError, NotFoundError):
            continue  # an older checkpoint, or none, costs time but no correctness


def _forget(storage: Storage, *, before: int) -> None:
    """Remove the checkpoints of earlier units; never a later one, which another may have written.

    A driver that slept here does not know how far its successor is.
    """
    for key in storage.keys(CHECKPOINTS):
        if key < _state_key(before)[: -len(".safetensors")]:
            storage.remove(key)


def _state_key(unit: int) -> str:
    return f"{CHECKPOINTS}/{unit:05d}.safetensors"


def _note_key(unit: int) -> str:
    return f"{CHECKPOINTS}/{unit:05d}.json"
