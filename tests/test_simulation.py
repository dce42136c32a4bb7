"""The store's protocol under the simulator; and the simulator itself, with a rule switched off.

`make soak` tells many more stories than fit here.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from simulated_disk import SimulatedDisk
from simulated_loops import LoopWork
from simulated_sets import RepairWork
from simulation import FAULTS, simulate

from pipeline import loop
from pipeline.runner import _Run
from pipeline.worker import Worker
from store.artifacts import Artifact, StagedArtifact
from store.lease import Lease, _key
from store.plan import readable_json
from store.seal import sealed
from store.shards import Shard
from store.shardset import ShardSet, StagedShard, receipt_key
from store.storage import LocalStorage

N_STORIES = 1200
N_HONEST = 3000
"""A broken rule must be found out within so many stories."""

FOUND_AT = {
    "set-nobody_confirms": 280,
    "set-workers_publish": 151,
    "set-folders_of_others_are_trusted": 176,
    "set-receipts_are_staged_last": 134,
    "set-sweeps_before_taking": 140,
    "set-hearts_never_beat": 564,
    "set-nobody_watches": 326,
    "repair-taken_back_without_a_fence": 5257,
    "loop-notes_are_not_sealed": 324,
    "artifact-nobody_confirms_cards": 196,
}
"""The first story that finds a rule's absence, where it is not among the first hundred: the search
starts there, to be short. ``python tests/test_simulation.py`` looks for them anew.
"""


def first_violation(folder: Path, seeds: Iterable[int], kind: str = "") -> str:
    stories = (simulate(seed, str(folder), kind=kind) for seed in seeds)
    return next((story.violation for story in stories if story.violation), "")


@pytest.mark.parametrize("part", range(4))
def test_no_story_loses_doubles_or_mixes_a_shard(part: int, tmp_path: Path) -> None:
    n_stories = N_STORIES // 4
    assert first_violation(tmp_path, range(part * n_stories, (part + 1) * n_stories)) == ""


def test_much_goes_wrong_in_the_stories(tmp_path: Path) -> None:
    happened = Counter[str]()
    for seed in range(300):
        happened += simulate(seed, str(tmp_path)).happened
    assert set(happened) == {*FAULTS, *RepairWork.faults, *LoopWork.faults}


def test_a_seed_tells_the_same_story_again(tmp_path: Path) -> None:
    def told(seed: int) -> list[str]:
        return simulate(seed, str(tmp_path), keeps_trace=True).world.trace

    assert any("***" in line for seed in range(6) for line in told(seed))
    assert all(told(seed) == told(seed) for seed in range(12))


# What follows switches off one rule of the store each.


def receipt_first(patch: pytest.MonkeyPatch) -> None:
    def publish(self: ShardSet, staged: StagedShard, **_: Any) -> dict[str, Any]:
        key = receipt_key(staged.shard)
        self.storage.create(key, sealed(staged.receipt))
        for place, name in staged.names.items():
            self.storage.publish(name, place)
        return staged.receipt

    patch.setattr(ShardSet, "publish", publish)


def workers_publish(patch: pytest.MonkeyPatch) -> None:
    """As before version 0.3: each worker put its shard into its place by itself."""

    def staged(self: Worker, shard: Shard, started: float) -> StagedShard:
        found = once(self, shard, started)
        self._work.shard_set.publish(found)
        return found

    once = Worker._staged
    patch.setattr(Worker, "_staged", staged)


def nobody_sweeps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LocalStorage, "sweep", lambda self: None)


def nobody_checks_the_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "check", lambda self: None)


def in_place(patch: pytest.MonkeyPatch) -> None:
    """Files are written where they belong, not beside."""

    def stage(self: ShardSet, shard: Shard, files: Mapping[str, bytes], facts: Any) -> Any:
        staged = StagedShard(shard, {}, self._receipt_of(shard, files, facts))
        disk = self.storage.disk
        for key, data in files.items():
            path = Path(self.storage.location, key)
            self.storage._make_folders(path.parent)
            disk.put(str(path), data)
            disk.sync_folder(str(path.parent))
        return staged

    patch.setattr(ShardSet, "stage", stage)


def files_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    def put(self: SimulatedDisk, path: str, data: bytes) -> None:
        once(self, path, data)
        self.names[path].is_synced = False

    once = SimulatedDisk.put
    patch.setattr(SimulatedDisk, "put", put)


def folders_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedDisk, "sync_folder", lambda self, path: None)


def folders_of_others_are_trusted(patch: pytest.MonkeyPatch) -> None:
    """A folder that is there is taken for durable, whoever made it."""

    def make(self: LocalStorage, folder: Path) -> None:
        if not self.disk.is_folder(str(folder)):
            once(self, folder)

    once = LocalStorage._make_folders
    patch.setattr(LocalStorage, "_make_folders", make)


def shards_share_a_file(patch: pytest.MonkeyPatch) -> None:
    def files_of(shard: Shard) -> tuple[str, str]:
        return "features/c/0/0", f"samples/part-{shard.index:05d}.parquet"

    patch.setattr("simulated_sets.files_of", files_of)


def receipts_are_staged_last(patch: pytest.MonkeyPatch) -> None:
    """The receipt is staged after the data has moved: a sweep comes too late for it."""

    def publish(self: ShardSet, staged: StagedShard, **_: Any) -> dict[str, Any]:
        key = receipt_key(staged.shard)
        if self.storage.size(key) is None:
            for place, name in staged.names.items():
                self.storage.publish(name, place)
            self.storage.write(key, sealed(staged.receipt))
        return staged.receipt

    patch.setattr(ShardSet, "publish", publish)


def receipts_are_not_durable(patch: pytest.MonkeyPatch) -> None:
    def sync_folder(self: SimulatedDisk, path: str) -> None:
        if not path.endswith("/receipts"):
            once(self, path)

    once = SimulatedDisk.sync_folder
    patch.setattr(SimulatedDisk, "sync_folder", sync_folder)


def nobody_confirms(patch: pytest.MonkeyPatch) -> None:
    """Receipts that a dead driver could not sync any more are taken for durable."""
    patch.setattr(ShardSet, "confirm", lambda self: None)


def sweeps_before_taking(patch: pytest.MonkeyPatch) -> None:
    """Who sweeps first leaves what is staged between that and its lease."""

    def refuse_if_held(self: Lease, number: int) -> None:
        once(self, number)
        sweep(self._storage)

    once, sweep = Lease._refuse_if_held, LocalStorage.sweep
    patch.setattr(Lease, "_refuse_if_held", refuse_if_held)
    patch.setattr(LocalStorage, "sweep", lambda self: None)


def numbers_return(patch: pytest.MonkeyPatch) -> None:
    """A lease that is given back is removed: its number is given out twice."""
    patch.setattr(Lease, "_release", lambda self: self._storage.remove(_key(self._number)))


def hearts_never_beat(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "_beat", lambda self: None)


def nobody_is_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "_refuse_if_held", lambda self, number: None)


def nobody_watches(patch: pytest.MonkeyPatch) -> None:
    """Whose clock is wrong is taken for dead at once."""
    patch.setattr(Lease, "_is_beating", lambda self, holder, number: False)


def there_are_no_checksums(patch: pytest.MonkeyPatch) -> None:
    for module in ("store.seal", "store.verify", "pipeline.loop"):
        patch.setattr(f"{module}.checksum", lambda data: "")


def taken_back_for_now(patch: pytest.MonkeyPatch) -> None:
    """What is taken back is not synced: a power cut brings it back."""

    def withdraw(self: LocalStorage, keys: Sequence[str], check: Callable[[], None]) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(LocalStorage, "sync", lambda self, prefix="": None)
            once(self, keys, check)

    once = LocalStorage.withdraw
    patch.setattr(LocalStorage, "withdraw", withdraw)


def taken_back_without_a_fence(patch: pytest.MonkeyPatch) -> None:
    """Who has looked at its lease, and slept, takes back what its successor has computed."""

    def withdraw(self: LocalStorage, keys: Sequence[str], check: Callable[[], None]) -> None:
        check()
        for key in keys:
            self.remove(key)
        self.sync("receipts")

    patch.setattr(LocalStorage, "withdraw", withdraw)


def repair_does_not_look_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("store.verify._is_still_hurt", lambda shard_set, index, problems: True)


def nobody_checks_the_inputs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Run, "_check_inputs", lambda self: None)


def checkpoints_are_forgotten_first(patch: pytest.MonkeyPatch) -> None:
    def checkpoint(stage: Any, storage: Any, state: Any, history: Any, lease: Lease) -> None:
        loop._forget(storage, before=len(history) - 1)
        once(stage, storage, state, history, lease)

    once = loop._checkpoint
    patch.setattr(loop, "_checkpoint", checkpoint)


def notes_are_not_sealed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loop, "sealed", readable_json)
    patch.setattr(loop, "unsealed", json.loads)


def nobody_confirms_checkpoints(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LocalStorage, "sync", lambda self, prefix="": None)


def nobody_confirms_cards(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Artifact, "is_settled", Artifact.is_complete)


def cards_first(patch: pytest.MonkeyPatch) -> None:
    def publish(self: Artifact, staged: StagedArtifact) -> dict[str, Any]:
        for key, name in reversed(staged.names.items()):
            self.storage.publish(name, key)
        return staged.card

    patch.setattr(Artifact, "publish", publish)


RULES = {
    "set": [
        receipts_are_not_durable,
        nobody_confirms,
        receipt_first,
        workers_publish,
        nobody_sweeps,
        nobody_checks_the_lease,
        in_place,
        files_are_not_synced,
        folders_are_not_synced,
        folders_of_others_are_trusted,
        shards_share_a_file,
        receipts_are_staged_last,
        sweeps_before_taking,
        numbers_return,
        hearts_never_beat,
        nobody_is_refused,
        nobody_watches,
    ],
    "repair": [
        there_are_no_checksums,
        taken_back_for_now,
        taken_back_without_a_fence,
        repair_does_not_look_again,
        nobody_checks_the_inputs,
    ],
    "loop": [
        nobody_checks_the_lease,
        checkpoints_are_forgotten_first,
        notes_are_not_sealed,
        there_are_no_checksums,
        nobody_confirms_checkpoints,
    ],
    "artifact": [
        nobody_checks_the_lease,
        nobody_confirms_cards,
        cards_first,
    ],
}


@pytest.mark.parametrize(
    ("kind", "switch_off"),
    [
        pytest.param(kind, rule, id=f"{kind}-{rule.__name__}")
        for kind, rules in RULES.items()
        for rule in rules
    ],
)
def test_the_simulator_finds_out_a_store_without_one_of_its_rules(
    kind: str,
    switch_off: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch_off(monkeypatch)
    first = FOUND_AT.get(f"{kind}-{switch_off.__name__}", 0)
    seeds = [*range(first, first + N_HONEST), *range(first)]
    assert first_violation(tmp_path, seeds, kind) != ""


def test_a_power_cut_takes_what_was_not_synced() -> None:
    outcomes = set()
    for seed in range(50):
        disk = SimulatedDisk(Random(seed))
        disk.make_folder("/a")
        disk.sync_folder("/")
        disk.put("/a/kept", b"kept")
        disk.sync_folder("/a")
        disk.put("/a/torn", b"torn")
        disk.lose_power()
        assert disk.read("/a/kept") == b"kept"
        outcomes.add("/a/torn" in disk.names)
    assert outcomes == {True, False}


def main() -> None:
    """Print the first story that finds out each rule's absence."""
    for kind, rules in RULES.items():
        for switch_off in rules:
            with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
                switch_off(patch)
                stories = (simulate(seed, folder, kind=kind) for seed in range(20_000))
                found = next((story.seed for story in stories if story.violation), None)
            print(f"{kind}-{switch_off.__name__}: {found}", flush=True)


if __name__ == "__main__":
    main()
