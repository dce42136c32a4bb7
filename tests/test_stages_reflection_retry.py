"""Only failed rows are recomputed, and nothing is lost."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import extract, retry_failed
from PIL import Image
from small_data import CLASSES, write_image_folder

from pipeline.errors import RunFailedError
from pipeline.executors import LocalExecutor
from pipeline.work import ShardOutput, Tick
from stages.data.fingerprint import BLOCK_BYTES
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.reflection.extraction import Extraction, FittedExtraction, fitted
from stages.reflection.retry import RetryFailed, retried_rows
from stages.sensing.build import build_network
from stages.sensing.model import describe
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.shards import Shard
from store.shardset import ShardSet
from store.storage import LocalStorage
from store.verify import verify_feature_set

EXECUTOR = LocalExecutor(1)
BIG, BIG_TOO = "test/two/big.png", "test/two/also.png"
"""So large that their fingerprint has gaps, in which damage is not noticed."""
SMALL, SMALL_TOO = "test/two/0002.png", "test/two/0005.png"
ROWS = {SMALL: 3, SMALL_TOO: 4, BIG_TOO: 5, BIG: 6}
"""Failed rows among ten, in shards of four and batches of two."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten images, two of them large."""
    folder = tmp_path_factory.mktemp("template") / "photos"
    write_image_folder(folder, 8)
    noise = np.random.default_rng(0).integers(0, 16, (1200, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / BIG)
    Image.fromarray(noise[::-1]).save(folder / BIG_TOO)
    return folder


@pytest.fixture
def photos(template: Path, tmp_path: Path) -> Path:
    """A copy of the test's own."""
    shutil.copytree(template.parent, tmp_path / "data")
    return tmp_path / "data" / "photos"


def damage(file: Path) -> None:
    """Overwrite bytes in a gap of the fingerprint: same name and size, but no longer an image."""
    with file.open("r+b") as opened:
        opened.seek(BLOCK_BYTES + 1)
        opened.write(bytes(8_000))


def stage_of(photos: Path, seed: int = 0) -> Extraction:
    names = tuple(sorted(CLASSES))
    torch.manual_seed(seed)
    network = build_network("cnn2", len(names)).eval()
    weights = photos.parent / f"net-{seed}.safetensors"
    weights.write_bytes(save_weights(network))
    card = replace(
        describe(
            network,
            name="net",
            network_name="cnn2",
            class_names=names,
            image_size=32,
            family="photos",
        ),
        M=2.5,
    )
    source = SourceSpec(str(photos), "test", "")
    return Extraction(source, card, str(weights), shard_rows=4, batch_rows=2)


def run(place: Path, stage: Extraction, make: Callable[..., FeatureSet] = extract) -> FeatureSet:
    return make(FeatureStore(str(place)).prepare(), stage)


def data_of(found: FeatureSet) -> dict[str, bytes]:
    """The files of all shards."""
    keys = [key for each in found.shard_set.receipts() for key in each.files]
    return {key: found.shard_set.storage.read(key) for key in keys}


def problems_of(found: FeatureSet) -> list[tuple[str, str]]:
    return [(problem.kind, problem.key) for problem in verify_feature_set(found)]


@pytest.fixture
def undisturbed(photos: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of a set of the whole folder."""
    return data_of(run(tmp_path / "undisturbed", stage_of(photos)))


@pytest.fixture
def damaged(photos: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> FeatureSet:
    """A set in which the large image could not be read; it is whole again now."""
    whole = (photos / BIG).read_bytes()
    damage(photos / BIG)
    found = run(tmp_path / "store", stage_of(photos))
    (photos / BIG).write_bytes(whole)
    assert list(found.shard_set.receipt(found.shard_set.shards[1]).failed) == [ROWS[BIG]]
    return found


def again(photos: Path, tmp_path: Path) -> tuple[FeatureSet, list[tuple[int, int]]]:
    """The set after a retry, and the row ranges that went through the network."""
    asked: list[tuple[int, int]] = []
    compute = FittedExtraction.compute

    def watched(self: FittedExtraction, state: Any, shard: Shard, tick: Tick) -> ShardOutput:
        asked.append((shard.start, shard.stop))
        return compute(self, state, shard, tick)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FittedExtraction, "compute", watched)
        return run(tmp_path / "store", stage_of(photos), retry_failed), asked


def test_only_the_batch_of_a_failed_row_is_computed_and_rows_are_those_of_an_undisturbed_run(
    damaged: FeatureSet, photos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    others = [damaged.shard_set.receipt(damaged.shard_set.shards[index]) for index in (0, 2)]
    found, asked = again(photos, tmp_path)
    assert found.name == damaged.name
    assert asked == [(6, 8)]
    assert data_of(found) == undisturbed
    assert problems_of(found) == []
    shards = found.shard_set.shards
    assert [found.shard_set.receipt(shards[index]) for index in (0, 2)] == others


def test_the_receipt_lists_the_retried_rows_with_reasons(
    damaged: FeatureSet, photos: Path, tmp_path: Path
) -> None:
    before = damaged.shard_set.receipt(damaged.shard_set.shards[1])
    receipt = again(photos, tmp_path)[0].shard_set.receipt(damaged.shard_set.shards[1])
    assert receipt.failed == {}
    assert receipt.facts["retried"] == before.facts["failed"]
    assert receipt.facts["others_of"]["set"] == damaged.name
    assert receipt.facts["others_of"]["written_at"] == before.facts["written_at"]
    whole = run(tmp_path / "whole", stage_of(photos)).shard_set.receipt(damaged.shard_set.shards[1])
    assert receipt.facts["images_crc32c"] == whole.facts["images_crc32c"]


def test_rows_that_still_fail_do_not_change_the_shard(
    damaged: FeatureSet, photos: Path, tmp_path: Path
) -> None:
    before = list(damaged.shard_set.receipts())
    damage(photos / BIG)
    found, asked = again(photos, tmp_path)
    assert asked == []
    assert list(found.shard_set.receipts()) == before


def test_a_second_time_there_is_nothing_to_try(
    damaged: FeatureSet, photos: Path, tmp_path: Path
) -> None:
    again(photos, tmp_path)
    files = sorted(path.name for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert again(photos, tmp_path)[1] == []
    assert files == sorted(path.name for path in (tmp_path / "store").rglob("*") if path.is_file())


def test_a_row_that_cannot_be_read_any_more_is_not_lost(
    damaged: FeatureSet, photos: Path, tmp_path: Path
) -> None:
    before = list(damaged.shard_set.receipts())
    damage(photos / BIG_TOO)
    with pytest.raises(RunFailedError, match="row 5 could be read before and cannot be read now"):
        again(photos, tmp_path)
    assert list(damaged.shard_set.receipts()) == before
    assert problems_of(damaged) == []


def test_a_damaged_shard_is_computed_as_a_whole(
    damaged: FeatureSet, photos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    key = "features/c/1/0"
    data = damaged.shard_set.storage.read(key)
    damaged.shard_set.storage.write(key, data[:9] + b"!" + data[10:])
    found, asked = again(photos, tmp_path)
    assert asked == [(4, 8)]
    assert data_of(found) == undisturbed


class KilledError(BaseException):
    """Simulates a kill: nothing catches it."""


@dataclass(frozen=True)
class DyingStorage(LocalStorage):
    """Killed before the n-th thing that it is to change; what it was doing stays half done."""

    lives: list[int] = field(default_factory=list)

    def publish(self, staged: str, key: str) -> None:
        self._live()
        super().publish(staged, key)

    def publish_new(self, staged: str, key: str) -> bool:
        self._live()
        return super().publish_new(staged, key)

    def withdraw(self, keys: Sequence[str], check: Callable[[], None]) -> None:
        self._live()
        super().withdraw(keys, check)

    def drop(self, staged: str) -> None:
        if self.lives[0] >= 0:  # the dead tidy nothing up
            super().drop(staged)

    def _live(self) -> None:
        self.lives[0] -= 1
        if self.lives[0] < 0:
            raise KilledError


@pytest.mark.parametrize("n_steps", range(5))
def test_a_retry_that_is_killed_between_any_two_steps_loses_nothing(
    damaged: FeatureSet, photos: Path, undisturbed: dict[str, bytes], tmp_path: Path, n_steps: int
) -> None:
    """Its steps: take the receipt back; chunk, chunk and part; the new receipt."""
    dying = DyingStorage(damaged.shard_set.storage.location, lives=[n_steps])
    shard = damaged.shard_set.shards[1]
    retrying = RetryFailed(fitted(stage_of(photos), EXECUTOR, 1), damaged.shard_set, None)
    output = retrying.compute(retrying.setup(1), shard, lambda n_rows: None)
    shards = ShardSet(dying, damaged.plan)
    with pytest.raises(KilledError):
        shards.publish(shards.stage(shard, output.files, output.facts), replacing=lambda: None)
    assert all(problem.is_harmless for problem in verify_feature_set(damaged))
    found, _ = again(photos, tmp_path)
    assert data_of(found) == undisturbed
    assert problems_of(found) == []


def repair_small(photos: Path) -> bytes:
    """Break a small file, which changes the data set; gives what it was."""
    whole = (photos / SMALL).read_bytes()
    (photos / SMALL).write_bytes(whole[:60])
    return whole


def test_of_a_repaired_data_set_only_the_repaired_rows_are_computed(
    photos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    whole = repair_small(photos)
    before = run(tmp_path / "store", stage_of(photos))
    (photos / SMALL).write_bytes(whole)
    found, asked = again(photos, tmp_path)
    assert found.name != before.name
    assert asked == [(2, 4)]
    assert data_of(found) == undisturbed
    assert problems_of(found) == problems_of(before) == []
    receipts = list(found.shard_set.receipts())
    assert [each.facts["others_of"]["set"] for each in receipts] == [before.name] * 3
    assert [retried_rows(each) for each in receipts] == [{ROWS[SMALL]}, set(), set()]


def test_a_shard_with_an_image_that_was_exchanged_is_computed_as_a_whole(
    photos: Path, tmp_path: Path
) -> None:
    whole = repair_small(photos)
    run(tmp_path / "store", stage_of(photos))
    (photos / SMALL).write_bytes(whole)
    Image.new("RGB", (32, 32), "red").save(photos / SMALL_TOO)
    found, asked = again(photos, tmp_path)
    assert asked == [(2, 4), (4, 8)]
    assert data_of(found) == data_of(run(tmp_path / "other", stage_of(photos)))


def test_rows_of_another_network_are_not_reused(photos: Path, tmp_path: Path) -> None:
    run(tmp_path / "store", stage_of(photos))
    with pytest.raises(InputError, match=r"has no rows in .* to retry"):
        run(tmp_path / "store", stage_of(photos, seed=1), retry_failed)
