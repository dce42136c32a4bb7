"""Workers as actors on a Ray cluster: how many, where, and how tasks are assigned to them."""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cluster import Cluster, Resources, gpus_of_this_actor, last_line, nodes_now, total
from pipeline.errors import ResourceError
from pipeline.executors import LOADING, Watch
from pipeline.memory import check_fit, for_workers, n_fitting
from pipeline.terminal import counted
from pipeline.work import Task, Work
from pipeline.worker import Outcome, Pace, Worker

POLL_S = 0.5

HANG_S = 900.0
"""A worker without progress for this many seconds is killed."""

GROW_EVERY_S = 5.0
"""Seconds between checks whether the cluster has grown."""


@dataclass(frozen=True)
class RayExecutor:
    """Runs tasks in actors on a Ray cluster.

    Nodes of an existing cluster may leave and join. Workers that do not fit, and those of lost
    nodes, wait for a node with room; if ``n_workers`` is ``None``, new CPUs get workers too.

    Attributes:
        n_gpus: number of workers with one GPU each; 0 for workers on CPUs.
        n_workers: number of workers on CPUs; ``None`` for as many as fit.
        cluster: where to run.
        memory_bytes: memory that each actor may use; ``None`` for an even share.
    """

    n_gpus: int = 0
    n_workers: int | None = None
    cluster: Cluster = field(default_factory=Cluster)
    memory_bytes: int | None = field(default=None, kw_only=True)

    @property
    def description(self) -> str:
        """What runs where, for messages."""
        where = self.cluster.address or "a Ray cluster on this machine"
        n_workers = counted(self.n_workers, "worker") if self.n_workers else "CPU workers"
        return f"{counted(self.n_gpus, 'GPU worker') if self.n_gpus else n_workers} on {where}"

    def check(self) -> None:
        """Raise ``ResourceError`` if there is no cluster, or if its resources do not suffice.

        An existing cluster may grow, so it only fails if it has none of what is needed.
        """
        nodes, is_joined = self.cluster.nodes(), self.cluster.is_joined
        where = "the cluster" if is_joined else "this machine"
        n_found = int(total(nodes, "GPU"))
        if self.n_gpus > n_found and not (is_joined and n_found):
            raise ResourceError(
                f"requested {counted(self.n_gpus, 'GPU')}, {where} has {n_found}: use --gpus "
                f"{n_found}, or --address to join a larger cluster"
            )
        n_workers = 1 if is_joined else self.n_gpus or self.n_workers or 1
        check_fit(n_workers, self.memory_bytes, _memory_of(nodes), where)

    def worker_memory(self, n_tasks: int) -> int:
        """The requested memory, or an even share of the cluster's or this machine's memory."""
        if self.memory_bytes:
            return self.memory_bytes
        nodes = self.cluster.nodes()
        n_workers = self._n_workers(nodes, n_tasks)
        n_at_work = self._n_at_work(nodes, n_workers, is_joined=self.cluster.is_joined)
        return int(total(nodes, "memory")) // n_at_work

    def run(self, work: Work, todo: deque[Task], watch: Watch) -> Iterator[Outcome]:
        """Assign tasks to free actors; a dead actor fails only the task that it was computing."""
        is_joined = self.cluster.is_joined  # before connecting to a cluster of our own
        actors: list[Any] = []
        watch([], f"{'joining' if is_joined else 'starting'} Ray")
        with self.cluster.connected() as ray:

            def grow(n_tasks: int) -> None:
                actors.extend(self._more(ray, work, len(actors), n_tasks, is_joined))

            try:
                yield from _outcomes(ray, actors, grow, todo, watch)
            finally:
                for actor in actors:
                    ray.kill(actor)

    def _n_workers(self, nodes: Sequence[Resources], n_tasks: int) -> int:
        """Number of workers wanted, on these nodes or on nodes that join later."""
        # One CPU stays free: actors on all of them could starve the driver.
        most = max(1, int(total(nodes, "CPU")) - 1)
        if self.memory_bytes:
            most = max(1, min(most, n_fitting(self.memory_bytes, _memory_of(nodes))))
        return min(self.n_gpus or self.n_workers or most, n_tasks)

    def _n_at_work(self, nodes: Sequence[Resources], n_workers: int, *, is_joined: bool) -> int:
        """Number of the ``n_workers`` that can run on these nodes now."""
        if not is_joined:  # no CPU will ever join, and workers share the existing ones
            return n_workers
        return max(1, min(n_workers, int(total(nodes, "GPU" if self.n_gpus else "CPU"))))

    def _more(
        self, ray: Any, work: Work, n_actors: int, n_tasks: int, is_joined: bool
    ) -> list[Any]:
        """Create the actors that are wanted in addition to the ``n_actors`` existing ones."""
        nodes = nodes_now(ray)
        if not is_joined:  # Ray keeps a part of the memory for itself; use the same as `check`
            nodes = [{**node, "memory": for_workers()} for node in nodes]
        n_workers = self._n_workers(nodes, n_tasks)
        if n_workers <= n_actors:
            return []
        n_at_work = self._n_at_work(nodes, n_workers, is_joined=is_joined)
        if n_at_work < n_workers:
            waiting = f"{n_workers - n_at_work} of {n_workers} workers wait for nodes to join"
            print(waiting, file=sys.stderr)
        n_cpus = max(1, int(total(nodes, "CPU")))
        largest = max((int(node.get("CPU", 0)) for node in nodes), default=1)
        n_threads = max(1, min(n_cpus // n_at_work, largest))
        n_sharing = 1 if is_joined else -(-n_workers // n_cpus)
        actor = ray.remote(
            num_cpus=0 if self.n_gpus else 1 / n_sharing,
            num_gpus=1 if self.n_gpus else 0,
            # A cluster of our own is this machine, whose memory `check` has already compared.
            memory=self.memory_bytes if self.cluster.address else None,
            max_restarts=-1,
            concurrency_groups={"pace": 1},
        )(_OnRay)
        folder = _working_directory()
        # The work is an argument of the call, because a restart loses objects of Ray's store.
        return [actor.remote(work, lane, n_threads, folder) for lane in range(n_actors, n_workers)]


class _OnRay(Worker):
    """A worker on a node of a cluster, which also reports its GPU.

    It runs in the driver's working directory if the node has it, because a user's network may be a
    module there. Nothing else is imported from it.
    """

    def __init__(self, work: Work, lane: int, n_threads: int, folder: str) -> None:
        super().__init__(work, lane, n_threads)
        with suppress(OSError):
            os.chdir(folder)

    def where(self) -> str:
        """The process and its GPU: ``host:pid``, or ``host:pid gpu 3``."""
        return " gpu ".join([super().where(), *gpus_of_this_actor()])


def _working_directory() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # it was removed
        return "/"


def _memory_of(nodes: Sequence[Resources]) -> list[float]:
    return [node.get("memory", 0.0) for node in nodes]


def _outcomes(
    ray: Any,
    actors: Sequence[Any],
    grow: Callable[[int], None],
    todo: deque[Task],
    watch: Watch,
) -> Iterator[Outcome]:
    """Assign tasks to actors and yield the outcomes.

    Each actor is a lane. It is given a task only once it has answered a call, and after a crash
    only once it answers again, so an actor that waits for a node delays no task. It is given one
    task at a time, because a crash of its process would fail a second one too.

    Args:
        ray: the connected module.
        actors: the actors; ``grow`` may append to them.
        grow: called from time to time with the number of unfinished tasks.
        todo: the tasks; the caller may append to them.
        watch: called with the progress of the busy lanes.
    """
    running: dict[Any, tuple[int, Task]] = {}
    called: dict[Any, int] = {}
    wheres: list[str] = []  # process of each lane, as last reported
    grown = -math.inf
    idle: deque[int] = deque()
    paces = _Paces(ray, actors)
    error: Exception | None = None
    outcomes: deque[Outcome] = deque()
    while todo or running or outcomes:
        if time.monotonic() - grown >= GROW_EVERY_S:
            grown = time.monotonic()
            grow(len(todo) + len(running))
            called |= {_call(actors[lane]): lane for lane in range(len(wheres), len(actors))}
            wheres += [""] * (len(actors) - len(wheres))
        while todo and idle and not any(outcome.stops_run for outcome in outcomes):
            lane, task = idle.popleft(), todo.popleft()
            running[actors[lane].run.remote(task)] = (lane, task)
        if outcomes:  # the caller may take long to handle one; the lanes work in the meantime
            yield outcomes.popleft()
            continue
        if not running and not called:
            yield _death(todo.popleft(), 0, error, "no worker can be started", stops_run=True)
            continue
        ended, _ = ray.wait([*running, *called], num_returns=1, timeout=POLL_S)
        for reference in ended:
            answer, error = _answer(ray, reference)
            if reference in called:
                lane = called.pop(reference)
                if error is None:
                    idle.append(lane)
                    wheres[lane] = answer
                continue
            lane, task = running.pop(reference)
            if error is None:
                idle.append(lane)
                outcomes.append(answer)
            else:
                called[_call(actors[lane])] = lane
                outcomes.append(_death(task, lane, error, f"worker {lane} died", wheres[lane]))
        n_workers = counted(len(actors), "worker")
        phase = f"{LOADING} on {n_workers}" if running else f"starting {n_workers}"
        watch(paces.ask(running.values()), phase)
        paces.kill_hung_actors(running.values())


def _call(actor: Any) -> Any:
    """Ask an actor for its process; waits for a restart, and fails if there will be none."""
    return actor.where.options(concurrency_group="pace", max_task_retries=-1).remote()


def _answer(ray: Any, reference: Any) -> tuple[Any, Exception | None]:
    """The result of a call to an actor, or the error with which it died."""
    try:
        return ray.get(reference), None
    except ray.exceptions.RayError as error:
        return None, error


def _death(
    task: Task,
    lane: int,
    error: Exception | None,
    what: str,
    where: str = "",
    *,
    stops_run: bool = False,
) -> Outcome:
    reason = f"{what}: {last_line(error)}"
    if not stops_run:  # Ray restarts the actor, and does not report why it died
        reason += " (if memory ran out, use less --memory or fewer --workers)"
    return Outcome(
        task, lane, 0.0, error=reason, trace=str(error), stops_run=stops_run, where=where
    )


class _Paces:
    """Polls the progress of busy lanes and kills actors that hang."""

    def __init__(self, ray: Any, actors: Sequence[Any]) -> None:
        self._ray = ray
        self._actors = actors
        self._asked: dict[int, Any] = {}
        self._last: dict[int, tuple[Pace, float]] = {}

    def ask(self, running: Iterable[tuple[int, Task]]) -> list[Pace]:
        """Collect answers and ask again; an actor that has not answered is not asked twice."""
        paces = []
        for lane, task in running:
            start = Pace(lane, task, 0)
            if lane not in self._last or self._last[lane][0].task != task:
                self._last[lane] = start, time.monotonic()
            if lane in self._asked:
                ready, _ = self._ray.wait([self._asked[lane]], timeout=0)
                if not ready:
                    continue
                pace, _ = _answer(self._ray, self._asked.pop(lane))
                if pace is not None and pace.task == task:  # not that of the task before
                    paces.append(pace)
                    if pace != self._last[lane][0]:
                        self._last[lane] = pace, time.monotonic()
            actor = self._actors[lane]
            self._asked[lane] = actor.pace.options(concurrency_group="pace").remote()
        return paces

    def kill_hung_actors(self, running: Iterable[tuple[int, Task]]) -> None:
        """Kill actors without progress for too long; their tasks are assigned again."""
        for lane, _ in running:
            if time.monotonic() - self._last[lane][1] > HANG_S:
                self._last[lane] = self._last[lane][0], time.monotonic()
                self._asked.pop(lane, None)
                self._ray.kill(self._actors[lane], no_restart=False)
