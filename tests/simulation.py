"""Drivers and workers of one set on a simulated disk, killed, stalled and overlapping, by seed.

The runner, the worker, the lease and the store are those of production; the disk, the clocks and
the scheduler are simulated. ``simulate(seed)`` tells one story: some drivers, one after the other
and beside each other, with what goes wrong drawn from the seed; then all processes end, nothing
goes wrong any more, and one last driver runs. Whenever the set is looked at, every receipt must
vouch for the bytes that lie there, and once a driver has told that the set is complete no shard may
be missing; at the end every shard must be there, once.

    python tests/simulation.py --seeds 1000            # from seed 0
    python tests/simulation.py --first 4711 --seeds 1 --trace
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from simulated_disk import SimulatedDisk
from simulated_world import Host, Process, SimulatedMachine, World

from pipeline.errors import PipelineError
from pipeline.executors import Watch
from pipeline.journal import Journal
from pipeline.runner import run_map
from pipeline.stage import ShardOutput, Tick
from pipeline.worker import Outcome, Work, Worker
from store.errors import StoreError
from store.lease import EXPIRY_S
from store.plan import Plan
from store.seal import unsealed, vouch
from store.shards import Shard
from store.shardset import ShardSet, receipt_key
from store.storage import FileLog, LocalStorage

ROOT = "/store/features/set"
MAX_STEPS = 60_000
MAX_LIVES = 8
FAULTS = (
    "kill worker",
    "kill driver",
    "power cut",
    "stall",
    "disk",
    "clock",
    "give up",
    "overlap",
    "replace",
    "die publishing",
)
DISK_ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)


class ViolationError(AssertionError):
    """The store broke its word."""


@dataclass(frozen=True)
class Texts:
    """The stage: two small files a shard, which say who wrote them.

    Two attempts at a shard write different bytes, as two batch sizes do: a shard whose files come
    from two attempts is a mixture.
    """

    story: Story
    name: str = "texts"
    version: int = 1

    def check(self, plan: Plan) -> None:
        pass

    def setup(self, n_threads: int) -> int:
        self.story.world.sleep(self.story.rng.uniform(0, 5))
        return n_threads

    def compute(self, state: int, shard: Shard, tick: Tick) -> ShardOutput:
        self.story.computed[shard.index] += 1
        attempt = f"{shard.index} {self.story.computed[shard.index]}".encode()
        self.story.world.sleep(self.story.rng.expovariate(1 / 8))
        if self.story.rng.random() < self.story.failing:
            raise RuntimeError("this one may pass")
        return ShardOutput(dict.fromkeys(files_of(shard), attempt), {"failed": {}})


def files_of(shard: Shard) -> tuple[str, str]:
    return f"features/c/{shard.index}/0", f"samples/part-{shard.index:05d}.parquet"


@dataclass(eq=False)
class Lane:
    """A worker process, and the shard that it is to compute."""

    process: Process
    inbox: deque[Shard] = field(default_factory=deque)


@dataclass
class Lanes:
    """Implements ``pipeline.executors.Executor`` with simulated processes.

    Answers come late, and sometimes twice; a worker that is given up may be alive, and answer.
    """

    story: Story
    driver: Process
    n_lanes: int
    description: str = "simulated workers"

    def check(self) -> None:
        pass

    def run(self, work: Work, todo: deque[Shard], watch: Watch) -> Iterator[Outcome]:
        answers: deque[Outcome] = deque()
        lanes = [self._started(work, number, answers) for number in range(self.n_lanes)]
        self.story.lanes[self.driver.pid] = lanes
        running: dict[int, Shard] = {}
        while todo or running:
            for number, lane in enumerate(lanes):
                if todo and number not in running:
                    running[number] = todo.popleft()
                    lane.inbox.append(running[number])
            self.story.world.wait(lambda: bool(answers) or bool(self._lost(lanes, running)))
            if answers:
                outcome = answers.popleft()
                if running.get(outcome.lane) == outcome.shard:
                    del running[outcome.lane]
                yield outcome
                continue
            for number in self._lost(lanes, running):
                shard = running.pop(number)
                lanes[number] = self._started(work, number, answers)
                yield Outcome(shard, number, 0.0, error=f"worker {number} died")
        for lane in lanes:
            lane.process.is_alive = False  # as Ray kills its actors; they hold no shard

    def _lost(self, lanes: list[Lane], running: dict[int, Shard]) -> list[int]:
        given_up = self.story.given_up
        return [
            number
            for number in running
            if not lanes[number].process.is_alive or lanes[number].process.pid in given_up
        ]

    def _started(self, work: Work, number: int, answers: deque[Outcome]) -> Lane:
        story = self.story
        lane = Lane(story.world.process(self.driver.host, f"worker {number}"))

        def main() -> None:
            worker = Worker(work, number, 1)
            while self.driver.is_alive:
                story.world.wait(lambda: bool(lane.inbox) or not self.driver.is_alive)
                if lane.inbox:
                    outcome = worker.run(lane.inbox.popleft())
                    story.world.sleep(story.rng.choice([0.0, 0.0, 0.1, 5.0]))
                    answers.append(outcome)
                    if story.rng.random() < story.twice:
                        answers.append(outcome)

        story.world.spawn(lane.process, main)
        return lane


@dataclass
class Story:
    """What happens in one seed."""

    seed: int
    folder: str
    keeps_trace: bool = False
    lanes: dict[int, list[Lane]] = field(default_factory=dict)
    given_up: set[int] = field(default_factory=set)
    computed: Counter[int] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    violation: str = ""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.world = World(self.rng, self.rng.choice([0.002, 0.1, 1.0]))
        self.disk = SimulatedDisk(self.rng, self._before)
        self.hosts = [Host("a"), Host("b")]
        n_shards = self.rng.randint(1, 5)
        self.plan: dict[str, Any] = {"n_rows": 2 * n_shards, "shard_rows": 2}
        self.n_lanes = self.rng.randint(1, 3)
        self.failing = self.rng.choice([0.0, 0.0, 0.1])
        self.twice = self.rng.choice([0.0, 0.1])
        self.disk_errors: list[int] = []
        self.is_to_be_replaced = self.is_to_die = False
        self.is_told_complete = False
        self.drivers: list[Process] = []
        favourite = self.rng.choice(FAULTS)  # the same fault again and again reaches further
        self.fault_at = {
            self.rng.randint(1, 200 * n_shards): self.rng.choice([*FAULTS, *[favourite] * 8])
            for _ in range(self.rng.choice([0, 1, 2, 3, 5, 8]))
        }

    def tell(self) -> None:
        """Let it happen; raises ``ViolationError``."""
        self._start_driver()
        while self.world.n_steps < MAX_STEPS:
            if fault := self.fault_at.pop(self.world.n_steps, None):
                self._happen(fault)
            if self.world.n_steps % 50 == 0:
                self._look()
            if not any(driver.is_alive for driver in self.drivers):
                if self.is_told_complete or len(self.drivers) >= MAX_LIVES:
                    break
                self.world.now += self.rng.choice([0.0, 1.0, 100.0])
                self._start_driver()
            if not self.world.step():
                raise ViolationError("nothing can go on")
        self._end()

    def _end(self) -> None:
        """Everything stops; then one driver runs that nothing disturbs."""
        if self.rng.random() < 0.5:
            self._happen("power cut")
        for process in list(self.world.processes):
            self.world.kill(process)
        self.fault_at, self.disk_errors = {}, []
        self.is_to_be_replaced = self.is_to_die = False
        self.failing = self.twice = 0.0
        self._look()
        was_complete = self._is_complete()
        self.world.now += 1000.0
        for host in self.hosts:
            host.clock_error = 0.0
        last, limit = self._start_driver(), self.world.n_steps + MAX_STEPS
        while last.is_alive and self.world.n_steps < limit:
            if not self.world.step():
                raise ViolationError("nothing can go on at the end")
        for process in list(self.world.processes):
            self.world.kill(process)
        self._look()
        if not self._is_complete():
            raise ViolationError(f"not complete at the end: {dict(self.endings)}")
        litter = [path for path in self.disk.names if "/.staging/" in path]
        if litter and not was_complete:  # where nothing is missing no driver takes the lease
            raise ViolationError(f"litter at the end: {litter}")

    def _start_driver(self, host: Host | None = None, in_s: float = 0.0) -> Process:
        host = host or self.rng.choice(self.hosts)
        process = self.world.process(host, f"driver {len(self.drivers)}")
        self.drivers.append(process)
        self._note(f"{process.name} starts on {process.host.name}")

        def main() -> None:
            ending = "complete"
            self.world.sleep(in_s)
            try:
                self._drive(process)
            except (StoreError, PipelineError, OSError) as error:
                ending = type(error).__name__
                self._note(f"{process.name}: {ending}: {error}")
            self.endings[ending] += 1
            self.is_told_complete |= ending == "complete"
            self._note(f"{process.name} ends: {ending}")
            for lane in self.lanes.get(process.pid, []):  # they were its children
                lane.process.is_alive = False
            process.is_alive = False

        self.world.spawn(process, main)
        return process

    def _drive(self, process: Process) -> None:
        """What a command does, from making the set to its end."""
        machine = SimulatedMachine(self.world, process)
        storage = LocalStorage(ROOT, self.disk)
        shard_set = ShardSet.create(storage, self.plan, {"zarr.json": b"{}"})
        run_map(
            Texts(self),
            shard_set,
            Lanes(self, process, self.n_lanes),
            Journal(FileLog(Path(self.folder, f"{process.pid}.jsonl"))),
            title=process.name,
            stream=io.StringIO(),
            machine=machine,
        )

    def _happen(self, fault: str) -> None:
        """One of ``FAULTS``, to whom it may hit."""
        self.happened[fault] += 1
        self._note(f"*** {fault}")
        drivers = [process for process in self.drivers if process.is_alive]
        workers = [
            lane.process
            for driver in drivers
            for lane in self.lanes.get(driver.pid, [])
            if lane.process.is_alive
        ]
        if fault == "kill worker" and workers:
            self.world.kill(self.rng.choice(workers))
        elif fault == "kill driver" and drivers:
            self._kill_driver(self.rng.choice(drivers))
        elif fault == "power cut":
            for process in list(self.world.processes):
                self.world.kill(process)
            self.disk.lose_power()
            for host in self.hosts:
                host.n_boots += 1
            self._look()
        elif fault == "stall" and drivers + workers:
            process = self.rng.choice(drivers + workers)
            process.stalled_until = self.world.now + self.rng.choice([0.3, 5.0, 90.0, 400.0])
        elif fault == "disk":
            self.disk_errors = [self.rng.choice(DISK_ERRORS)] * self.rng.randint(1, 4)
        elif fault == "clock":
            self.rng.choice(self.hosts).clock_error += self.rng.choice([-3600.0, 90.0, 3600.0])
        elif fault == "give up" and workers:
            self.given_up.add(self.rng.choice(workers).pid)
        elif fault == "overlap":
            self._start_driver()
        elif fault == "replace":
            self.is_to_be_replaced = True
        elif fault == "die publishing":
            self.is_to_die = True

    def _replace(self, driver: Process) -> None:
        """As it publishes it falls asleep; another host takes over, and it wakes up again."""
        self.is_to_be_replaced = False
        driver.stalled_until = self.world.now + self.rng.uniform(70.0, 300.0)
        others = [host for host in self.hosts if host is not driver.host]
        self._start_driver(self.rng.choice(others), in_s=EXPIRY_S)

    def _kill_driver(self, driver: Process) -> None:
        """With its workers, or without: then they end once they have finished their shard."""
        takes_workers = self.rng.random() < 0.5
        self.world.kill(driver)
        if takes_workers:
            for lane in self.lanes.get(driver.pid, []):
                self.world.kill(lane.process)

    def _before(self, operation: str, path: str) -> None:
        """Each step on the disk: others may go on first, and the disk may fail."""
        process = self.world.current.process
        is_publishing = operation in ("rename", "link") and process in self.drivers
        if self.is_to_be_replaced and is_publishing and self.rng.random() < 0.3:
            self._replace(process)
        if self.is_to_die and operation == "sync folder" and process in self.drivers:
            share = 0.5 if path.endswith("/receipts") else 0.05
            self.is_to_die = self.rng.random() >= share
            process.is_alive = self.is_to_die
        self.world.pause()
        self._note(f"{process.name}: {operation} {path.removeprefix(ROOT)}")
        if self.disk_errors and operation not in ("size", "list") and self.rng.random() < 0.3:
            number = self.disk_errors.pop()
            raise OSError(number, os.strerror(number), path)

    def _look(self) -> None:
        """Every receipt vouches for the bytes that lie there, of one attempt; else a violation."""
        for error in self.world.errors:
            raise ViolationError(f"{type(error).__name__}: {error}") from error
        for shard in self._shards():
            receipt = self._content(receipt_key(shard))
            if receipt is None and self.is_told_complete:
                raise ViolationError(
                    f"shard {shard.index} is gone: a driver had told that it is there"
                )
            if receipt is None:
                continue
            try:
                facts = unsealed(receipt)
            except ValueError as error:
                raise ViolationError(f"shard {shard.index}: a torn receipt: {receipt!r}") from error
            contents = [self._content(key) for key in files_of(shard)]
            for key, content in zip(files_of(shard), contents, strict=True):
                if content is None or facts["files"][key] != vouch(content):
                    raise ViolationError(
                        f"shard {shard.index}: {key} is {content!r}, not what the receipt says"
                    )

    def _is_complete(self) -> bool:
        return all(self._content(receipt_key(shard)) is not None for shard in self._shards())

    def _shards(self) -> tuple[Shard, ...]:
        n_shards = self.plan["n_rows"] // 2
        return tuple(Shard(index, 2 * index, 2 * index + 2) for index in range(n_shards))

    def _content(self, key: str) -> bytes | None:
        file = self.disk.names.get(f"{ROOT}/{key}")
        return None if file is None else file.data

    def _note(self, line: str) -> None:
        if self.keeps_trace:
            self.world.trace.append(f"{self.world.now:10.3f} {line}")


def simulate(seed: int, folder: str, *, keeps_trace: bool = False) -> Story:
    """Tell the story of a seed, with its journals in a folder; what broke is in ``violation``."""
    story = Story(seed, folder, keeps_trace)
    try:
        story.tell()
    except ViolationError as error:
        story.violation = f"seed {seed}: {error}"
    finally:
        for process in list(story.world.processes):
            story.world.kill(process)
        for path in Path(folder).iterdir():
            path.unlink()
    return story


def main() -> None:
    """Run many seeds and print what happened in them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--trace", action="store_true", help="print every step of each seed")
    chosen = parser.parse_args()
    started = time.monotonic()
    happened: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    n_shards = n_computed = n_steps = 0
    violations: list[str] = []
    with TemporaryDirectory() as folder:
        for seed in range(chosen.first, chosen.first + chosen.seeds):
            story = simulate(seed, folder, keeps_trace=chosen.trace)
            if story.violation:
                violations.append(story.violation)
                print(story.violation, flush=True)
            for line in story.world.trace:
                print(line)
            happened += story.happened
            endings += story.endings
            n_shards += story.plan["n_rows"] // 2
            n_computed += story.computed.total()
            n_steps += story.world.n_steps
    seconds = time.monotonic() - started
    facts = {
        "seeds": chosen.seeds,
        "seeds per minute": round(60 * chosen.seeds / seconds),
        "steps": n_steps,
        "violations": len(violations),
        "shards": n_shards,
        "shards computed": n_computed,
        "faults": dict(happened.most_common()),
        "endings of drivers": dict(endings.most_common()),
    }
    print(json.dumps(facts, indent=2))
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
