"""Where workers run: in this process, or as actors on a Ray cluster (Ray is known here alone)."""

import os
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ResourceError
from pipeline.worker import Outcome, Pace, Work, Worker
from store.shards import Shard

Watch = Callable[[Sequence[Pace]], None]
"""Told now and then how far each busy lane is."""

SHARDS_PER_ACTOR = 2
"""One at work and one waiting, so that an actor is never idle between two shards."""

POLL_S = 0.5


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
    """

    n_gpus: int = 0
    n_workers: int | None = None
    address: str | None = None

    @property
    def description(self) -> str:
        """What runs where, for people."""
        where = self.address or os.environ.get("RAY_ADDRESS") or "a Ray cluster on this machine"
        what = f"{self.n_gpus} GPU workers" if self.n_gpus else f"{self.n_workers or 'CPU'} workers"
        return f"{what} on {where}"

    def check(self) -> None:
        """Raise ``ResourceError`` where the cluster has fewer GPUs than were asked for.

        A cluster of our own has this machine's; one that is joined is asked, and stays joined.
        """
        if self.n_gpus == 0:
            return
        if self.address or os.environ.get("RAY_ADDRESS"):
            there, where = _connected(self.address).cluster_resources().get("GPU", 0), "the cluster"
        else:
            there, where = n_visible_gpus(), "this machine"
        if self.n_gpus > there:
            raise ResourceError(
                f"{self.n_gpus} GPUs were asked for, {where} has {there:g}: use --gpus {there:g}"
                ", or --address to join a larger cluster"
            )

    def run(self, work: Work, todo: deque[Shard], watch: Watch) -> Iterator[Outcome]:
        """Hand shards out as actors get free; a dead actor fails only the shards it held."""
        with redirect_stdout(sys.stderr):  # Ray prints what it has to say among our results
            ray = _connected(self.address)
            try:
                actors = self._actors(ray, work, len(todo))
                yield from _handed_out(ray, actors, todo, watch)
            finally:
                ray.shutdown()

    def _actors(self, ray: Any, work: Work, n_shards: int) -> list[Any]:
        n_cpus = int(ray.cluster_resources().get("CPU", 1))
        # One CPU stays free: actors on all of them can starve what the driver itself needs.
        n_workers = self.n_gpus or self.n_workers or max(1, n_cpus - 1)
        n_workers = min(n_workers, n_shards)
        n_threads = max(1, n_cpus // n_workers)
        actor = ray.remote(
            num_cpus=0 if self.n_gpus else min(1, n_cpus / n_workers),
            num_gpus=1 if self.n_gpus else 0,
            max_restarts=-1,
            concurrency_groups={"pace": 1},
        )(Worker)
        # The work travels with the call: what lies in the object store is lost to a restart.
        return [actor.remote(work, lane, n_threads) for lane in range(n_workers)]


def n_visible_gpus() -> int:
    """NVIDIA GPUs that this process may use, without starting a driver or importing torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name not in ("", "-1")])
    return len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()])


def _connected(address: str | None) -> Any:
    """Ray, connected: to the cluster that was named, else to one of our own on this machine."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        # A cluster of our own is closed to other users by a token that lives as long as it does.
        if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        ray.init(
            address=address or "local",
            logging_level="ERROR",
            log_to_driver=False,
            **({} if address else {"include_dashboard": False}),
        )
    return ray


def _handed_out(
    ray: Any, actors: Sequence[Any], todo: deque[Shard], watch: Watch
) -> Iterator[Outcome]:
    running: dict[Any, tuple[int, Shard]] = {}
    pace_of: dict[int, Any] = {}
    while todo or running:
        for lane in _free_lanes(len(actors), [lane for lane, _ in running.values()]):
            if todo:
                shard = todo.popleft()
                running[actors[lane].run.remote(shard)] = (lane, shard)
        ended, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
        for reference in ended:
            lane, shard = running.pop(reference)
            yield _outcome(ray, reference, shard, lane)
        watch(_paces(ray, actors, running, pace_of))


def _free_lanes(n_lanes: int, held: Sequence[int]) -> list[int]:
    """Lanes by free place, idle ones first, so that few shards spread over all actors.

    >>> _free_lanes(2, [0])
    [1, 0, 1]
    """
    lanes = range(n_lanes)
    return [
        lane for n_held in range(SHARDS_PER_ACTOR) for lane in lanes if held.count(lane) <= n_held
    ]


def _outcome(ray: Any, reference: Any, shard: Shard, lane: int) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
        return outcome
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        return Outcome(shard, lane, 0.0, error=f"worker {lane} died: {reason}", trace=str(error))


def _paces(
    ray: Any,
    actors: Sequence[Any],
    running: dict[Any, tuple[int, Shard]],
    pace_of: dict[int, Any],
) -> list[Pace]:
    """The answers that have come in; an actor that does not answer is asked no second time."""
    paces = []
    for lane in {lane for lane, _ in running.values()}:
        if lane in pace_of:
            ready, _ = ray.wait([pace_of[lane]], timeout=0)
            if not ready:
                continue
            try:
                pace = ray.get(pace_of.pop(lane))
            except ray.exceptions.RayError:
                pace = None
            if pace is not None:
                paces.append(pace)
        pace_of[lane] = actors[lane].pace.options(concurrency_group="pace").remote()
    return paces
