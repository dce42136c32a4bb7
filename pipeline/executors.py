"""The interface of executors, which decide where workers run, and the local executor."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.cpus import n_cpus
from pipeline.memory import check_fit, for_workers
from pipeline.terminal import counted
from pipeline.work import Task, Work
from pipeline.worker import Outcome, Pace, Worker

LOADING = "loading network and images"
"""The phase before the first row."""


class Watch(Protocol):
    """Called from time to time with the progress of each busy lane."""

    def __call__(self, paces: Sequence[Pace], phase: str = "") -> None:
        """``phase`` says what the workers are doing before their first row."""


class Executor(Protocol):
    """Runs the tasks of some work and yields one outcome per task, in order of completion."""

    @property
    def description(self) -> str:
        """What runs where, for messages."""

    def check(self) -> None:
        """Raise ``ResourceError`` if the requested resources are missing; nothing is written."""

    def worker_memory(self, n_tasks: int) -> int:
        """Memory in bytes that each worker may use if ``n_tasks`` are to be computed."""

    def run(self, work: Work, todo: deque[Task], watch: Watch) -> Iterator[Outcome]:
        """Take tasks from ``todo`` until it is empty, and yield one outcome for each.

        Between two outcomes the caller may append tasks, such as those to retry.
        """


@dataclass(frozen=True)
class LocalExecutor:
    """Runs tasks one after another in this process, with all CPUs that it may use."""

    n_threads: int = field(default_factory=n_cpus)
    memory_bytes: int | None = field(default=None, kw_only=True)

    @property
    def description(self) -> str:
        """What runs where, for messages."""
        return f"this process, {counted(self.n_threads, 'thread')}"

    def check(self) -> None:
        """Raise ``ResourceError`` if this machine lacks the requested memory."""
        check_fit(1, self.memory_bytes, [for_workers()], "this machine")

    def worker_memory(self, n_tasks: int) -> int:  # noqa: ARG002 - always one worker
        """The requested memory, or the free memory of this machine less a reserve."""
        return self.memory_bytes or for_workers()

    def run(self, work: Work, todo: deque[Task], watch: Watch) -> Iterator[Outcome]:
        """Compute one task after another."""
        watch([], LOADING)
        worker = _Watched(work, 0, self.n_threads, watch)
        while todo:
            yield worker.run(todo.popleft())


class _Watched(Worker):
    """A worker that reports its own progress, since no driver polls it."""

    def __init__(self, work: Work, lane: int, n_threads: int, watch: Watch) -> None:
        super().__init__(work, lane, n_threads)
        self._watch = watch

    def _tick(self, n_rows: int) -> None:
        super()._tick(n_rows)
        if (pace := self.pace()) is not None:
            self._watch([pace])
