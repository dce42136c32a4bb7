"""Workers as actors on a Ray cluster: how many, where, and which shard each is given."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.cluster import Cluster, Resources, gpus_of_this_actor, last_line, nodes_now, total
from pipeline.errors import ResourceError
from pipeline.executors import Watch
from pipeline.memory import check_fit, for_workers, n_fitting
from pipeline.worker import Outcome, Pace, Work, Worker
from store.shards import Shard

POLL_S = 0.5

HANG_S = 900.0
"""A worker that has got no row further for so long is killed, whatever it says."""

GROW_EVERY_S = 5.0
"""How often a cluster is asked whether it has grown."""


@dataclass(frozen=True)
class RayExecutor:
    """Actors on a Ray cluster: one for each GPU, or ``n_workers`` on CPUs where ``n_gpus`` is 0.

    Each actor may take ``memory_bytes``; ``None`` is an even share of what there is.

    A cluster that is joined may lose nodes and win some. Workers beyond what it has, and those of a
    lost node, wait for a node with room; where ``n_workers`` is None, new CPUs get workers too.
    """

    n_gpus: int = 0
    n_workers: int | None = None
    cluster: Cluster = field(default_factory=Cluster)
    memory_bytes: int | None = field(default=None, kw_only=True)

    @property
    def description(self) -> str:
        """What runs where, for people."""
        where = self.cluster.address or "a Ray cluster on this machine"
        what = f"{self.n_gpus} GPU workers" if self.n_gpus else f"{self.n_workers or 'CPU'} workers"
        return f"{what} on {where}"

    def check(self) -> None:
        """Raise ``ResourceError`` where there is no cluster, or one with too little for us.

        A cluster that is joined may grow: it has too few where it has none.
        """
        nodes, is_joined = self.cluster.nodes(), self.cluster.is_joined
        where = "the cluster" if is_joined else "this machine"
        there = int(total(nodes, "GPU"))
        if self.n_gpus > there and not (is_joined and there):
            raise ResourceError(
                f"{self.n_gpus} GPUs were asked for, {where} has {there}: use --gpus {there}"
                ", or --address to join a larger cluster"
            )
        n_workers = 1 if is_joined else self.n_gpus or self.n_workers or 1
        check_fit(n_workers, self.memory_bytes, _memory_of(nodes), where)

    def worker_memory(self, n_shards: int) -> int:
        """What was asked for, else an even share: of the cluster, or of what is free here."""
        if self.memory_bytes:
            return self.memory_bytes
        nodes = self.cluster.nodes()
        n_workers = self._n_workers(nodes, n_shards)
        n_at_work = self._n_at_work(nodes, n_workers, is_joined=self.cluster.is_joined)
        return int(total(nodes, "memory")) // n_at_work

    def run(self, work: Work, todo: deque[Shard], watch: Watch) -> Iterator[Outcome]:
        """Hand shards out as actors get free; a dead actor fails only the shard it held."""
        is_joined = self.cluster.is_joined  # before we connect to one of our own
        actors: list[Any] = []
        with self.cluster.connected() as ray:

            def grow(n_shards: int) -> None:
                actors.extend(self._more(ray, work, len(actors), n_shards, is_joined))

            try:
                yield from _handed_out(ray, actors, grow, todo, watch)
            finally:
                for actor in actors:
                    ray.kill(actor)

    def _n_workers(self, nodes: Sequence[Resources], n_shards: int) -> int:
        """How many are wanted, on nodes with these resources or on others that join."""
        # One CPU stays free: actors on all of them can starve what the driver itself needs.
        most = max(1, int(total(nodes, "CPU")) - 1)
        if self.memory_bytes:
            most = max(1, min(most, n_fitting(self.memory_bytes, _memory_of(nodes))))
        return min(self.n_gpus or self.n_workers or most, n_shards)

    def _n_at_work(self, nodes: Sequence[Resources], n_workers: int, *, is_joined: bool) -> int:
        """How many of so many these nodes have room for."""
        if not is_joined:  # no CPU will ever join, and workers share those that are there
            return n_workers
        return max(1, min(n_workers, int(total(nodes, "GPU" if self.n_gpus else "CPU"))))

    def _more(
        self, ray: Any, work: Work, n_actors: int, n_shards: int, is_joined: bool
    ) -> list[Any]:
        """The actors that are wanted beside those that are there, or wait for a node."""
        nodes = nodes_now(ray)
        if not is_joined:  # Ray keeps a part of the memory for itself, and `check` knows better
            nodes = [{**node, "memory": for_workers()} for node in nodes]
        n_workers = self._n_workers(nodes, n_shards)
        if n_workers <= n_actors:
            return []
        n_at_work = self._n_at_work(nodes, n_workers, is_joined=is_joined)
        if n_at_work < n_workers:
            told = f"{n_workers - n_at_work} of {n_workers} workers wait for nodes that join"
            print(told, file=sys.stderr)
        n_cpus = max(1, int(total(nodes, "CPU")))
        largest = max((int(node.get("CPU", 0)) for node in nodes), default=1)
        n_threads = max(1, min(n_cpus // n_at_work, largest))
        n_sharing = 1 if is_joined else -(-n_workers // n_cpus)
        actor = ray.remote(
            num_cpus=0 if self.n_gpus else 1 / n_sharing,
            num_gpus=1 if self.n_gpus else 0,
            # A cluster of our own is this machine, which `check` has looked at already.
            memory=self.memory_bytes if self.cluster.address else None,
            max_restarts=-1,
            concurrency_groups={"pace": 1},
        )(_OnRay)
        # The work travels with the call: what lies in the object store is lost to a restart.
        return [actor.remote(work, lane, n_threads) for lane in range(n_actors, n_workers)]


class _OnRay(Worker):
    """A worker on a node of a cluster; one that was given a GPU says which."""

    def where(self) -> str:
        """``host:pid``, or ``host:pid gpu 3``."""
        return " gpu ".join([super().where(), *gpus_of_this_actor()])


def _memory_of(nodes: Sequence[Resources]) -> list[float]:
    return [node.get("memory", 0.0) for node in nodes]


def _handed_out(
    ray: Any,
    actors: Sequence[Any],
    grow: Callable[[int], None],
    todo: deque[Shard],
    watch: Watch,
) -> Iterator[Outcome]:
    """Each actor is a lane; ``grow`` is told now and then how many shards there are for them.

    A lane is given a shard once its actor answers a call, and after a death once it does again.

    So an actor that waits for a node, or that went with one, holds no shard up. It holds one shard
    at a time: a second one would share the fate of the first when that kills the process.
    """
    running: dict[Any, tuple[int, Shard]] = {}
    called: dict[Any, int] = {}
    wheres: list[str] = []  # of each lane, as it said last
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
            lane, shard = idle.popleft(), todo.popleft()
            running[actors[lane].run.remote(shard)] = (lane, shard)
        if outcomes:  # what the caller does with them takes time: the lanes are at work meanwhile
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
            lane, shard = running.pop(reference)
            if error is None:
                idle.append(lane)
                outcomes.append(answer)
            else:
                called[_call(actors[lane])] = lane
                outcomes.append(_death(shard, lane, error, f"worker {lane} died", wheres[lane]))
        watch(paces.ask(running.values()))
        paces.kill_the_hung(running.values())


def _call(actor: Any) -> Any:
    """Ask an actor where it is; waits for its restart, fails where there will be none."""
    return actor.where.options(concurrency_group="pace", max_task_retries=-1).remote()


def _answer(ray: Any, reference: Any) -> tuple[Any, Exception | None]:
    """What a call to an actor gave, or how the actor died."""
    try:
        return ray.get(reference), None
    except ray.exceptions.RayError as error:
        return None, error


def _death(
    shard: Shard,
    lane: int,
    error: Exception | None,
    what: str,
    where: str = "",
    *,
    stops_run: bool = False,
) -> Outcome:
    reason = f"{what}: {last_line(error)}"
    if not stops_run:  # Ray restarts the actor, and does not say then what it died of
        reason += " (if memory ran out there, give less --memory or fewer --workers)"
    return Outcome(
        shard, lane, 0.0, error=reason, trace=str(error), stops_run=stops_run, where=where
    )


class _Paces:
    """How far the lanes are: each is asked while it computes, and watched for standing still."""

    def __init__(self, ray: Any, actors: Sequence[Any]) -> None:
        self._ray = ray
        self._actors = actors
        self._asked: dict[int, Any] = {}
        self._last: dict[int, tuple[Pace, float]] = {}

    def ask(self, running: Iterable[tuple[int, Shard]]) -> list[Pace]:
        """The answers that have come in; an actor that does not answer is asked no second time."""
        paces = []
        for lane, shard in running:
            start = Pace(lane, shard, 0)
            if lane not in self._last or self._last[lane][0].shard != shard:
                self._last[lane] = start, time.monotonic()
            if lane in self._asked:
                ready, _ = self._ray.wait([self._asked[lane]], timeout=0)
                if not ready:
                    continue
                pace, _ = _answer(self._ray, self._asked.pop(lane))
                if pace is not None and pace.shard == shard:  # not of the one before
                    paces.append(pace)
                    if pace != self._last[lane][0]:
                        self._last[lane] = pace, time.monotonic()
            actor = self._actors[lane]
            self._asked[lane] = actor.pace.options(concurrency_group="pace").remote()
        return paces

    def kill_the_hung(self, running: Iterable[tuple[int, Shard]]) -> None:
        """Kill the actors that have stood at one row for too long: their shards are handed on."""
        for lane, _ in running:
            if time.monotonic() - self._last[lane][1] > HANG_S:
                self._last[lane] = self._last[lane][0], time.monotonic()
                self._asked.pop(lane, None)
                self._ray.kill(self._actors[lane], no_restart=False)
