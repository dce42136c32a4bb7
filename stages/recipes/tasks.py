"""What the tasks of all kinds have in common: how far an artifact or a set of shards is."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.journal import Journal
from pipeline.loop import n_units_done
from pipeline.recipe_run import State, Task
from stages.errors import InputError
from store.artifacts import Artifact
from store.errors import DamagedError
from store.plan import Plan
from store.shardset import PLAN_KEY, ShardSet


def task_of(
    artifact: Artifact,
    plan: Plan,
    run: Callable[[Journal], object],
    *,
    n_epochs: int = 0,
) -> Task:
    """The task of making an artifact; ``n_epochs`` where it is made by a loop of epochs.

    Raises ``InputError`` where it is there and damaged. Of its files only the sizes are looked at.
    """
    place = f"{artifact.kind}s/{artifact.name}"
    if damage := _damage(artifact):
        raise InputError(
            f"{artifact.kind} '{artifact.name}' is damaged: {damage}; `intro-pipe verify` looks at "
            f"every byte; remove {artifact.storage.location} to have it made again"
        )
    if not artifact.refuse_other(plan):
        state, detail = State.MISSING, f"to be made as {artifact.name}"
    elif artifact.is_complete():
        state, detail = State.COMPLETE, artifact.name
    else:
        state, detail = State.PARTIAL, f"begun as {artifact.name}"
        if n_epochs:
            detail = f"{n_units_done(artifact)} of {n_epochs} epochs of {artifact.name}"
    return Task(plan, place, state, detail, artifact, run)


def _damage(artifact: Artifact) -> str:
    """What is wrong with an artifact at first sight; empty for one that is whole, or not there."""
    storage, key = artifact.storage, PLAN_KEY
    try:
        if storage.size(key) is not None:
            artifact.plan()
        key = artifact.card_key
        vouched = artifact.card()["files"] if artifact.is_complete() else {}
    except DamagedError:
        return f"{key} cannot be read"
    for file, facts in vouched.items():
        if (size := storage.size(file)) != facts["bytes"]:
            found = "is not there" if size is None else f"has {size:,} bytes"
            return f"{file} {found}, expected {facts['bytes']:,} bytes"
    return ""


def shards_of(there: ShardSet | None, name: str) -> tuple[State, str]:
    """How far a set of shards is that is, or will be, called ``name``."""
    if there is None:
        return State.MISSING, f"to be made as {name}"
    n_all, n_left = len(there.shards), len(there.missing())
    if n_left == 0:
        return State.COMPLETE, name
    return State.PARTIAL, f"{n_all - n_left} of {n_all} shards of {name}"
