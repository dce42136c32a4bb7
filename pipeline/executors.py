"""Where workers run: in this process, or as actors on a Ray cluster (Ray is known here alone)."""

import os
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ResourceError
from pipeline.memory import WORKERS_SHARE, free_bytes
from pipeline.worker import Outcome, Pace, Work, Worker
from store.shards import Shard

Watch = Callable[[Sequence[Pace]], None]
"""Told now and then how far each busy lane is."""

Resources = Mapping[str, float]
"""Of a node, as Ray names them: CPU, GPU, memory in bytes."""

POLL_S = 0.5

HANG_S = 900.0
"""A worker that has got no row further for so long is killed, whatever it says."""

GROW_EVERY_S = 5.0
"""How often a cluster is asked whether it has grown."""

CONNECT_S = 5.0
"""How long a cluster may take to answer; Ray itself waits 80 s for one that is not there."""


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
        _check_memory(1, self.memory_bytes, [{"memory": _for_workers()}], "this machine")

    def worker_memory(self, n_shards: int) -> int:  # noqa: ARG002 - one worker in any case
        """What was asked for, else what is free here, less a reserve."""
        return self.memory_bytes or _for_workers()

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


@dataclass(frozen=True)
class RayExecutor:
    """Actors on a Ray cluster: one for each GPU, or ``n_workers`` on CPUs where ``n_gpus`` is 0.

    ``address`` joins a cluster (``auto``, ``ray://host:10001``, ``host:6379``); without one, and
    without ``RAY_ADDRESS``, a cluster of this machine is started and stopped with the run. Each
    actor may take ``memory_bytes``; ``None`` is an even share of what there is.

    A cluster that is joined may lose nodes and win some. Workers beyond what it has, and those of a
    lost node, wait for a node with room; where ``n_workers`` is None, new CPUs get workers too.
    """

    n_gpus: int = 0
    n_workers: int | None = None
    address: str | None = None
    memory_bytes: int | None = field(default=None, kw_only=True)

    @property
    def description(self) -> str:
        """What runs where, for people."""
        where = self._address or "a Ray cluster on this machine"
        what = f"{self.n_gpus} GPU workers" if self.n_gpus else f"{self.n_workers or 'CPU'} workers"
        return f"{what} on {where}"

    def check(self) -> None:
        """Raise ``ResourceError`` where there is no cluster, or one with too little for us.

        A cluster that is joined may grow: it has too few where it has none.
        """
        nodes, where = _nodes_of(self.address), "the cluster" if self._is_joined else "this machine"
        there = int(_total(nodes, "GPU"))
        if self.n_gpus > there and not (self._is_joined and there):
            raise ResourceError(
                f"{self.n_gpus} GPUs were asked for, {where} has {there}: use --gpus {there}"
                ", or --address to join a larger cluster"
            )
        n_workers = 1 if self._is_joined else self.n_gpus or self.n_workers or 1
        _check_memory(n_workers, self.memory_bytes, nodes, where)

    def worker_memory(self, n_shards: int) -> int:
        """What was asked for, else an even share: of the cluster, or of what is free here."""
        if self.memory_bytes:
            return self.memory_bytes
        nodes = _nodes_of(self.address)
        n_workers = self._n_at_work(nodes, self._n_workers(nodes, n_shards))
        return int(_total(nodes, "memory")) // n_workers

    def run(self, work: Work, todo: deque[Shard], watch: Watch) -> Iterator[Outcome]:
        """Hand shards out as actors get free; a dead actor fails only the shard it held."""
        is_joined = self._is_joined
        actors: list[Any] = []
        with _cluster(self._address) as ray:

            def grow(n_shards: int) -> None:
                actors.extend(self._more(ray, work, len(actors), n_shards, is_joined))

            try:
                yield from _handed_out(ray, actors, grow, todo, watch)
            finally:
                for actor in actors:
                    ray.kill(actor)

    @property
    def _address(self) -> str | None:
        return _joined(self.address)

    @property
    def _is_joined(self) -> bool:
        """Whether the cluster is one that others have started, and that may grow."""
        return bool(self._address) or _is_connected()

    def _n_workers(self, nodes: Sequence[Resources], n_shards: int) -> int:
        """How many are wanted, on nodes with these resources or on others that join."""
        # One CPU stays free: actors on all of them can starve what the driver itself needs.
        most = max(1, int(_total(nodes, "CPU")) - 1)
        if self.memory_bytes:
            most = max(1, min(most, _n_fitting(self.memory_bytes, nodes)))
        return min(self.n_gpus or self.n_workers or most, n_shards)

    def _n_at_work(self, nodes: Sequence[Resources], n_workers: int) -> int:
        """How many of so many these nodes have room for."""
        if not self._is_joined:  # no CPU will ever join, and workers share those that are there
            return n_workers
        return max(1, min(n_workers, int(_total(nodes, "GPU" if self.n_gpus else "CPU"))))

    def _more(
        self, ray: Any, work: Work, n_actors: int, n_shards: int, is_joined: bool
    ) -> list[Any]:
        """The actors that are wanted beside those that are there, or wait for a node."""
        nodes = _nodes(ray)
        if not is_joined:  # Ray keeps a part of the memory for itself, and `check` knows better
            nodes = [{**node, "memory": _for_workers()} for node in nodes]
        n_workers = self._n_workers(nodes, n_shards)
        if n_workers <= n_actors:
            return []
        n_at_work = self._n_at_work(nodes, n_workers) if is_joined else n_workers
        if n_at_work < n_workers:
            told = f"{n_workers - n_at_work} of {n_workers} workers wait for nodes that join"
            print(told, file=sys.stderr)
        n_cpus = max(1, int(_total(nodes, "CPU")))
        largest = max((int(node.get("CPU", 0)) for node in nodes), default=1)
        n_threads = max(1, min(n_cpus // n_at_work, largest))
        n_sharing = 1 if is_joined else -(-n_workers // n_cpus)
        actor = ray.remote(
            num_cpus=0 if self.n_gpus else 1 / n_sharing,
            num_gpus=1 if self.n_gpus else 0,
            # A cluster of our own is this machine, which `check` has looked at already.
            memory=self.memory_bytes if self._address else None,
            max_restarts=-1,
            concurrency_groups={"pace": 1},
        )(_OnRay)
        # The work travels with the call: what lies in the object store is lost to a restart.
        return [actor.remote(work, lane, n_threads) for lane in range(n_actors, n_workers)]


class _OnRay(Worker):
    """A worker on a node of a cluster; one that was given a GPU says which."""

    def where(self) -> str:
        """``host:pid``, or ``host:pid gpu 3``."""
        import ray

        gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return " gpu ".join([super().where(), *gpus])


def n_gpus_of(address: str | None) -> int:
    """GPUs of the cluster that would be joined, else of this machine; may raise ResourceError."""
    return int(_total(_nodes_of(address), "GPU"))


def _nodes_of(address: str | None) -> list[Resources]:
    """What each node has of the cluster that would be joined, else this machine."""
    if _joined(address) is None and not _is_connected():
        n_cpus = os.cpu_count() or 1
        return [{"CPU": n_cpus, "GPU": n_visible_gpus(), "memory": _for_workers()}]
    with _cluster(_joined(address)) as ray:
        return _nodes(ray)


def _nodes(ray: Any) -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _total(nodes: Sequence[Resources], name: str) -> float:
    return sum(node.get(name, 0.0) for node in nodes)


def _joined(address: str | None) -> str | None:
    return address or os.environ.get("RAY_ADDRESS") or None


def _for_workers() -> int:
    """Bytes of this machine's memory that workers may take."""
    return int(WORKERS_SHARE * free_bytes())


def _n_fitting(memory_bytes: int, nodes: Sequence[Resources]) -> int:
    """How many workers of that size fit on nodes with this memory."""
    return sum(int(node.get("memory", 0)) // memory_bytes for node in nodes)


def _check_memory(
    n_workers: int, memory_bytes: int | None, nodes: Sequence[Resources], where: str
) -> None:
    """Raise ``ResourceError`` where so many workers of that size do not fit."""
    if memory_bytes is None or (n_fit := _n_fitting(memory_bytes, nodes)) >= n_workers:
        return
    there = " + ".join(f"{node.get('memory', 0) / 2**30:.1f}" for node in nodes) + " GiB"
    raise ResourceError(
        f"{n_workers} workers of {memory_bytes / 2**30:.1f} GiB were asked for, {where} has {there}"
        f" for workers, room for {n_fit}: give less --memory"
        + (f", or --workers {n_fit}" if n_fit else "")
    )


def n_visible_gpus() -> int:
    """NVIDIA GPUs that this process may use, without starting a driver or importing torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name not in ("", "-1")])
    return len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()])


def _is_connected() -> bool:
    """Whether this program has connected to Ray already; never imports it."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster that was named, else to one of our own on this machine.

    Where the program has connected to one already, that one is used, and is left connected.
    """
    if address is None and "ray" not in sys.modules:  # which reads these when it is imported
        # A cluster of our own is closed to other users by a token that lives as long as we do.
        if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # It listens on the loopback alone; Ray has this switch for systems that ask about ports.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with redirect_stdout(sys.stderr):  # Ray prints what it has to say among our results
        import ray

        if ray.is_initialized():
            yield ray
            return
        try:
            _connect(ray, address)
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    if address is None:
        ray.init("local", logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        return
    try:
        if address not in ("auto", "local"):
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        ray.init(address, logging_level="ERROR", log_to_driver=False)
    except (OSError, RuntimeError, ValueError, SystemExit, ray.exceptions.RayError) as error:
        raise ResourceError(
            f"cannot join a Ray cluster at {address} ({_last_line(error)}): start one with "
            "`ray start --head`, or leave out --address and RAY_ADDRESS to use this machine alone"
        ) from error


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
    grown = -GROW_EVERY_S
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
    reason = f"{what}: {_last_line(error)}"
    if not stops_run:  # Ray restarts the actor, and does not say then what it died of
        reason += " (if memory ran out there, give less --memory or fewer --workers)"
    return Outcome(
        shard, lane, 0.0, error=reason, trace=str(error), stops_run=stops_run, where=where
    )


def _last_line(error: BaseException | None) -> str:
    """Where Ray says what happened, behind names and traces."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


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
