"""Where workers run: in this process, or as actors on a Ray cluster (Ray is known here alone)."""

import os
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ResourceError
from pipeline.worker import Outcome, Pace, Work, Worker
from store.shards import Shard

Watch = Callable[[Sequence[Pace]], None]
"""Told now and then how far each busy lane is."""

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

    def run(self, work: Work, todo: deque[Shard], watch: Watch) -> Iterator[Outcome]:
        """Take shards from ``todo`` until it is empty; yield one outcome for each.

        The caller may append shards, those that failed, between two outcomes.
        """


@dataclass(frozen=True)
class LocalExecutor:
    """A plain loop in this process, with all its cores."""

    n_threads: int = field(default_factory=lambda: os.cpu_count() or 1)

    @property
    def description(self) -> str:
        """What runs where, for people."""
        return f"this process, {self.n_threads} threads"

    def check(self) -> None:
        """This process is always there."""

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
    without ``RAY_ADDRESS``, a cluster of this machine is started and stopped with the run.

    A cluster that is joined may lose nodes and win some. Workers beyond what it has, and those of a
    lost node, wait for a node with room; where ``n_workers`` is None, new CPUs get workers too.
    """

    n_gpus: int = 0
    n_workers: int | None = None
    address: str | None = None

    @property
    def description(self) -> str:
        """What runs where, for people."""
        where = self._address or "a Ray cluster on this machine"
        what = f"{self.n_gpus} GPU workers" if self.n_gpus else f"{self.n_workers or 'CPU'} workers"
        return f"{what} on {where}"

    def check(self) -> None:
        """Raise ``ResourceError`` where there is no cluster, or one with too few GPUs.

        A cluster that is joined may grow: it has too few where it has none.
        """
        there = n_gpus_of(self.address)
        where = "the cluster" if self._is_joined else "this machine"
        if self.n_gpus > there and not (self._is_joined and there):
            raise ResourceError(
                f"{self.n_gpus} GPUs were asked for, {where} has {there}: use --gpus {there}"
                ", or --address to join a larger cluster"
            )

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

    def _more(
        self, ray: Any, work: Work, n_actors: int, n_shards: int, is_joined: bool
    ) -> list[Any]:
        """The actors that are wanted beside those that are there, or wait for a node."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        n_cpus = max(1, int(sum(node.get("CPU", 0) for node in nodes)))
        # One CPU stays free: actors on all of them can starve what the driver itself needs.
        n_workers = self.n_gpus or self.n_workers or max(1, n_cpus - 1)
        n_workers = min(n_workers, n_shards)
        if n_workers <= n_actors:
            return []
        n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
        n_at_work = min(n_workers, n_gpus if self.n_gpus else n_cpus)
        largest = max((int(node.get("CPU", 0)) for node in nodes), default=1)
        n_threads = max(1, min(n_cpus // max(1, n_at_work), largest))
        if is_joined and n_at_work < n_workers:
            told = f"{n_workers - n_at_work} of {n_workers} workers wait for nodes that join"
            print(told, file=sys.stderr)
        # On this machine alone no CPU will ever join, and workers share those that are there.
        n_sharing = 1 if is_joined else -(-n_workers // n_cpus)
        actor = ray.remote(
            num_cpus=0 if self.n_gpus else 1 / n_sharing,
            num_gpus=1 if self.n_gpus else 0,
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
    if _joined(address) is None and not _is_connected():
        return n_visible_gpus()
    with _cluster(_joined(address)) as ray:
        return int(ray.cluster_resources().get("GPU", 0))


def _joined(address: str | None) -> str | None:
    return address or os.environ.get("RAY_ADDRESS") or None


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
