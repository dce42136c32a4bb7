"""Production code on a simulated disk, killed, stalled and run concurrently, by seed.

The runner, the worker, the loop, the lease and the store are those of production; the disk, the
clocks and the scheduler are simulated. ``simulate(seed)`` runs one story: several drivers of one
set, loop or artifact, one after the other and concurrently, with faults drawn from the seed. Then
all processes end, no more faults occur, and one last driver runs. Whenever the output is checked,
it must satisfy ``simulated_sets`` and ``simulated_loops``; at the end it must be complete. Of two
drivers one is refused, and a driver that has lost its lease publishes nothing.

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
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from simulated_disk import SimulatedDisk
from simulated_loops import ArtifactWork, LoopWork
from simulated_sets import Command, RepairWork, SetWork, ViolationError
from simulated_world import Host, Process, SimulatedMachine, World

from pipeline.errors import PipelineError
from store.errors import StoreError
from store.lease import EXPIRY_S, LEASES
from store.shardset import PLAN_KEY
from store.storage import STAGING
from store.verify import QUARANTINE

MAX_STEPS = 60_000
MAX_LIVES = 8
FAULTS = (
    "kill driver",
    "power cut",
    "stall",
    "disk",
    "clock",
    "overlap",
    "replace",
    "die publishing",
    "interrupt",
    "relieve twice",
    "wake beside",
)
"""Faults that can hit any work; each kind of work has more of its own."""

KINDS: dict[str, Callable[[Story], SetWork | ArtifactWork]] = {
    "set": SetWork,
    "repair": RepairWork,
    "loop": LoopWork,
    "artifact": ArtifactWork,
}
MIXED = ("set", "set", "set", "repair", "loop", "artifact")
"""The kind of a story follows from its seed; half of the stories are of the main kind."""

DISK_ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)
CALM_S = 200.0
"""A driver that has been awake for this long, and can write, has sent heartbeats."""


@dataclass
class Story:
    """What happens for one seed."""

    seed: int
    folder: str
    kind: str
    keeps_trace: bool = False
    happened: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    violation: str = ""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.world = World(self.rng, self.rng.choice([0.002, 0.1, 1.0]))
        self.disk = SimulatedDisk(self.rng, self._before, self._moved)
        self.hosts = [Host("a"), Host("b")]
        self.failing = self.rng.choice([0.0, 0.0, 0.1])
        self.work_s = self.rng.choice([8.0, 8.0, 60.0])
        self.work = KINDS[self.kind](self)
        self.disk_errors: list[int] = []
        self.is_to_be_replaced = self.is_to_die = self.is_to_wake = False
        self.drivers: list[Process] = []
        self.tenures = Tenures(self)
        self.reported_violation = ""
        faults = (*FAULTS, *self.work.faults)
        favourite = self.rng.choice(faults)  # repeating a fault reaches deeper states
        self.fault_at = {
            self.rng.randint(1, 200 * self.work.n_units): self.rng.choice(
                [*faults, *[favourite] * 8]
            )
            for _ in range(self.rng.choice([0, 1, 2, 3, 5, 8]))
        }
        self.later: list[tuple[float, Process]] = []

    def run(self) -> None:
        """Run the story; raises ``ViolationError``."""
        self.start(self.work.drive, "driver")
        while self.world.n_steps < MAX_STEPS:
            if fault := self.fault_at.pop(self.world.n_steps, None):
                self._happen(fault)
            if self.world.n_steps % 50 == 0:
                self._check()
            if not self.at_work:
                if len(self.drivers) >= MAX_LIVES:
                    break
                self.world.now += self.rng.choice([0.0, 1.0, 100.0])
                if not self.work.start_next():
                    break
            self._step()
        self._end()

    def start(
        self, command: Command, name: str, host: Host | None = None, in_s: float = 0.0
    ) -> Process:
        """Start a driver that runs a command, on a given or random host."""
        host = host or self.rng.choice(self.hosts)
        process = self.world.process(host, f"{name} {len(self.drivers)}")
        self.drivers.append(process)
        self._note(f"{process.name} starts on {process.host.name}")
        machine = SimulatedMachine(self.world, process, self.tenures.begin, self.tenures.end)

        def main() -> None:
            ending = "complete"
            try:
                self.world.sleep(in_s)
                command(process, machine)
            except (StoreError, PipelineError, OSError, ValueError, KeyboardInterrupt) as error:
                ending = type(error).__name__
                self._note(f"{process.name}: {ending}: {error}")
            self.endings[ending] += 1
            self._note(f"{process.name} ends: {ending}")
            for child in self.work.children(process):
                child.is_alive = False
            process.is_alive = False

        self.world.spawn(process, main)
        return process

    @property
    def at_work(self) -> list[Process]:
        """The drivers that are alive."""
        return [process for process in self.drivers if process.is_alive]

    def content(self, key: str, root: str = "") -> bytes | None:
        """Content of a key, in the work's root unless another is given."""
        file = self.disk.names.get(f"{root or self.work.root}/{key}")
        return None if file is None else file.data

    def report_violation(self, what: str) -> None:
        """Record a violation found inside a process, which continues as if nothing happened."""
        self.reported_violation = self.reported_violation or what

    def _step(self) -> None:
        if not self.world.step():
            raise ViolationError("no task can continue")
        if self.reported_violation:
            raise ViolationError(self.reported_violation)
        for moment, process in list(self.later):
            if moment <= self.world.now:
                self.later.remove((moment, process))
                self.world.interrupt(process)

    def _end(self) -> None:
        """Stop everything, then run one driver without faults."""
        if self.rng.random() < 0.5:
            self._happen("power cut")
        for process in list(self.world.processes):
            self.world.kill(process)
        self.fault_at, self.disk_errors, self.later = {}, [], []
        self.is_to_be_replaced = self.is_to_die = self.is_to_wake = False
        self.failing = 0.0
        self.work.stop_faults()
        self._check()
        was_complete = self.work.is_complete()
        for host in self.hosts:
            host.clock_error = 0.0
        for command in self.work.last_commands():
            self.world.now += 1000.0
            last, limit = self.start(command, "last"), self.world.n_steps + MAX_STEPS
            while last.is_alive and self.world.n_steps < limit:
                self._step()
        for process in list(self.world.processes):
            self.world.kill(process)
        self._check()
        if not self.work.is_complete():
            raise ViolationError(f"not complete at the end: {dict(self.endings)}")
        litter = [
            path for path in self.disk.names if path.startswith(f"{self.work.root}/{STAGING}/")
        ]
        if litter and not was_complete:  # if nothing is missing, no driver takes the lease
            raise ViolationError(f"litter at the end: {litter}")

    def _happen(self, fault: str) -> None:
        """Cause one of ``FAULTS`` in a random process."""
        self.happened[fault] += 1
        self._note(f"*** {fault}")
        drivers = self.at_work
        workers = [child for driver in drivers for child in self.work.children(driver)]
        if fault == "kill driver" and drivers:
            self._kill_driver(self.rng.choice(drivers))
        elif fault == "power cut":
            for process in list(self.world.processes):
                self.world.kill(process)
            self.disk.lose_power()
            for host in self.hosts:
                host.n_boots += 1
            self._check()
        elif fault == "stall" and drivers + workers:
            process = self.rng.choice(drivers + workers)
            self._stall(process, self.rng.choice([0.3, 5.0, 90.0, 400.0]))
        elif fault == "disk":
            self.disk_errors = [self.rng.choice(DISK_ERRORS)] * self.rng.randint(1, 4)
        elif fault == "clock":
            self.rng.choice(self.hosts).clock_error += self.rng.choice([-3600.0, 90.0, 3600.0])
        elif fault == "overlap":
            self.start(self.work.drive, "driver")
        elif fault == "replace":
            self.is_to_be_replaced = True
        elif fault == "die publishing":
            self.is_to_die = True
        elif fault == "interrupt" and drivers:
            self.world.interrupt(self.rng.choice(drivers))
        elif fault == "relieve twice" and drivers:
            self._replace_twice(self.rng.choice(drivers))
        elif fault == "wake beside" and drivers:
            driver = self.rng.choice(drivers)
            self._stall(driver, 900.0)
            self.work.start_successor(self._another_host(driver))
            self.is_to_wake = True
        else:
            self.work.happen(fault)

    def _replace(self, driver: Process) -> None:
        """The driver stalls while publishing; another host takes over, and it wakes up again."""
        self.is_to_be_replaced = False
        self._stall(driver, self.rng.choice([1.0, 2.0]) * self.rng.uniform(70.0, 300.0))
        self.work.start_successor(self._another_host(driver))

    def _replace_twice(self, driver: Process) -> None:
        """The driver stalls while another takes over and is interrupted, and a third one works."""
        self._stall(driver, self.rng.uniform(200.0, 400.0))
        host = self._another_host(driver)
        second = self.start(self.work.drive, "driver", host, in_s=EXPIRY_S)
        self.later.append((self.world.now + EXPIRY_S + self.rng.uniform(25.0, 60.0), second))
        self.start(self.work.drive, "driver", host, in_s=EXPIRY_S + self.rng.uniform(60.0, 200.0))

    def _wake(self, process: Process) -> None:
        """A stalled driver wakes up as another takes a lease, and may stall again."""
        self.is_to_wake, self.is_to_be_replaced = False, True
        for driver in self.at_work:
            driver.stalled_until = min(driver.stalled_until, self.world.now)
        self._stall(process, self.rng.choice([0.0, 10.0, 60.0, 120.0]))

    def _stall(self, process: Process, seconds: float) -> None:
        process.stalled_until = self.world.now + seconds

    def _another_host(self, driver: Process) -> Host:
        return self.rng.choice([host for host in self.hosts if host is not driver.host])

    def _kill_driver(self, driver: Process) -> None:
        """Kill a driver with its workers, or without: then they finish their shard and end."""
        takes_workers = self.rng.random() < 0.5
        children = self.work.children(driver)
        self.world.kill(driver)
        if takes_workers:
            for child in children:
                self.world.kill(child)

    def _before(self, operation: str, path: str) -> None:
        """Before each step on the disk: other tasks may run, and the disk may fail."""
        process = self.world.current.process
        if process in self.drivers:
            self._strike(process, operation, path)
        self.world.pause()
        self._note(f"{process.name}: {operation} {path.removeprefix(self.work.root)}")
        if self.disk_errors and operation not in ("size", "list") and self.rng.random() < 0.3:
            number = self.disk_errors.pop()
            raise OSError(number, os.strerror(number), path)

    def _strike(self, driver: Process, operation: str, path: str) -> None:
        """Cause the faults that wait for this moment."""
        is_lease = operation == "link" and f"/{PLAN_KEY}." not in path
        is_taking = is_lease and not self.tenures.has_begun(driver)
        is_publishing = operation in ("rename", "link") or (
            operation == "unlink" and path.startswith(f"{self.work.root}/receipts/")
        )
        if self.is_to_wake and is_taking:
            self._wake(driver)
        elif self.is_to_be_replaced and is_publishing and self.rng.random() < 0.3:
            self._replace(driver)
        if self.is_to_die and operation == "sync folder":
            share = 0.5 if path.endswith("/receipts") else 0.05
            self.is_to_die = self.rng.random() >= share
            driver.is_alive = self.is_to_die

    def _moved(self, operation: str, target: str) -> None:
        """Called when a file got a name."""
        process = self.world.current.process
        if target.startswith(f"{self.work.root}/{LEASES}/"):
            if operation == "link":
                self.tenures.take(process, target)
        elif target.startswith(f"{self.work.root}/") and f"/{QUARANTINE}/" not in target:
            self.tenures.require(process, target)

    def _check(self) -> None:
        """Raise ``ViolationError`` if the output is wrong, or a task ended with an error."""
        for error in self.world.errors:
            raise ViolationError(f"{type(error).__name__}: {error}") from error
        self.work.check()

    def _note(self, line: str) -> None:
        if self.keeps_trace:
            self.world.trace.append(f"{self.world.now:10.3f} {line}")


class Tenures:
    """The holder of the lease of the work, as observed from outside.

    A driver that is alive and sends heartbeats must not be replaced; a driver that was replaced
    must not publish.
    """

    def __init__(self, story: Story) -> None:
        self._story = story
        self._taken: dict[int, int] = {}
        self._depths: Counter[int] = Counter()
        self._begun: set[int] = set()
        self._newest = 0
        self._holder: Process | None = None

    def take(self, process: Process, target: str) -> None:
        """A process has created a lease, which is valid if it has the highest number."""
        self._taken[process.pid] = max(self._taken.values(), default=0) + 1
        if target == max(path for path in self._story.disk.names if _is_lease(path, target)):
            holder, self._holder = self._holder, process
            if holder is not None and holder.is_alive and self._depths[holder.pid] > 0:
                self._require_doubts(holder, process)

    def has_begun(self, process: Process) -> bool:
        return process.pid in self._begun

    def begin(self, process: Process) -> None:
        """A process holds the lease, or a second lease of something else in addition."""
        self._depths[process.pid] += 1
        if self._depths[process.pid] > 1:
            return
        self._begun.add(process.pid)
        number = self._taken.get(process.pid, 0)
        self._newest = max(self._newest, number)  # it may have stalled before it could begin

    def end(self, process: Process) -> None:
        """A process is about to release its lease."""
        self._depths[process.pid] -= 1
        if self._depths[process.pid] == 0 and self._holder is process:
            self._holder = None

    def require(self, process: Process, target: str) -> None:
        """A driver that was replaced must not publish."""
        if process.pid in self._begun and self._taken.get(process.pid, 0) < self._newest:
            self._story.report_violation(f"{process.name} published {target} after it was replaced")

    def _require_doubts(self, holder: Process, process: Process) -> None:
        """A driver that took over must have had a reason to consider the holder dead."""
        story, claim = self._story, f"{process.name} took over from {holder.name}, which is alive"
        if holder.host is process.host:
            story.report_violation(f"{claim} on the same machine")
        is_awake = not holder.stalled_until or story.world.now - holder.stalled_until > CALM_S
        # On a slow disk a heartbeat takes long; wrong clocks leave 20 s for it, not 60.
        are_clocks_right = not story.happened["clock"]
        is_fast = story.world.step_s <= (0.1 if are_clocks_right else 0.01)
        if is_awake and is_fast and not story.happened["disk"]:
            story.report_violation(f"{claim} and sends heartbeats")


def _is_lease(path: str, other: str) -> bool:
    return path.rpartition("/")[0] == other.rpartition("/")[0]


def simulate(seed: int, folder: str, *, kind: str = "", keeps_trace: bool = False) -> Story:
    """Run the story of a seed, with its journals in a folder; see ``violation`` for failures."""
    story = Story(seed, folder, kind or MIXED[seed % len(MIXED)], keeps_trace)
    try:
        with redirect_stderr(io.StringIO()):  # progress
            story.run()
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
    parser.add_argument("--seeds", type=int, default=1000, help="number of seeds")
    parser.add_argument("--kind", choices=[*KINDS], default="", help="only stories of this kind")
    parser.add_argument("--trace", action="store_true", help="print every step of each seed")
    chosen = parser.parse_args()
    started = time.monotonic()
    happened: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    violations: list[str] = []
    with TemporaryDirectory() as folder:
        for seed in range(chosen.first, chosen.first + chosen.seeds):
            story = simulate(seed, folder, kind=chosen.kind, keeps_trace=chosen.trace)
            if story.violation:
                violations.append(story.violation)
                print(story.violation, flush=True)
            for line in story.world.trace:
                print(line)
            happened += story.happened
            endings += story.endings
            counts["steps"] += story.world.n_steps
            counts[f"stories of a {story.kind}"] += 1
            counts[f"units of a {story.kind}"] += story.work.n_units
            counts[f"units of a {story.kind} computed"] += story.work.n_computed
    seconds = time.monotonic() - started
    facts = {
        "seeds": chosen.seeds,
        "seeds per minute": round(60 * chosen.seeds / seconds),
        "violations": len(violations),
        **counts,
        "faults": dict(happened.most_common()),
        "endings of drivers": dict(endings.most_common()),
    }
    print(json.dumps(facts, indent=2))
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
