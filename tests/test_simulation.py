"""The store's protocol under the simulator, and the simulator with one rule disabled at a time.

`make soak` runs many more stories.
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
from pipeline.worker import SetWork
from store.artifacts import Artifact, StagedArtifact
from store.lease import Lease, _key
from store.plan import readable_json
from store.receipts import Receipt
from store.shards import Shard
from store.shardset import ShardSet, StagedShard, receipt_key
from store.storage import LocalStorage

N_STORIES = 300
N_HONEST = 3000
"""Number of stories within which a missing rule must be detected."""

FOUND_AT = {
    "set-nobody_confirms": 783,
    "set-workers_publish": 151,
    "set-in_place": 13,
    "set-nobody_checks_the_lease": 20,
    "set-folders_of_others_are_trusted": 593,
    "set-receipts_are_staged_last": 188,
    "set-sweeps_before_taking": 219,
    "set-numbers_return": 186,
    "set-hearts_never_beat": 564,
    "set-nobody_watches": 326,
    "repair-taken_back_without_a_fence": 913,
    "loop-notes_are_not_sealed": 362,
    "loop-nobody_confirms_checkpoints": 138,
    "artifact-nobody_checks_the_lease": 209,
    "artifact-nobody_confirms_cards": 995,
}
"""A story that detects a missing rule, if none of the first ten does: the search starts there to
save time. ``python tests/test_simulation.py`` determines the numbers again.
"""


def first_violation(folder: Path, seeds: Iterable[int], kind: str = "") -> str:
    stories = (simulate(seed, str(folder), kind=kind) for seed in seeds)
    return next((story.violation for story in stories if story.violation), "")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Counter[str]]]:
    """Violation, and what happened, of the first stories."""
    folder = str(tmp_path_factory.mktemp("stories"))
    stories = (simulate(seed, folder) for seed in range(N_STORIES))
    return [(story.violation, story.happened) for story in stories]


def test_no_story_loses_doubles_or_mixes_a_shard(
    outcomes: list[tuple[str, Counter[str]]],
) -> None:
    assert [violation for violation, _ in outcomes if violation] == []


def test_neither_does_any_of_the_next_stories(tmp_path: Path) -> None:
    assert first_violation(tmp_path, range(N_STORIES, 2 * N_STORIES)) == ""


def test_much_goes_wrong_in_the_stories(outcomes: list[tuple[str, Counter[str]]]) -> None:
    happened = sum((happened for _, happened in outcomes), Counter[str]())
    assert set(happened) == {*FAULTS, *RepairWork.faults, *LoopWork.faults}


def test_a_seed_reproduces_a_story(tmp_path: Path) -> None:
    def trace_of(seed: int) -> list[str]:
        return simulate(seed, str(tmp_path), keeps_trace=True).world.trace

    assert any("***" in line for seed in range(6) for line in trace_of(seed))
    assert all(trace_of(seed) == trace_of(seed) for seed in range(12))


# Each of the following functions disables one rule of the store.


def receipt_first(patch: pytest.MonkeyPatch) -> None:
    def publish(self: ShardSet, staged: StagedShard, **_: Any) -> Receipt:
        key = receipt_key(staged.shard)
        self.storage.create(key, staged.receipt.to_json())
        for place, name in staged.names.items():
            self.storage.publish(name, place)
        return staged.receipt

    patch.setattr(ShardSet, "publish", publish)


def workers_publish(patch: pytest.MonkeyPatch) -> None:
    """Each worker publishes its own shards, as before version 0.3."""

    def compute(self: SetWork, *given: Any) -> StagedShard:
        found = once(self, *given)
        self.shard_set.publish(found)
        return found

    once = SetWork.compute
    patch.setattr(SetWork, "compute", compute)


def nobody_sweeps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LocalStorage, "sweep", lambda self: None)


def nobody_checks_the_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "check", lambda self: None)


def in_place(patch: pytest.MonkeyPatch) -> None:
    """Files are written in place, not staged."""

    def stage(self: ShardSet, shard: Shard, files: Mapping[str, bytes], facts: Any) -> Any:
        staged = StagedShard(shard, {}, Receipt.of(self.fingerprint, shard, files, facts))
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
    """An existing folder counts as durable, regardless of the process that created it."""

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
    """The receipt is staged after the data has been moved: a sweep comes too late for it."""

    def publish(self: ShardSet, staged: StagedShard, **_: Any) -> Receipt:
        key = receipt_key(staged.shard)
        if self.storage.size(key) is None:
            for place, name in staged.names.items():
                self.storage.publish(name, place)
            self.storage.write(key, staged.receipt.to_json())
        return staged.receipt

    patch.setattr(ShardSet, "publish", publish)


def receipts_are_not_durable(patch: pytest.MonkeyPatch) -> None:
    def sync_folder(self: SimulatedDisk, path: str) -> None:
        if not path.endswith("/receipts"):
            once(self, path)

    once = SimulatedDisk.sync_folder
    patch.setattr(SimulatedDisk, "sync_folder", sync_folder)


def nobody_confirms(patch: pytest.MonkeyPatch) -> None:
    """Receipts that a crashed driver could not sync count as durable."""
    patch.setattr(ShardSet, "confirm", lambda self: None)


def sweeps_before_taking(patch: pytest.MonkeyPatch) -> None:
    """Sweeping before taking the lease misses what is staged in between."""

    def refuse_if_held(self: Lease, number: int) -> None:
        once(self, number)
        sweep(self._storage)

    once, sweep = Lease._refuse_if_held, LocalStorage.sweep
    patch.setattr(Lease, "_refuse_if_held", refuse_if_held)
    patch.setattr(LocalStorage, "sweep", lambda self: None)


def numbers_return(patch: pytest.MonkeyPatch) -> None:
    """A released lease is removed, so that its number is used twice."""
    patch.setattr(Lease, "_release", lambda self: self._storage.remove(_key(self._number)))


def hearts_never_beat(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "_beat", lambda self: None)


def nobody_is_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "_refuse_if_held", lambda self, number: None)


def nobody_watches(patch: pytest.MonkeyPatch) -> None:
    """A driver whose clock is wrong is considered dead at once."""
    patch.setattr(Lease, "_is_beating", lambda self, holder, number: False)


def there_are_no_checksums(patch: pytest.MonkeyPatch) -> None:
    for module in ("store.seal", "store.verify", "pipeline.loop"):
        patch.setattr(f"{module}.checksum", lambda data: "")


def taken_back_for_now(patch: pytest.MonkeyPatch) -> None:
    """Discarding is not synced: a power failure restores the shard."""

    def withdraw(self: LocalStorage, keys: Sequence[str], check: Callable[[], None]) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(LocalStorage, "sync", lambda self, prefix="": None)
            once(self, keys, check)

    once = LocalStorage.withdraw
    patch.setattr(LocalStorage, "withdraw", withdraw)


def taken_back_without_a_fence(patch: pytest.MonkeyPatch) -> None:
    """A driver that checked its lease and then stalled discards what its successor has computed."""

    def withdraw(self: LocalStorage, keys: Sequence[str], check: Callable[[], None]) -> None:
        check()
        for key in keys:
            self.remove(key)
        self.sync("receipts")

    patch.setattr(LocalStorage, "withdraw", withdraw)


def repair_does_not_look_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("store.verify._is_still_damaged", lambda shard_set, index, problems: True)


def nobody_checks_the_inputs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Run, "_check_inputs", lambda self: None)


def checkpoints_are_forgotten_first(patch: pytest.MonkeyPatch) -> None:
    def write(storage: Any, state: bytes, history: Any, lease: Lease) -> None:
        loop._remove_checkpoints(storage, before=len(history))
        once(storage, state, history, lease)

    once = loop._write_checkpoint
    patch.setattr(loop, "_write_checkpoint", write)


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
def test_the_simulator_detects_a_missing_rule(
    kind: str,
    switch_off: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch_off(monkeypatch)
    first = FOUND_AT.get(f"{kind}-{switch_off.__name__}", 0)
    seeds = [*range(first, first + N_HONEST), *range(first)]
    assert first_violation(tmp_path, seeds, kind) != ""


def test_a_power_cut_loses_what_was_not_synced() -> None:
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
    """Print the first story that detects each missing rule."""
    for kind, rules in RULES.items():
        for switch_off in rules:
            with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
                switch_off(patch)
                stories = (simulate(seed, folder, kind=kind) for seed in range(20_000))
                found = next((story.seed for story in stories if story.violation), None)
            print(f"{kind}-{switch_off.__name__}: {found}", flush=True)


if __name__ == "__main__":
    main()
