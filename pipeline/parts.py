"""The parts of an artifact: loops that workers run in parallel, each an artifact of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.attempts import Attempts
from pipeline.executors import Executor
from pipeline.journal import Journal
from pipeline.loop import Claim, Loop, leased_loop, n_units_done
from pipeline.progress import Progress
from pipeline.work import Clock, Task, Tick

KIND = "run"
"""Name of a part in progress output and in the journal."""


@dataclass(frozen=True, slots=True)
class Part:
    """The loop of a part. Progress counts its units.

    Attributes:
        index: its number among the parts.
        n_rows: number of units that were left when the driver started.
    """

    index: int
    n_rows: int


@dataclass(frozen=True)
class Parts:
    """The work on the parts; a part that was killed resumes from its last checkpoint.

    Attributes:
        loops: the artifacts and their loops.
        units: name of the loops' units in the plural.
        set_up: called in each worker before its first part, with the number of its threads; checks
            the inputs.
    """

    loops: tuple[tuple[Claim, Loop], ...]
    units: str
    set_up: Callable[[int], object]

    def setup(self, n_threads: int) -> None:
        """Check the inputs; nothing is kept from one part to the next."""
        self.set_up(n_threads)

    def compute(self, state: None, part: Part, tick: Tick, clock: Clock) -> None:  # noqa: ARG002 - there is no state
        """Run the units of a part that are left, and publish its artifact."""
        claim, loop = self.loops[part.index]
        with leased_loop(loop, claim) as leased:
            if leased is not None:
                leased.resume()
                for _ in leased.units(lambda _: tick(0)):
                    tick(1)
                leased.publish()
        clock.note("compute")


def make_parts(
    parts: Parts, executor: Executor, journal: Journal, *, title: str, place: str
) -> None:
    """Make the parts that are not finished.

    Args:
        parts: the parts.
        executor: runs the workers.
        journal: of the run; it has begun.
        title: name of the work in progress output and the journal.
        place: location of the artifact that the parts are made for.

    Raises:
        RunFailedError: some parts failed on their last attempt; the others are finished.
    """
    todo = deque[Task](
        Part(index, loop.n_units - n_units_done(claim.artifact))
        for index, (claim, loop) in enumerate(parts.loops)
        if not claim.is_settled()
    )
    if not todo:
        return
    journal.note("work", title=title, place=place, unit=KIND, units=len(todo))
    n_units = sum(part.n_rows for part in todo)
    with Progress(title, n_units, unit=parts.units, task=KIND) as progress:
        attempts = Attempts(journal, progress, todo)
        for outcome in executor.run(parts, todo, attempts.watch):
            attempts.end(outcome)
    attempts.check(len(parts.loops))
