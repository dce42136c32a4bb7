"""Corrupted image files in ImageNet-C's layout: written, resumed, and read as a data set."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from made import make_in, write_corrupted
from PIL import Image
from small_data import digits, write_image_folder

from pipeline.errors import ResourceError
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from stages.data import corruption_files
from stages.data.corrupt import Corrupt
from stages.data.corruption_files import CorruptedFiles, sized
from stages.data.corruptions.severities import corrupt
from stages.data.registry import SourceSpec, open_source
from stages.data.resize import Resize
from stages.errors import InputError
from store.catalog import FeatureStore
from store.shardset import ShardSet
from store.storage import LocalStorage
from store.verify import verify_files

SIDE = 40
NAMES = ("contrast", "fog")
Write = Callable[..., int]


@pytest.fixture
def spec(tmp_path: Path) -> SourceSpec:
    """Seven images of 32x32 pixels in class folders, enlarged and cropped."""
    write_image_folder(tmp_path / "shapes", 7)
    spec = SourceSpec("shapes", "test", str(tmp_path))
    return sized(spec, spec.open(), SIDE)


@pytest.fixture
def write(spec: SourceSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a set in shards of 12 files: how many shards were computed."""
    monkeypatch.setattr(corruption_files, "MOST_FILES", 12)

    def run(source: SourceSpec = spec, name: str = "shapes-c", **options: object) -> int:
        store = FeatureStore(str(tmp_path / "store"))
        work = CorruptedFiles(source, NAMES, **options)
        journal = Journal.of(store.location, ["corrupt"])
        place = str(tmp_path / name)
        _, report = write_corrupted(store, work, place, LocalExecutor(1), journal)
        return report.n_computed

    return run


def test_files_are_jpegs_of_quality_85_below_corruption_severity_and_class(
    write: Write, spec: SourceSpec, tmp_path: Path
) -> None:
    assert write() == 6
    clean = spec.open().read(0, 7)
    for severity in (1, 5):
        images = corrupt(clean.images, "fog", severity, np.arange(7), 0, collection="imagenetc")
        for image, name in zip(images, clean.columns["sample_id"], strict=True):
            buffer = BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=85, optimize=True)
            _, class_name, file = str(name).split("/")
            written = tmp_path / "shapes-c" / "fog" / str(severity) / class_name / f"{file}.JPEG"
            assert written.read_bytes() == buffer.getvalue()


def test_the_set_is_read_by_its_name_with_corruption_severity_and_classes(
    write: Write, spec: SourceSpec, tmp_path: Path
) -> None:
    write()
    source = open_source("shapes-c", "test", tmp_path)
    columns = source.read(0, 70).columns
    clean = spec.open().read(0, 7).columns
    assert (source.n_rows, source.family, source.class_names) == (
        70,
        "shapes",
        ("one", "two", "zero"),
    )
    assert columns["corruption"].tolist() == ["contrast"] * 35 + ["fog"] * 35
    assert columns["severity"].tolist() == [s for s in range(1, 6) for _ in range(7)] * 2
    assert columns["label"].tolist() == clean["label"].tolist() * 10
    assert source.left_out == ()


def test_the_first_rows_keep_the_classes_of_all(
    write: Write, spec: SourceSpec, tmp_path: Path
) -> None:
    write(replace(spec, limit=1))
    source = open_source("shapes-c", "test", tmp_path)
    assert source.class_names == spec.open().class_names
    assert source.n_rows == 10


def test_a_repeat_computes_nothing_and_a_lost_receipt_costs_one_shard(
    write: Write, tmp_path: Path
) -> None:
    write()
    there = ShardSet.open(LocalStorage(str(tmp_path / "shapes-c")))
    key = min(there.receipt(there.shards[2]).files)
    before = there.storage.read(key)
    assert write() == 0
    (tmp_path / "shapes-c" / "receipts" / "00002.json").unlink()
    (tmp_path / "shapes-c" / key).write_bytes(before[:50])
    with pytest.raises(InputError, match="1 of 6 shards are not written yet"):
        open_source("shapes-c", "test", tmp_path)
    assert write() == 1
    assert there.storage.read(key) == before
    assert list(verify_files(there)) == []


def test_an_unreadable_image_has_no_file(write: Write, spec: SourceSpec, tmp_path: Path) -> None:
    bad = sorted((tmp_path / "shapes" / "test").rglob("*.png"))[1]
    bad.write_bytes(b"no image")
    write()
    there = ShardSet.open(LocalStorage(str(tmp_path / "shapes-c")))
    failed = {row for receipt in there.receipts() for row in receipt.failed}
    assert failed == set(range(1, 70, 7))
    assert open_source("shapes-c", "test", tmp_path).n_rows == 60


def test_images_of_arrays_are_numbered(write: Write, tmp_path: Path) -> None:
    images, labels = digits(4)
    np.savez(tmp_path / "few.npz", images=images, labels=labels)
    spec = SourceSpec("few.npz", "test", str(tmp_path), Resize((SIDE, SIDE), SIDE))
    write(spec, "few-c")
    files = sorted((tmp_path / "few-c" / "fog" / "3").rglob("*.JPEG"))
    shown = [f"{file.parent.name}/{file.name}" for file in files]
    assert shown == [f"{label}/{row:05d}.JPEG" for row, label in enumerate(labels)]


def test_the_plan_records_constants_size_and_quality(spec: SourceSpec) -> None:
    plan = CorruptedFiles(spec, NAMES, seed=3).plan()
    assert plan["stage"] == {
        "name": "corrupt",
        "version": 1,
        "params": {
            "collection": "imagenetc",
            "names": ["contrast", "fog"],
            "seed": 3,
            "jpeg_quality": 85,
        },
    }
    source = plan["inputs"]["source"]
    assert source["resize"] == "bilinear-antialias shorter side ->45, centre 40x40"
    assert "corruption" not in source
    assert (plan["n_rows"], plan["shard_rows"]) == (70, 500)


def test_a_shard_of_large_images_has_fewer_files(spec: SourceSpec) -> None:
    assert CorruptedFiles(replace(spec, image_size=1024), NAMES).plan()["shard_rows"] == 32


def test_images_of_the_size_of_the_files_are_not_cropped(spec: SourceSpec) -> None:
    assert sized(spec, spec.open(), 32).image_size == Resize((32, 32), 32)
    assert sized(spec, spec.open(), 224).image_size == Resize((224, 224), 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collection": "cure", "image_size": 64}, "cure: expected images of 32 pixels, found"),
        ({"collection": "imagenetc", "image_size": 32}, "expected images of 224 pixels, found"),
        (
            {"collection": "imagenetc", "image_size": 64},
            "which uses the constants of tinyimagenetc",
        ),
        ({"corruptions": ("salt_pepper",), "image_size": 96}, "'salt_pepper' is unknown; ima"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    spec: SourceSpec, store: FeatureStore, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_in(store, Corrupt(dataset=spec.dataset, **options), tmp_path)
    assert not (tmp_path / "shapes-c").exists()


def test_imagenet_c_has_224_pixels_by_default(
    spec: SourceSpec, store: FeatureStore, tmp_path: Path
) -> None:
    stage = Corrupt(
        dataset=spec.dataset, collection="imagenetc", corruptions=("contrast",), limit=1
    )
    make_in(store, stage, tmp_path)
    with Image.open(next((tmp_path / "shapes-c").rglob("*.JPEG"))) as image:
        assert image.size == (224, 224)


@pytest.mark.parametrize("name", ["a/b", "..", "a" * 256])
def test_a_class_that_cannot_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    images, labels = digits(2, 2)
    np.savez(tmp_path / "few.npz", images=images, labels=labels, class_names=[name, "c"])
    with pytest.raises(InputError, match=r"class '.*' cannot be the name of a folder"):
        CorruptedFiles(SourceSpec("few.npz", "test", str(tmp_path), 40)).plan()


def test_files_that_do_not_fit_into_memory_are_refused(
    spec: SourceSpec, store: FeatureStore, tmp_path: Path
) -> None:
    work, journal = CorruptedFiles(spec, NAMES), Journal.of(store.location, ["corrupt"])
    executor = LocalExecutor(1, memory_bytes=600 * 2**20)
    with pytest.raises(ResourceError, match="one shard of 70 images takes"):
        write_corrupted(store, work, f"{tmp_path}/shapes-c", executor, journal)
    assert not (tmp_path / "shapes-c").exists()
