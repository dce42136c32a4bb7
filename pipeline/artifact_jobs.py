"""A job that makes several artifacts, and first the shards that they are computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from pipeline.journal import Journal
from pipeline.make import ArtifactJob, ShardJob
from pipeline.progress import Progress
from pipeline.stage import Made, Preview, State
from pipeline.terminal import counted
from store.artifacts import Artifact
from store.plan import Plan


@dataclass(frozen=True)
class ArtifactJobs:
    """Results of one stage, each with a plan of its own; those that exist are not made again.

    Attributes:
        jobs: one for each result.
        needs: returns the shards that these results read, which are made first.
        check: raises if new results must not be made, beside the checks of the jobs.
        title: what progress counts; empty if the jobs report their own.
        notes: lines to print first.
    """

    jobs: Sequence[ArtifactJob]
    needs: Callable[[Sequence[ArtifactJob]], Sequence[ShardJob]] = lambda _: ()
    check: Callable[[], object] = lambda: None
    title: str = ""
    notes: Sequence[str] = ()

    @property
    def plan(self) -> Plan:
        """The plans of the results."""
        return {"results": [each.plan for each in self.jobs]}

    @property
    def place(self) -> str:
        """Folder of the results, relative to the store."""
        return "results"

    @property
    def output_name(self) -> str:
        """The names of the results."""
        return ", ".join(each.output_name for each in self.jobs)

    @property
    def output(self) -> list[Artifact]:
        """The results; they need not exist."""
        return [each.output for each in self.jobs]

    @property
    def preview(self) -> Preview:
        """Names of the sets to extract, and of the results."""
        names = [each.output_name for each in self._missing_shards()]
        lines = [f"extract {name}" for name in names]
        lines.append(f"make {counted(len(self.jobs), 'result')}, reading those that exist")
        facts = {"results": [each.name for each in self.output], "extract": names}
        return Preview("\nwould ".join(lines), facts, self.notes)

    def progress(self) -> tuple[State, str]:
        """How many of the results exist."""
        n_all, n_done = len(self.jobs), len(self.jobs) - len(self._missing())
        state = State.COMPLETE if n_done == n_all else State.PARTIAL if n_done else State.MISSING
        return state, f"{n_done} of {n_all} results"

    def refuse(self) -> None:
        """Raise the errors that forbid missing shards or results, if any are missing."""
        for each in self._missing_shards():
            each.refuse()
        if self._missing():
            self.check()

    def failure(self) -> None:
        """Return None: results have no rows that fail."""

    def run(self, journal: Journal) -> Made:
        """Make the missing shards, then the results; the report has what was made first."""
        self.refuse()
        first = [each.run(journal) for each in self._missing_shards()]
        progress = Progress(self.title, len(self.jobs), unit="results") if self.title else None
        with progress or nullcontext():
            for each in self.jobs:
                each.run(journal)
                if progress:
                    progress.advance(1)
        return Made(self, self.output, first)

    def _missing(self) -> list[ArtifactJob]:
        return [each for each in self.jobs if not each.output.is_complete()]

    def _missing_shards(self) -> list[ShardJob]:
        """The shards that missing results read, without duplicates."""
        needed = {each.output_name: each for each in self.needs(self._missing())}
        return [each for each in needed.values() if not is_stored(each)]


def is_stored(job: ShardJob) -> bool:
    """Whether the output of a job is complete."""
    existing = job.find()
    return existing is not None and existing.is_complete()
