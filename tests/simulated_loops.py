"""Work of a story, part 2: a loop with checkpoints, and an artifact that is written at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulated_sets import Command, ViolationError
from simulated_world import Host, Process, SimulatedMachine

from pipeline.journal import Journal
from pipeline.loop import CHECKPOINTS, Claim, History, Loop, run_loop
from pipeline.work import Tick
from store.catalog import FeatureStore
from store.disk import Disk
from store.lease import EXPIRY_S
from store.seal import unsealed, vouch
from store.storage import FileLog, LocalStorage, checksum

if TYPE_CHECKING:
    from simulation import Story

PLAN = {"stage": {"name": "walk"}}
FILES = ("weights", "more/weights")
Steps = list[list[int]]
"""The units that led to a state, each with the number of its attempt."""


@dataclass(frozen=True, slots=True)
class SimulatedStore(FeatureStore):
    """A store on the simulated disk."""

    disk: Disk

    @property
    def storage(self) -> LocalStorage:
        return LocalStorage(self.location, self.disk)


class ArtifactWork:
    """Drivers write an artifact; each computes it on its own, with different bytes.

    A card must match the existing files, of one driver; once a driver has reported that the
    artifact is complete, it must not change.
    """

    faults: tuple[str, ...] = ()

    def __init__(self, story: Story) -> None:
        self.story = story
        self.root = "/store/models/walk"
        self.n_units = 1
        self.n_computed = 0
        self.reported: bytes | None = None

    def children(self, driver: Process) -> list[Process]:
        return []

    def drive(self, process: Process, machine: SimulatedMachine) -> None:
        store = SimulatedStore("/store", self.story.disk).prepare()
        artifact = store.artifact("model", "walk")
        if not (artifact.holds(PLAN) and artifact.is_settled()):
            artifact.claim(PLAN)
            self.work()
            content = str(self.n_computed).encode()
            files = dict.fromkeys(FILES, content)
            artifact.write(files, {"by": process.pid}, plan=PLAN, machine=machine)
        self.report_complete()

    def work(self) -> None:
        """Take some time, and sometimes fail."""
        self.n_computed += 1
        self.story.world.sleep(self.story.rng.expovariate(1 / self.story.work_s))
        if self.story.rng.random() < self.story.failing:
            raise OSError("a transient error")

    def report_complete(self) -> None:
        """A driver reports that the artifact is complete."""
        card = self.story.content("model.json")
        if card is None:
            self.story.report_violation("the card is missing, but was reported")
        self.reported = card

    def happen(self, fault: str) -> None:
        pass

    def start_next(self) -> bool:
        if self.reported is not None:
            return False
        self.story.start(self.drive, "driver")
        return True

    def start_successor(self, host: Host) -> None:
        self.story.start(self.drive, "driver", host, in_s=EXPIRY_S)

    def last_commands(self) -> list[Command]:
        return [self.drive]

    def stop_faults(self) -> None:
        pass

    def check(self) -> None:
        card = self.story.content("model.json")
        if self.reported not in (None, card):
            raise ViolationError(f"the card was {self.reported!r}, and is {card!r}")
        if card is not None:
            self.check_card(self.root, card)

    def is_complete(self) -> bool:
        return self.story.content("model.json") is not None

    def check_card(self, root: str, card: bytes) -> tuple[dict[str, Any], bytes]:
        """The facts of a card, and the content that it lists, which is the same in all files."""
        try:
            facts = unsealed(card)
        except ValueError as error:
            raise ViolationError(f"{root}: a torn card: {card!r}") from error
        contents = {self.story.content(key, root) for key in FILES}
        content = contents.pop()
        if content is None or contents or facts["files"] != dict.fromkeys(FILES, vouch(content)):
            raise ViolationError(f"{root}: the card does not match the files: {contents}")
        return facts, content


@dataclass(frozen=True)
class Walk:
    """A loop whose state lists the units that led to it, and their attempts."""

    about: LoopWork
    unit_name: str = "epoch"
    rows_per_unit: int = 1

    @property
    def n_units(self) -> int:
        return self.about.n_units

    def start(self) -> Steps:
        return []

    def step(self, state: Steps, unit: int, tick: Tick) -> dict[str, float]:
        self.about.work()
        state.append([unit, self.about.n_computed])
        return {"attempt": state[-1][1]}

    def save(self, state: Steps) -> bytes:
        return json.dumps(state).encode()

    def load(self, data: bytes) -> Steps:
        return [list(step) for step in json.loads(data)]

    def finish(self, state: Steps) -> tuple[dict[str, bytes], dict[str, Any]]:
        return dict.fromkeys(FILES, self.save(state)), {}


class LoopWork(ArtifactWork):
    """Drivers run a loop, which stores each of its states as an artifact.

    A checkpoint from which a driver has continued is never lost; every state went through each unit
    once, in order; and its history lists the same attempts. If one artifact is complete, so are
    those of all earlier states.
    """

    faults = ("rot",)

    def __init__(self, story: Story) -> None:
        super().__init__(story)
        self.n_units = story.rng.randint(1, 5)
        self.n_safe = self.n_rotten = 0
        self.kept: set[int] = set()
        self.rotten: dict[str, bytes | None] = {}

    def drive(self, process: Process, machine: SimulatedMachine) -> None:
        store = SimulatedStore("/store", self.story.disk)

        def keep(state: Steps, history: History) -> None:
            n_units = len(history)
            if n_units > self.n_rotten:
                self.n_safe = max(self.n_safe, n_units)
            artifact = store.artifact("model", f"walk-{n_units}")
            plan = {**PLAN, "units": n_units}
            artifact.claim(plan)
            artifact.write(
                dict.fromkeys(FILES, json.dumps(state).encode()),
                {"history": history},
                plan=plan,
                machine=machine,
            )
            self.kept.add(n_units)

        run_loop(
            Loop(lambda: Walk(self), self.n_units, keep=lambda: keep),
            Claim(store.artifact("model", "walk"), PLAN, store, process.name, machine),
            Journal(FileLog(Path(self.story.folder, f"{process.pid}.jsonl"))),
        )
        self.report_complete()

    def happen(self, fault: str) -> None:
        """Damage a checkpoint: the units that it held are recomputed, and nothing else."""
        rng = self.story.rng
        keys = [
            path.removeprefix(f"{self.root}/")
            for path in sorted(self.story.disk.names)
            if path.startswith(f"{self.root}/{CHECKPOINTS}/")
        ]
        if fault == "rot" and keys:
            key = rng.choice(keys)
            data = self.story.content(key)
            if data:
                # Change an attempt: the other numbers in a note are real times, which vary.
                numbers = rb'"attempt": (\d+)' if key.endswith(".json") else rb"(\d+)"
                at = rng.choice([found.start(1) for found in re.finditer(numbers, data)] or [0])
                flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                rotten = rng.choice([flipped, flipped, data[: len(data) // 2], None])
                self.story.disk.rot(f"{self.root}/{key}", rotten)
                self.rotten[key] = rotten
                self.n_safe = 0
                self.n_rotten = max(self.n_rotten, 1 + max(int(Path(each).stem) for each in keys))

    def check(self) -> None:
        super().check()
        n_units = self.n_units if self.is_complete() else max(self._n_vouched(), default=0)
        if n_units < self.n_safe:
            raise ViolationError(f"{self.n_safe} units were safe, {n_units} exist")
        for n_units in range(1, self.n_units + 1):
            root = f"{self.root}-{n_units}"
            card = self.story.content("model.json", root)
            if card is not None:
                self._require_walk(*self.check_card(root, card), n_units)
            elif n_units in self.kept or self.reported is not None:
                raise ViolationError(f"the artifact of unit {n_units} is gone, or was never stored")

    def check_card(self, root: str, card: bytes) -> tuple[dict[str, Any], bytes]:
        facts, content = super().check_card(root, card)
        if root == self.root:
            self._require_walk(facts, content, self.n_units)
        return facts, content

    def _n_vouched(self) -> Iterator[int]:
        """Number of units in each checkpoint whose note matches it."""
        for unit in range(self.n_units):
            keys = [f"{CHECKPOINTS}/{unit:05d}.{kind}" for kind in ("json", "safetensors")]
            note, state = map(self.story.content, keys)
            if any(
                key in self.rotten and self.story.content(key) == self.rotten[key] for key in keys
            ):
                continue
            try:
                facts = json.loads(note or b"")
            except ValueError:
                continue
            if state is not None and facts.get("sha256") == checksum(state):
                self._require_walk(facts, state, unit + 1)
                yield unit + 1

    def _require_walk(self, facts: dict[str, Any], state: bytes, n_units: int) -> None:
        expected = [[unit, past["attempt"]] for unit, past in enumerate(facts["history"])]
        if json.loads(state) != expected or len(expected) != n_units:
            raise ViolationError(f"after {n_units} units: state {state!r}, history {expected}")
