"""Make the output of a stage, or its missing parts. All commands and recipes use this module.

A job is a stage whose inputs are open: it knows the plan and the place of its output, its progress,
and how to compute it. `make` returns a finished output as it is. Otherwise it takes the lease,
claims the place for the plan, records the work in the journal, computes and publishes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.journal import Journal
from pipeline.loop import Claim, Loop, n_units_done, run_loop
from pipeline.runner import RunReport, finished, refuse_failed, run_map
from pipeline.stage import Job, Made, Preview, Stage, State
from pipeline.terminal import counted
from pipeline.workspace import Workspace
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import DamagedError, FormatError
from store.failures import is_failed, refusal
from store.plan import Plan
from store.seal import size_mismatch
from store.shards import Shard, shards_of
from store.shardset import PLAN_KEY, ShardSet

if TYPE_CHECKING:
    from pipeline.executors import Executor
    from pipeline.work import ShardWork

Output = tuple[Mapping[str, bytes], Mapping[str, Any]]
"""The files of an artifact, and the facts of its card."""


def make(stage: Stage, workspace: Workspace, journal: Journal | None = None) -> Made:
    """Return the output of a stage, after computing what is missing of it.

    Args:
        stage: the stage whose output to make.
        workspace: where it runs.
        journal: journal of the run that this is part of. (default: a new run)

    Raises:
        ValueError, LookupError: an input does not exist or does not fit; nothing was written.
        PipelineError, StoreError: the work failed. Finished parts are kept, and a second call
            computes the rest.
    """
    job = stage.job(workspace)
    if journal is not None:
        return job.run(journal)
    with workspace.journal(stage.to_json()).outcome() as own_journal:
        return job.run(own_journal)


@dataclass(frozen=True)
class ArtifactJob:
    """A job whose output is an artifact.

    Attributes:
        title: what progress and the journal call the work.
        compute: returns the files and the facts of the card, or is a loop.
        check: raises if a new output must not be computed; not called for finished ones.
        make_parts: makes the artifacts that the output is computed from; see `pipeline.parts`.
        copy: copies files of the finished artifact out of the store, and returns where they are.
    """

    store: FeatureStore
    artifact: Artifact
    plan: Plan
    title: str
    preview: Preview
    compute: Callable[[], Output] | Loop
    check: Callable[[], object] = lambda: None
    make_parts: Callable[[Journal], object] | None = None
    copy: Callable[[Artifact], Sequence[Path]] = lambda _: ()

    @property
    def place(self) -> str:
        """Folder of the artifact, relative to the store."""
        return place_of(self.artifact)

    @property
    def output_name(self) -> str:
        """Name of the artifact."""
        return self.artifact.name

    @property
    def output(self) -> Artifact:
        """The artifact; it need not exist."""
        return self.artifact

    def progress(self) -> tuple[State, str]:
        """Progress of the artifact; raises ``FormatError`` if it is damaged."""
        state, detail = artifact_progress(self.artifact, self.plan)
        if state == State.PARTIAL and isinstance(self.compute, Loop):
            done = n_units_done(self.artifact)
            detail = f"{done} of {counted(self.compute.n_units, 'epoch')} of {self.artifact.name}"
        return state, detail

    def refuse(self) -> None:
        """Raise ``PlanMismatchError`` if the name is taken, or the error of ``check``."""
        if not (self.artifact.holds(self.plan) and self.artifact.is_complete()):
            self.check()

    def failure(self) -> None:
        """Return None: artifacts have no rows that fail."""

    def run(self, journal: Journal) -> Made:
        """Compute the artifact, or the units that are missing, unless it is finished.

        Raises:
            PlanMismatchError: the name is taken by another plan.
            LeaseError: another driver is computing it.
        """
        self.refuse()
        self._note_recomputed()
        report, claim = None, Claim(self.artifact, self.plan, self.store, self.title)
        if isinstance(self.compute, Loop):
            report = run_loop(self.compute, claim, journal)
        elif not claim.is_settled():
            self._run_once(self.compute, claim, journal)
        return Made(self, self.artifact, report, self.copy(self.artifact))

    def _note_recomputed(self) -> None:
        """Say on stderr if rows that a finished output was computed from were recomputed since."""
        artifact = self.artifact
        if artifact.is_complete() and (names := self.store.recomputed(artifact)):
            print(
                f"{artifact.kind} '{artifact.name}' is older than {', '.join(names)}: remove "
                f"{artifact.storage.location} to compute it again",
                file=sys.stderr,
            )

    def _run_once(self, compute: Callable[[], Output], claim: Claim, journal: Journal) -> None:
        artifact = self.artifact
        with claim.leased() as lease:
            if lease is not None:
                journal.begin()
                if self.make_parts is not None:
                    self.make_parts(journal)
                place = artifact.storage.location
                journal.note("work", title=self.title, place=place, unit="result", units=1)
                contents = self.store.contents_read(self.plan)
                files, facts = compute()
                staged = artifact.stage(files, {**facts, **contents})
                lease.check()
                artifact.publish(staged)


@dataclass(frozen=True)
class ShardJob:
    """A set of shards, each computed by a worker.

    Attributes:
        place: folder of the set, relative to the store or absolute.
        output_name: the name by which other stages refer to the set.
        title: name of the work in progress output and the journal.
        executor: runs the workers.
        find: returns the set, or None if it does not exist.
        create: creates or opens the set; nothing is written before.
        fit: fits the work to the memory of workers and to the disk, for a number of shards. Raises
            if it does not fit; returns a function from the created set to the work of a worker.
        check: raises if new shards cannot be computed; does not check memory and disk.
        needs: jobs whose outputs the workers need; they run after the set is created.
        opened: converts the set to the output of the stage.
        redo: returns the existing shards to be recomputed; None to compute only missing ones.
        accepts_failures: whether any number of rows may fail.
        copy: writes files from the finished output to a place outside the store, and returns where
            they are.
    """

    plan: Plan
    place: str
    output_name: str
    title: str
    preview: Preview
    executor: Executor
    find: Callable[[], ShardSet | None]
    create: Callable[[], ShardSet]
    fit: Callable[[int], Callable[[ShardSet], ShardWork]]
    check: Callable[[], object] = lambda: None
    needs: Sequence[Job] = ()
    opened: Callable[[ShardSet], Any] = lambda shard_set: shard_set  # Any: the kind of output
    redo: Callable[[ShardSet], Sequence[Shard]] | None = None
    accepts_failures: bool = False
    copy: Callable[[Any], Sequence[Path]] = lambda _: ()  # Any: the kind of output

    @property
    def output(self) -> Any:  # Any: the kind of output
        """The output; None if it does not exist."""
        existing = self.find()
        return None if existing is None else self.opened(existing)

    def progress(self) -> tuple[State, str]:
        """State of the set, and how many of its shards exist."""
        existing, name = self.find(), self.output_name
        if existing is None:
            return State.MISSING, f"to be made as {name}"
        n_all, n_left = len(existing.shards), len(existing.missing())
        if is_failed(existing):
            return State.PARTIAL, f"{name} has too many failed rows"
        if n_left == 0:
            return State.COMPLETE, name
        return State.PARTIAL, f"{n_all - n_left} of {counted(n_all, 'shard')} of {name}"

    def refuse(self) -> None:
        """Raise the errors of ``check`` if there are shards to compute."""
        existing = self.find()
        if existing is None or existing.missing() or self._redone(existing):
            self.check()

    def failure(self) -> Exception | None:
        """The error if too many rows failed, unless they are recomputed or accepted."""
        existing = None if self.redo or self.accepts_failures else self.find()
        return refusal(existing) if existing is not None and is_failed(existing) else None

    def run(self, journal: Journal) -> Made:
        """Compute the missing shards, and those of ``redo``; see `pipeline.runner.run_map`."""
        existing = self.find()
        redo = self._redone(existing)
        if existing is not None and existing.is_complete() and not redo:
            report = finished(existing, accepts_failures=self.accepts_failures)
            return self._made(existing, report)
        if existing is not None and self.redo is None and not self.accepts_failures:
            refuse_failed(existing)
        self.check()
        self.executor.check()
        n_shards = self._n_shards(existing) + len(redo)
        work_on = self.fit(max(1, n_shards))
        shard_set = self.create()
        for job in self.needs:
            job.run(journal)
        report = run_map(
            work_on(shard_set),
            shard_set,
            self.executor,
            journal,
            title=self.title,
            redo=redo,
            accepts_failures=self.accepts_failures,
        )
        return self._made(shard_set, report)

    def _made(self, shard_set: ShardSet, report: RunReport) -> Made:
        output = self.opened(shard_set)
        return Made(self, output, report, self.copy(output))

    def _redone(self, existing: ShardSet | None) -> Sequence[Shard]:
        """The existing shards to be recomputed."""
        return self.redo(existing) if self.redo and existing else ()

    def _n_shards(self, existing: ShardSet | None) -> int:
        """Number of missing shards."""
        if existing is not None:
            return len(existing.missing())
        return len(shards_of(self.plan["n_rows"], self.plan["shard_rows"]))


def place_of(artifact: Artifact) -> str:
    """Folder of an artifact, relative to its store."""
    return f"{artifact.kind}s/{artifact.name}"


def artifact_progress(artifact: Artifact, plan: Plan) -> tuple[State, str]:
    """State of the artifact of a plan. Only the sizes of its files are checked.

    Raises ``FormatError`` if it is damaged.
    """
    if damage := _damage(artifact):
        raise FormatError(
            f"{artifact.kind} '{artifact.name}' is damaged: {damage}; `intro-pipe verify` checks "
            f"every file; remove {artifact.storage.location} to recompute it"
        )
    if not artifact.holds(plan):
        return State.MISSING, f"to be made as {artifact.name}"
    if artifact.is_complete():
        return State.COMPLETE, artifact.name
    return State.PARTIAL, f"started as {artifact.name}"


def _damage(artifact: Artifact) -> str:
    """Damage that file sizes show; empty if the artifact is intact or missing."""
    storage, key = artifact.storage, PLAN_KEY
    try:
        if storage.size(key) is not None:
            artifact.plan()
        key = artifact.card_key
        digests = artifact.files() if artifact.is_complete() else {}
    except DamagedError:
        return f"{key} cannot be read"
    return size_mismatch(digests, storage.size)
