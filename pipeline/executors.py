"""Where workers run: what an executor is, and the one of this process."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.memory import check_fit, for_workers
from pipeline.worker import Outcome, Pace, Work, Worker
from store.shards import Shard

Watch = Callable[[Sequence[Pace]], None]
"""Told now and then how far each busy lane is."""


class Executor(Protocol):
    """Runs shards of some work and yields an outcome for each, in the order in which they end."""

    @property
    def description(self) -> str:
        """What runs where, for people."""

    def check(self) -> None:
        """Raise ``ResourceError`` where what was asked for is not there; nothing is written yet."""

    def worker_memory(self, n_shards: int) -> int:
        """Bytes of memory that each worker may take where so many shards are to be computed."""

    def run(self, work: Work, todo: deque[Shard], watch: Watch) -> Iterator[Outcome]:
        """Take shards from ``todo`` until it is empty; yield one outcome for each.

        The caller may append shards, those that failed, between two outcomes.
        """


@dataclass(frozen=True)
class LocalExecutor:
    """A plain loop in this process, with all its cores."""

    n_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    memory_bytes: int | None = field(default=None, kw_only=True)

    @property
    def description(self) -> str:
        """What runs where, for people."""
        return f"this process, {self.n_threads} threads"

    def check(self) -> None:
        """Raise ``ResourceError`` where this machine has not the memory that was asked for."""
        check_fit(1, self.memory_bytes, [for_workers()], "this machine")

    def worker_memory(self, n_shards: int) -> int:  # noqa: ARG002 - one worker in any case
        """What was asked for, else what is free here, less a reserve."""
        return self.memory_bytes or for_workers()

    def run(self, work: Work, todo: deque[Shard], watch: Watch) -> Iterator[Outcome]:
        """One shard after the other."""
        worker = _Watched(work, 0, self.n_threads, watch)
        while todo:
            yield worker.run(todo.popleft())


class _Watched(Worker):
    """A worker that reports its pace itself, having no driver that asks for it."""

    def __init__(self, work: Work, lane: int, n_threads: int, watch: Watch) -> None:
        super().__init__(work, lane, n_threads)
        self._watch = watch

    def _tick(self, n_rows: int) -> None:
        super()._tick(n_rows)
        if (pace := self.pace()) is not None:
            self._watch([pace])
