"""Production code on a simulated disk, killed, stalled and overlapping, by seed.

The runner, the worker, the loop, the lease and the store are those of production; the disk, the
clocks and the scheduler are simulated. ``simulate(seed)`` tells one story: some drivers of one set,
loop or artifact, one after the other and beside each other, with what goes wrong drawn from the
seed; then all processes end, nothing goes wrong any more, and one last driver runs. Whenever what
they made is looked at, it must be as ``simulated_sets`` and ``simulated_loops`` say; at the end it
must be complete. Of two drivers one is refused, and who was relieved publishes nothing more.

    python tests/simulation.py --seeds 1000            # from seed 0
    python tests/simulation.py --first 4711 --seeds 1 --trace
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
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
"""What can hit any work; each has more of its own."""

KINDS: dict[str, Callable[[Story], SetWork | ArtifactWork]] = {
    "set": SetWork,
    "repair": RepairWork,
    "loop": LoopWork,
    "artifact": ArtifactWork,
}
MIXED = ("set", "set", "set", "repair", "loop", "artifact")
"""The kind of a story follows from its seed: half of them are of the main one."""

DISK_ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)
CALM_S = 200.0
"""A driver that has not slept for so long, and can write, has told that it is alive."""


@dataclass
class Story:
    """What happens in one seed."""

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
        self.complaint = ""
        faults = (*FAULTS, *self.work.faults)
        favourite = self.rng.choice(faults)  # the same fault again and again reaches further
        self.fault_at = {
            self.rng.randint(1, 200 * self.work.n_units): self.rng.choice(
                [*faults, *[favourite] * 8]
            )
            for _ in range(self.rng.choice([0, 1, 2, 3, 5, 8]))
        }
        self.later: list[tuple[float, Process]] = []

    def tell(self) -> None:
        """Let it happen; raises ``ViolationError``."""
        self.start(self.work.drive, "driver")
        while self.world.n_steps < MAX_STEPS:
            if fault := self.fault_at.pop(self.world.n_steps, None):
                self._happen(fault)
            if self.world.n_steps % 50 == 0:
                self._look()
            if not self.at_work:
                if len(self.drivers) >= MAX_LIVES:
                    break
                self.world.now += self.rng.choice([0.0, 1.0, 100.0])
                if not self.work.go_on():
                    break
            self._step()
        self._end()

    def start(
        self, command: Command, name: str, host: Host | None = None, in_s: float = 0.0
    ) -> Process:
        """A new driver on that host, or on any, which does what the command says."""
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
        """What lies under a key, of the work unless another root is named."""
        file = self.disk.names.get(f"{root or self.work.root}/{key}")
        return None if file is None else file.data

    def complain(self, what: str) -> None:
        """The store has broken its word: what a process has found, which goes on none the wiser."""
        self.complaint = self.complaint or what

    def _step(self) -> None:
        if not self.world.step():
            raise ViolationError("nothing can go on")
        if self.complaint:
            raise ViolationError(self.complaint)
        for moment, process in list(self.later):
            if moment <= self.world.now:
                self.later.remove((moment, process))
                self.world.interrupt(process)

    def _end(self) -> None:
        """Everything stops; then one driver runs that nothing disturbs."""
        if self.rng.random() < 0.5:
            self._happen("power cut")
        for process in list(self.world.processes):
            self.world.kill(process)
        self.fault_at, self.disk_errors, self.later = {}, [], []
        self.is_to_be_replaced = self.is_to_die = self.is_to_wake = False
        self.failing = 0.0
        self.work.calm_down()
        self._look()
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
        self._look()
        if not self.work.is_complete():
            raise ViolationError(f"not complete at the end: {dict(self.endings)}")
        litter = [
            path for path in self.disk.names if path.startswith(f"{self.work.root}/{STAGING}/")
        ]
        if litter and not was_complete:  # where nothing is missing no driver takes the lease
            raise ViolationError(f"litter at the end: {litter}")

    def _happen(self, fault: str) -> None:
        """One of ``FAULTS``, to whom it may hit."""
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
            self._look()
        elif fault == "stall" and drivers + workers:
            process = self.rng.choice(drivers + workers)
            self._fall_asleep(process, self.rng.choice([0.3, 5.0, 90.0, 400.0]))
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
            self._relieve_twice(self.rng.choice(drivers))
        elif fault == "wake beside" and drivers:
            driver = self.rng.choice(drivers)
            self._fall_asleep(driver, 900.0)
            self.work.relieve(self._another_host(driver))
            self.is_to_wake = True
        else:
            self.work.happen(fault)

    def _replace(self, driver: Process) -> None:
        """As it publishes it falls asleep; another host takes over, and it wakes up again."""
        self.is_to_be_replaced = False
        self._fall_asleep(driver, self.rng.choice([1.0, 2.0]) * self.rng.uniform(70.0, 300.0))
        self.work.relieve(self._another_host(driver))

    def _relieve_twice(self, driver: Process) -> None:
        """It sleeps while another takes over and is interrupted, and while a third one works."""
        self._fall_asleep(driver, self.rng.uniform(200.0, 400.0))
        host = self._another_host(driver)
        second = self.start(self.work.drive, "driver", host, in_s=EXPIRY_S)
        self.later.append((self.world.now + EXPIRY_S + self.rng.uniform(25.0, 60.0), second))
        self.start(self.work.drive, "driver", host, in_s=EXPIRY_S + self.rng.uniform(60.0, 200.0))

    def _wake(self, process: Process) -> None:
        """As another is about to take a lease, who slept wakes up, and may fall asleep again."""
        self.is_to_wake, self.is_to_be_replaced = False, True
        for driver in self.at_work:
            driver.stalled_until = min(driver.stalled_until, self.world.now)
        self._fall_asleep(process, self.rng.choice([0.0, 10.0, 60.0, 120.0]))

    def _fall_asleep(self, process: Process, seconds: float) -> None:
        process.stalled_until = self.world.now + seconds

    def _another_host(self, driver: Process) -> Host:
        return self.rng.choice([host for host in self.hosts if host is not driver.host])

    def _kill_driver(self, driver: Process) -> None:
        """With its workers, or without: then they end once they have finished their shard."""
        takes_workers = self.rng.random() < 0.5
        children = self.work.children(driver)
        self.world.kill(driver)
        if takes_workers:
            for child in children:
                self.world.kill(child)

    def _before(self, operation: str, path: str) -> None:
        """Each step on the disk: others may go on first, and the disk may fail."""
        process = self.world.current.process
        if process in self.drivers:
            self._strike(process, operation, path)
        self.world.pause()
        self._note(f"{process.name}: {operation} {path.removeprefix(self.work.root)}")
        if self.disk_errors and operation not in ("size", "list") and self.rng.random() < 0.3:
            number = self.disk_errors.pop()
            raise OSError(number, os.strerror(number), path)

    def _strike(self, driver: Process, operation: str, path: str) -> None:
        """What has waited for this very moment."""
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
        """A file got a name."""
        process = self.world.current.process
        if target.startswith(f"{self.work.root}/{LEASES}/"):
            if operation == "link":
                self.tenures.take(process, target)
        elif target.startswith(f"{self.work.root}/") and f"/{QUARANTINE}/" not in target:
            self.tenures.require(process, target)

    def _look(self) -> None:
        """What was made is as it should be, and nobody died of an error; else a violation."""
        for error in self.world.errors:
            raise ViolationError(f"{type(error).__name__}: {error}") from error
        self.work.look()

    def _note(self, line: str) -> None:
        if self.keeps_trace:
            self.world.trace.append(f"{self.world.now:10.3f} {line}")


class Tenures:
    """Who holds the lease of the work, as it is seen from outside.

    Who is alive and says so is not relieved; who was relieved publishes nothing any more.
    """

    def __init__(self, story: Story) -> None:
        self._story = story
        self._taken: dict[int, int] = {}
        self._depths: Counter[int] = Counter()
        self._begun: set[int] = set()
        self._newest = 0
        self._holder: Process | None = None

    def take(self, process: Process, target: str) -> None:
        """A process has created a lease: the later, the stronger, if it has the highest number."""
        self._taken[process.pid] = max(self._taken.values(), default=0) + 1
        if target == max(path for path in self._story.disk.names if _is_lease(path, target)):
            holder, self._holder = self._holder, process
            if holder is not None and holder.is_alive and self._depths[holder.pid] > 0:
                self._require_doubts(holder, process)

    def has_begun(self, process: Process) -> bool:
        return process.pid in self._begun

    def begin(self, process: Process) -> None:
        """A process holds the lease, or a second one of something else beside it."""
        self._depths[process.pid] += 1
        if self._depths[process.pid] > 1:
            return
        self._begun.add(process.pid)
        number = self._taken.get(process.pid, 0)
        self._newest = max(self._newest, number)  # it may have slept before it could begin

    def end(self, process: Process) -> None:
        """A process is about to give its lease back."""
        self._depths[process.pid] -= 1
        if self._depths[process.pid] == 0 and self._holder is process:
            self._holder = None

    def require(self, process: Process, target: str) -> None:
        """Only who was not relieved publishes."""
        if process.pid in self._begun and self._taken.get(process.pid, 0) < self._newest:
            self._story.complain(f"{process.name} published {target} after it was relieved")

    def _require_doubts(self, holder: Process, process: Process) -> None:
        """Who took over must have had a reason to take the holder for dead."""
        story, told = self._story, f"{process.name} took over from {holder.name}, which is alive"
        if holder.host is process.host:
            story.complain(f"{told} on the same machine")
        is_awake = not holder.stalled_until or story.world.now - holder.stalled_until > CALM_S
        # On a slow disk a heartbeat takes long; wrong clocks leave it 20 s, not 60.
        are_clocks_right = not story.happened["clock"]
        is_fast = story.world.step_s <= (0.1 if are_clocks_right else 0.01)
        if is_awake and is_fast and not story.happened["disk"]:
            story.complain(f"{told} and beats")


def _is_lease(path: str, other: str) -> bool:
    return path.rpartition("/")[0] == other.rpartition("/")[0]


def simulate(seed: int, folder: str, *, kind: str = "", keeps_trace: bool = False) -> Story:
    """Tell the story of a seed, with its journals in a folder; what broke is in ``violation``."""
    story = Story(seed, folder, kind or MIXED[seed % len(MIXED)], keeps_trace)
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
    parser.add_argument("--kind", choices=[*KINDS], default="", help="stories of this kind alone")
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
