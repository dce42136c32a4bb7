"""A corrupted set on disk: the exact layout, resumed, read by name, refused where it differs."""

from pathlib import Path

import numpy as np
import pytest
from made import write_corrupted
from small_data import digits

from pipeline.errors import ResourceError
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from stages.data.corruption_set import corruption_folder
from stages.data.corruption_work import CorruptionWork
from stages.data.corruptions.names import CURE, Collection
from stages.data.registry import SourceSpec, open_source
from stages.errors import InputError
from store.catalog import FeatureStore
from store.errors import PlanMismatchError
from store.shardset import ShardSet
from store.storage import LocalStorage
from store.verify import verify_files

NAMES = ("brightness", "contrast")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    images, labels = digits(6)
    np.savez(tmp_path / "few.npz", images=images, labels=labels)
    return tmp_path


def write(
    home: Path,
    names: tuple[str, ...] = NAMES,
    seed: int = 0,
    collection: Collection = "cifar10c",
) -> tuple[Path, int]:
    stage = CorruptionWork(SourceSpec("few.npz", "test", str(home)), names, seed, collection)
    folder = corruption_folder("few", collection, home)
    store = FeatureStore(str(home / "store"))
    _, report = write_corrupted(
        store, stage, folder, LocalExecutor(1), Journal.of(store.location, ["corrupt"])
    )
    return Path(folder), report.n_computed


def test_the_layout_is_that_of_cifar10c(home: Path) -> None:
    folder, n_computed = write(home)
    assert (folder.name, n_computed) == ("few-c", 2)
    images = np.load(folder / "contrast.npy", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    assert (images.shape, images.dtype) == ((30, 32, 32, 3), np.uint8)
    assert labels.tolist() == digits(6)[1].tolist() * 5


def test_the_set_is_read_by_its_name_with_corruption_and_severity(home: Path) -> None:
    write(home)
    source = open_source("few-c", "test", home)
    rows = source.read(25, 35)
    assert source.family == "few"
    assert rows.columns["corruption"].tolist() == ["brightness"] * 5 + ["contrast"] * 5
    assert rows.columns["severity"].tolist() == [5] * 5 + [1] * 5


def test_rotations_are_read_by_their_name_with_fifteen_severities(home: Path) -> None:
    folder, _ = write(home, (), collection="rotations")
    source = open_source("few-rotations", "test", home)
    columns = source.read(0, source.n_rows).columns
    assert folder.name == "few-rotations"
    assert (source.family, source.n_rows) == ("few", 90)
    assert set(columns["corruption"]) == {"rotation"}
    assert columns["severity"].tolist() == [s for s in range(1, 16) for _ in range(6)]
    assert columns["label"].tolist() == digits(6)[1].tolist() * 15
    assert columns["sample_id"][-1] == "rotation/15/00005"


def test_a_cure_like_set_is_read_by_its_name(home: Path) -> None:
    folder, n_computed = write(home, (), collection="cure")
    source = open_source("few-cure", "test", home)
    columns = source.read(0, source.n_rows).columns
    assert (folder.name, n_computed, source.family) == ("few-cure", 6, "few")
    assert columns["corruption"].tolist() == [name for name in CURE for _ in range(30)]


def test_a_repeat_computes_nothing_and_a_lost_receipt_costs_one_file(home: Path) -> None:
    folder, _ = write(home)
    before = (folder / "contrast.npy").read_bytes()
    assert write(home)[1] == 0
    (folder / "receipts" / "00001.json").unlink()
    (folder / "contrast.npy").write_bytes(before[:500])
    assert write(home)[1] == 1
    assert (folder / "contrast.npy").read_bytes() == before


def test_another_seed_into_the_same_folder_is_refused_with_the_difference(home: Path) -> None:
    write(home)
    with pytest.raises(PlanMismatchError, match=r"stage\.params\.seed: 1, found 0"):
        write(home, seed=1)


def test_a_set_without_labels_is_refused_before_anything_is_written(home: Path) -> None:
    np.savez(home / "few.npz", images=digits(6)[0])
    with pytest.raises(InputError, match="labels"):
        write(home)
    assert not (home / "few-c").exists()


def test_more_images_than_a_worker_has_memory_for_are_refused(home: Path) -> None:
    stage, store = CorruptionWork(SourceSpec("few.npz", "test", str(home)), NAMES), home / "store"
    journal = Journal.of(str(store), ["corrupt"])
    executor = LocalExecutor(1, memory_bytes=600 * 2**20)
    with pytest.raises(ResourceError, match=r"one corruption of 6 images takes 0.59 GiB.*--limit"):
        write_corrupted(FeatureStore(str(store)), stage, f"{home}/few-c", executor, journal)
    assert not (home / "few-c").exists()


def test_a_folder_with_other_files_is_not_written_into(home: Path) -> None:
    (home / "few-c").mkdir()
    (home / "few-c" / "fog.npy").write_bytes(b"somebody's")
    with pytest.raises(InputError, match="choose an empty folder with --out"):
        write(home)
    assert (home / "few-c" / "fog.npy").read_bytes() == b"somebody's"


def test_a_half_written_set_is_not_read(home: Path) -> None:
    folder, _ = write(home)
    (folder / "receipts" / "00001.json").unlink()
    with pytest.raises(InputError, match="1 of 2 shards are not written yet"):
        open_source("few-c", "test", home)


def test_an_altered_file_of_a_corrupted_set_is_found(home: Path) -> None:
    folder, _ = write(home)
    content = bytearray((folder / "contrast.npy").read_bytes())
    content[-1] ^= 1
    (folder / "contrast.npy").write_bytes(bytes(content))
    problems = list(verify_files(ShardSet.open(LocalStorage(str(folder)))))
    assert [(problem.kind, problem.key) for problem in problems] == [("altered", "contrast.npy")]
