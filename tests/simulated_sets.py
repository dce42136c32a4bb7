"""Work of a story, part 1: a set of shards, made by drivers and workers, damaged and repaired."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simulated_world import Host, Process, SimulatedMachine

from pipeline.executors import Watch
from pipeline.journal import Journal
from pipeline.runner import run_map
from pipeline.work import ShardOutput, Task, Tick, Work
from pipeline.worker import Outcome, Worker
from store.lease import EXPIRY_S
from store.plan import Plan
from store.seal import unsealed, vouch
from store.shards import Shard, shards_of
from store.shardset import ShardSet, receipt_key
from store.storage import FileLog, LocalStorage
from store.verify import repair, verify_files

if TYPE_CHECKING:
    from simulation import Story

Command = Callable[[Process, SimulatedMachine], None]
"""What a started process does."""


class ViolationError(AssertionError):
    """The store broke a guarantee."""


class InputsChangedError(ValueError):
    """Raised by a stage whose inputs are no longer the planned ones."""


class Attempt(NamedTuple):
    """An attempt at a shard, and how often the inputs had changed: odd counts mean wrong inputs."""

    shard: int
    number: int
    driver: int
    n_changes: int

    @property
    def content(self) -> bytes:
        return f"{self.shard} {self.number}".encode()

    @property
    def are_inputs_right(self) -> bool:
        return self.n_changes % 2 == 0


@dataclass(frozen=True)
class Texts:
    """A stage with two small files per shard, whose content identifies the attempt.

    Attempts at a shard write different bytes, as different batch sizes would, so a shard whose
    files come from two attempts is recognised as a mixture.
    """

    about: SetWork
    name: str = "texts"
    version: int = 1
    rows: str = "rows"

    def check(self, plan: Plan) -> None:
        if self.about.n_changes % 2:
            self.about.doubtful.add(self.about.story.world.current.process.pid)
            raise InputsChangedError("the inputs have changed")

    def setup(self, n_threads: int) -> int:
        self.about.story.world.sleep(self.about.story.rng.uniform(0, 5))
        return n_threads

    def compute(self, state: int, shard: Shard, tick: Tick) -> ShardOutput:
        story, about = self.about.story, self.about
        attempt = about.begin(shard)
        story.world.sleep(story.rng.expovariate(1 / story.work_s))
        if story.rng.random() < story.failing:
            raise RuntimeError("a transient error")
        return ShardOutput(dict.fromkeys(files_of(shard), attempt.content), {"failed": {}})


def files_of(shard: Shard) -> tuple[str, str]:
    return f"features/c/{shard.index}/0", f"samples/part-{shard.index:05d}.parquet"


@dataclass(eq=False)
class Lane:
    """A worker process and the shards that it is to compute."""

    process: Process
    inbox: deque[Task] = field(default_factory=deque)


@dataclass
class Lanes:
    """Implements ``pipeline.executors.Executor`` with simulated processes.

    Answers arrive late, and sometimes twice; a worker that is given up may be alive and answer.
    """

    about: SetWork
    driver: Process
    description: str = "simulated workers"

    def check(self) -> None:
        pass

    def run(self, work: Work, todo: deque[Task], watch: Watch) -> Iterator[Outcome]:
        world = self.about.story.world
        answers: deque[Outcome] = deque()
        lanes = [self._started(work, number, answers) for number in range(self.about.n_lanes)]
        self.about.lanes[self.driver.pid] = lanes
        running: dict[int, Task] = {}
        while todo or running:
            for number, lane in enumerate(lanes):
                if todo and number not in running:
                    running[number] = todo.popleft()
                    lane.inbox.append(running[number])
            world.wait(lambda: bool(answers) or bool(self._lost(lanes, running)))
            if answers:
                outcome = answers.popleft()
                if running.get(outcome.lane) == outcome.task:
                    del running[outcome.lane]
                yield outcome
                continue
            for number in self._lost(lanes, running):
                task = running.pop(number)
                lanes[number] = self._started(work, number, answers)
                yield Outcome(task, number, 0.0, error=f"worker {number} died")
        for lane in lanes:
            lane.process.is_alive = False  # as Ray kills its actors; they hold no shard

    def _lost(self, lanes: list[Lane], running: dict[int, Task]) -> list[int]:
        given_up = self.about.given_up
        return [
            number
            for number in running
            if not lanes[number].process.is_alive or lanes[number].process.pid in given_up
        ]

    def _started(self, work: Work, number: int, answers: deque[Outcome]) -> Lane:
        story = self.about.story
        lane = Lane(story.world.process(self.driver.host, f"worker {number}"))
        self.about.driver_of[lane.process.pid] = self.driver.pid

        def main() -> None:
            worker = Worker(work, number, 1)
            while self.driver.is_alive:
                story.world.wait(lambda: bool(lane.inbox) or not self.driver.is_alive)
                if lane.inbox:
                    outcome = worker.run(lane.inbox.popleft())
                    story.world.sleep(story.rng.choice([0.0, 0.0, 0.1, 5.0]))
                    answers.append(outcome)
                    if story.rng.random() < self.about.twice:
                        answers.append(outcome)

        story.world.spawn(lane.process, main)
        return lane


class SetWork:
    """Drivers complete a set.

    Every receipt must match the existing bytes of one attempt; once a driver has reported that the
    set is complete, no shard may be missing.
    """

    faults: tuple[str, ...] = ("kill worker", "give up")

    def __init__(self, story: Story) -> None:
        self.story = story
        self.root = "/store/features/set"
        n_shards = story.rng.randint(1, 5)
        self.n_units = n_shards
        self.plan: dict[str, Any] = {"n_rows": 2 * n_shards, "shard_rows": 2}
        self.shards = shards_of(2 * n_shards, 2)
        self.n_lanes = story.rng.randint(1, 3)
        self.twice = story.rng.choice([0.0, 0.1])
        self.computed: Counter[int] = Counter()
        self.attempts: dict[bytes, Attempt] = {}
        self.lanes: dict[int, list[Lane]] = {}
        self.driver_of: dict[int, int] = {}
        self.given_up: set[int] = set()
        self.n_changes = 0
        self.doubtful: set[int] = set()
        self.is_reported_complete = False

    @property
    def n_computed(self) -> int:
        return self.computed.total()

    def begin(self, shard: Shard) -> Attempt:
        """Record that a worker begins a shard."""
        self.computed[shard.index] += 1
        driver = self.driver_of[self.story.world.current.process.pid]
        number = self.computed[shard.index]
        attempt = Attempt(shard.index, number, driver, self.n_changes)
        self.attempts[attempt.content] = attempt
        return attempt

    def children(self, driver: Process) -> list[Process]:
        return [lane.process for lane in self.lanes.get(driver.pid, []) if lane.process.is_alive]

    def drive(self, process: Process, machine: SimulatedMachine) -> None:
        """Run a command from creating the set to its end."""
        storage = LocalStorage(self.root, self.story.disk)
        shard_set = ShardSet.create(storage, self.plan, {"zarr.json": b"{}"})
        run_map(
            Texts(self),
            shard_set,
            Lanes(self, process),
            Journal(FileLog(Path(self.story.folder, f"{process.pid}.jsonl"))),
            title=process.name,
            machine=machine,
        )
        self.report_complete()

    def report_complete(self) -> None:
        """A driver reports that the set is complete."""
        self.is_reported_complete = True

    def happen(self, fault: str) -> None:
        """Cause a fault that only this work has."""
        workers = [child for driver in self.story.at_work for child in self.children(driver)]
        if workers and fault == "kill worker":
            self.story.world.kill(self.story.rng.choice(workers))
        elif workers and fault == "give up":
            self.given_up.add(self.story.rng.choice(workers).pid)

    def stop_faults(self) -> None:
        """Stop causing faults."""
        self.twice = 0.0

    def check(self) -> None:
        """Check the set; raises ``ViolationError``."""
        for shard in self.shards:
            receipt = self.story.content(receipt_key(shard))
            if receipt is not None:
                self._check_shard(shard, receipt)
            elif self._is_to_stay(shard):
                raise ViolationError(
                    f"shard {shard.index} is gone: a driver had reported it as complete"
                )

    def start_next(self) -> bool:
        """Start the next command when all have ended; returns whether anything is left to do."""
        if self.is_reported_complete:
            return False
        self.story.start(self.drive, "driver")
        return True

    def start_successor(self, host: Host) -> None:
        """Start a successor, on a host, for a driver that is stalled."""
        self.story.start(self.drive, "driver", host, in_s=EXPIRY_S)

    def last_commands(self) -> list[Command]:
        """Commands to run at the end, one after the other, without faults."""
        return [self.drive]

    def is_complete(self) -> bool:
        return all(self.story.content(receipt_key(shard)) is not None for shard in self.shards)

    def _is_to_stay(self, shard: Shard) -> bool:
        return self.is_reported_complete

    def _check_shard(self, shard: Shard, receipt: bytes) -> bytes:
        """Check that the receipt matches the existing bytes of one attempt, and return them."""
        try:
            facts = unsealed(receipt)
        except ValueError as error:
            raise ViolationError(f"shard {shard.index}: a torn receipt: {receipt!r}") from error
        contents = {key: self.story.content(key) for key in files_of(shard)}
        for key, content in contents.items():
            if content is None or facts["files"][key] != vouch(content):
                raise ViolationError(
                    f"shard {shard.index}: {key} is {content!r}, which the receipt does not match"
                )
        first, *others = contents.values()
        assert first is not None
        is_of_shard = first in self.attempts and self.attempts[first].shard == shard.index
        if not is_of_shard or any(other != first for other in others):
            raise ViolationError(f"shard {shard.index}: a mixture: {contents}")
        return first


class RepairWork(SetWork):
    """Like ``SetWork``, while bytes rot, inputs change, and `repair` runs beside drivers.

    Bad shards, which rotted or came from other inputs, may be discarded, and must then never come
    back; good ones stay once a driver has reported that the set is complete.
    """

    faults = (*SetWork.faults, "rot", "repair", "change inputs")

    def __init__(self, story: Story) -> None:
        super().__init__(story)
        self.rotten: dict[str, bytes | None] = {}
        self.rotted: set[bytes] = set()
        self.taken_back: set[bytes] = set()
        self.reported: dict[int, bytes] = {}

    def drive(self, process: Process, machine: SimulatedMachine) -> None:
        try:
            super().drive(process, machine)
            self._require_right_inputs(process)
        except InputsChangedError:
            # Only its own: what a killed driver has left is not known to be wrong.
            self.taken_back |= {
                attempt.content
                for attempt in self.attempts.values()
                if attempt.driver == process.pid and not attempt.are_inputs_right
            }
            raise

    def repair(self, process: Process, machine: SimulatedMachine) -> None:
        """Do what `intro-pipe repair` does: read every byte, then discard what is damaged."""
        shard_set = ShardSet.open(LocalStorage(self.root, self.story.disk))
        problems = list(verify_files(shard_set))
        # A file that the disk fails to read counts as damaged.
        unread = [p.shard for p in problems if p.shard is not None and p.kind == "unreadable"]
        self.rotted |= {self._vouched(shard) for shard in unread} & self.attempts.keys()
        # If there are many sets, the others are read in the meantime.
        self.story.world.sleep(self.story.rng.choice([0.0, 1.0, 60.0, 300.0]))
        rotted = set(self.rotted)
        taken_back = {shard.index for shard in repair(shard_set, problems, machine=machine)}
        self.taken_back |= {c for c in rotted if self.attempts[c].shard in taken_back}
        if taken_back and self.story.rng.random() < 0.3:
            self.story.fault_at[self.story.world.n_steps] = "power cut"

    def report_complete(self) -> None:
        super().report_complete()
        for shard in self.shards:
            if self.story.content(receipt_key(shard)) is None:
                if not self._is_bad(shard, self.reported.get(shard.index)):
                    self.story.report_violation(f"shard {shard.index} is missing, but was reported")
            elif not self._is_damaged(shard):
                self.reported[shard.index] = self._vouched(shard)

    def happen(self, fault: str) -> None:
        super().happen(fault)
        if fault == "rot":
            self._rot()
        elif fault == "repair":
            self._start_repairs(self.story.rng.choice([1, 1, 2]))
        elif fault == "change inputs":
            self.n_changes += 1

    def start_next(self) -> bool:
        rng = self.story.rng
        if self.is_reported_complete and rng.random() < 0.2:
            return False
        if rng.random() < 0.6:
            self._rot()
        if rng.random() < 0.6:
            self._start_repairs(rng.choice([1, 1, 2, 3]))
        if rng.random() < 0.5:
            self.n_changes += self.n_changes % 2
        self.story.start(self.drive, "driver", in_s=rng.choice([0.0, 30.0]))
        return True

    def start_successor(self, host: Host) -> None:
        first = self.story.rng.choice([self.drive, self.repair])
        self.story.start(first, first.__name__, host, in_s=EXPIRY_S)
        self.story.start(self.drive, "driver", host, in_s=EXPIRY_S + 60.0)

    def last_commands(self) -> list[Command]:
        return [self.repair, self.drive]

    def stop_faults(self) -> None:
        super().stop_faults()
        self.n_changes += self.n_changes % 2

    def check(self) -> None:
        for shard in self.shards:
            receipt = self.story.content(receipt_key(shard))
            reported = self.reported.get(shard.index)
            if receipt is None:
                if reported is not None and not self._is_bad(shard, reported):
                    raise ViolationError(
                        f"shard {shard.index} is gone: it was good, and reported as complete"
                    )
            elif (found := self._vouched(shard)) in self.taken_back:
                raise ViolationError(f"shard {shard.index}: {found!r} had been discarded")
            elif not self._is_damaged(shard):
                self._check_shard(shard, receipt)

    def is_complete(self) -> bool:
        return super().is_complete() and not any(self._is_damaged(shard) for shard in self.shards)

    def _require_right_inputs(self, driver: Process) -> None:
        """A driver that reports success must not have used inputs that are wrong now."""
        for shard in self.shards:
            attempt = self.attempts.get(self._vouched(shard))
            if attempt is None or attempt.driver != driver.pid or attempt.are_inputs_right:
                continue
            if attempt.n_changes == self.n_changes:
                self.story.report_violation(f"shard {shard.index} has inputs that have changed")

    def _start_repairs(self, n_repairs: int) -> None:
        for _ in range(n_repairs):
            in_s = self.story.rng.choice([0.0, 5.0, 100.0])
            self.story.start(self.repair, "repair", in_s=in_s)

    def _rot(self) -> None:
        """Flip, truncate or remove a file of the set without any operation on the disk."""
        rng = self.story.rng
        keys = [key for shard in self.shards for key in (receipt_key(shard), *files_of(shard))]
        contents = {key: self.story.content(key) for key in keys}
        existing = [key for key in keys if contents[key] and contents[key] != self.rotten.get(key)]
        if not existing:
            return
        key = rng.choice(existing)
        shard = next(s for s in self.shards if key in (receipt_key(s), *files_of(s)))
        data = self.story.content(key)
        assert data is not None
        self.rotted |= {data, self._vouched(shard)} & self.attempts.keys()
        at = int(rng.random() * len(data))  # receipts contain real times, so lengths may vary
        flipped = data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]
        rotten = rng.choice([flipped, flipped, data[: len(data) // 2], None])
        self.story.disk.rot(f"{self.root}/{key}", rotten)
        self.rotten[key] = rotten

    def _vouched(self, shard: Shard) -> bytes:
        """Content of the attempt that a receipt lists; empty if there is no intact receipt."""
        try:
            files = unsealed(self.story.content(receipt_key(shard)) or b"")["files"]
        except ValueError:
            return b""
        own = (c for c, attempt in self.attempts.items() if attempt.shard == shard.index)
        return next((c for c in own if vouch(c) in files.values()), b"")

    def _is_damaged(self, shard: Shard) -> bool:
        keys = (receipt_key(shard), *files_of(shard))
        return any(
            key in self.rotten and self.story.content(key) == self.rotten[key] for key in keys
        )

    def _is_bad(self, shard: Shard, content: bytes | None) -> bool:
        """Whether a shard may be discarded, because it rotted or came from other inputs."""
        if content is None:
            own = [c for c, attempt in self.attempts.items() if attempt.shard == shard.index]
            return any(self._is_bad(shard, each) for each in own)
        attempt = self.attempts[content]
        # A run whose inputs have changed is not trusted: it discards what it has computed.
        is_doubtful = attempt.driver in self.doubtful or not attempt.are_inputs_right
        return content in self.rotted or is_doubtful
