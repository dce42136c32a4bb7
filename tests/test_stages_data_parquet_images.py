"""Parquet with the bytes of images, as Hugging Face's data sets have it: rows, splits, labels."""

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.data.known import KNOWN
from stages.data.parquet_images import _row_group
from stages.data.registry import known_datasets, open_source
from stages.errors import DataNotFoundError, InputError

FEATURES = {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}
METADATA = {b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()}


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, values: list[int], *, group_rows: int = 2, **columns: Any) -> Path:
    """A table whose images have these grey values, in row groups of two."""
    images = [{"bytes": png(value), "path": f"{value}.png"} for value in values]
    table = pa.table({"image": images, **columns}).replace_schema_metadata(METADATA)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group_rows)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data set as on the Hugging Face hub: two files for training, one for the test."""
    data = tmp_path / "pets" / "data"
    write(data / "train-00000-of-00002-a09b74.parquet", [0, 1, 2, 3, 4], label=[0, 1, 2, 0, 1])
    write(data / "train-00001-of-00002-b18c65.parquet", [5, 6], label=[2, 2])
    write(data / "test-00000-of-00001.parquet", [7, 8, 9], label=[0, -1, 1])
    (tmp_path / "pets" / "README.md").write_text("x")
    return tmp_path


def greys(source, start: int, stop: int) -> list[int]:
    return source.read(start, stop).images[:, 3, 3, 0].tolist()


def test_the_files_of_a_split_are_consecutive_rows(home: Path) -> None:
    train, test = open_source(home / "pets", "train"), open_source(home / "pets")
    assert (train.name, train.split, train.n_rows) == ("pets", "train", 7)
    assert greys(train, 0, 7) == [0, 1, 2, 3, 4, 5, 6]
    assert greys(test, 0, 3) == [7, 8, 9]
    assert train.class_names == test.class_names == ("cat", "dog", "owl")
    assert test.is_named
    columns = test.read(0, 3).columns
    assert columns["label"].tolist() == [0, -1, 1]
    assert columns["sample_id"].tolist() == ["test/00000", "test/00001", "test/00002"]


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (1, 2), (3, 6), (2, 7)])
def test_a_range_reads_only_its_row_groups(home: Path, start: int, stop: int) -> None:
    source = pickle.loads(pickle.dumps(open_source(home / "pets", "train")))
    _row_group.cache_clear()
    assert greys(source, start, stop) == list(range(start, stop))
    groups = [0, 0, 1, 1, 2, 3, 3]
    assert _row_group.cache_info().misses == len(set(groups[start:stop]))


def test_splits_may_be_folders_or_single_files(tmp_path: Path) -> None:
    write(tmp_path / "a" / "validation" / "0000.parquet", [1])
    write(tmp_path / "a" / "validation" / "0001.parquet", [2])
    write(tmp_path / "b" / "val.parquet", [3])
    assert greys(open_source(tmp_path / "a", "validation"), 0, 2) == [1, 2]
    assert greys(open_source(tmp_path / "b", "val"), 0, 1) == [3]
    with pytest.raises(DataNotFoundError, match=r"no 'test', only val: give one of these"):
        open_source(tmp_path / "b")
    infos = {info.name: info for info in known_datasets(tmp_path)[len(KNOWN) :]}
    assert infos["a"].n_rows == {"validation": 2}


def test_a_file_may_have_plain_bytes_and_further_columns(tmp_path: Path) -> None:
    columns = {"img": [png(5), png(6), None], "split": ["train", "test", "test"]}
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({**columns, "age": [1, 2, 3], "label": ["x", "y", "x"]}), path)
    rows = open_source(path).read(0, 2)
    assert rows.images[0, 3, 3, 0] == 6
    assert rows.failed == {1: "test/00001: cannot identify image file"}
    assert rows.columns["age"].tolist() == [2, 3]
    assert rows.columns["label"].tolist() == [1, 0]


def test_a_damaged_image_is_a_failed_row(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"image": [png(5), png(6)[:45], b"x"]}), path)
    source = open_source(path)
    failed = source.read(0, 3).failed
    assert list(failed) == [1, 2]
    assert failed[2] == "test/00002: cannot identify image file"
    assert source.class_names == ()


def test_the_fingerprint_follows_the_split_and_not_the_place(home: Path) -> None:
    before = open_source(home / "pets").fingerprint()
    shutil.copytree(home / "pets", home / "copy")
    write(home / "copy/data/train-00001-of-00002-b18c65.parquet", [50, 60], label=[2, 2])
    assert open_source(home / "copy").fingerprint() == before
    write(home / "copy/data/test-00000-of-00001.parquet", [7, 8, 0], label=[0, -1, 1])
    assert open_source(home / "copy").fingerprint() != before


def test_files_that_differ_are_refused(home: Path) -> None:
    odd = home / "pets" / "data" / "train-00002-of-00002.parquet"
    pq.write_table(pa.table({"path": ["x"]}), odd)
    with pytest.raises(InputError, match=r"has no images in a column image or img, expected"):
        open_source(home / "pets", "train")
    odd.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"expected a complete Parquet file with the columns of"):
        open_source(home / "pets", "train")


def test_a_row_group_larger_than_memory_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.data.parquet_images.limit_bytes", lambda: 1_000)
    with pytest.raises(InputError, match="with smaller row groups, such as 100 rows"):
        open_source(home / "pets")


def test_images_are_cropped_and_decoded_like_files(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    pq.write_table(pa.table({"image": [buffer.getvalue()]}), tmp_path / "mine.parquet")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0.png").write_bytes(buffer.getvalue())
    ours, theirs = (open_source(tmp_path / name) for name in ("mine.parquet", "files"))
    assert (ours.read(0, 1).images == theirs.read(0, 1).images).all()
    assert ours.resize == theirs.resize


def repeated(value: Any) -> pa.Array:
    """One value in 2,000 rows, which a file holds once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([value]))


def write_bomb(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, store_schema=False, dictionary_pagesize_limit=2**24)
    return path


def test_a_text_that_fills_the_memory_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = write_bomb(tmp_path / "x.parquet", image=[png(1)] * 2000, t=repeated("x" * 2**20))
    with pytest.raises(InputError, match=r"at most 1 GiB, found one of 2\.0 GiB"):
        open_source(path)


def test_an_image_that_fills_the_memory_in_each_row_is_refused(tmp_path: Path) -> None:
    path = write_bomb(tmp_path / "x.parquet", image=repeated(b"x" * 2**20))
    with pytest.raises(InputError, match=r"row group 0 is .* too large .*unpacks to more than"):
        open_source(path).read(0, 1)


BAD_TEXT = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": BAD_TEXT}, "Invalid UTF8"),
        ({"split": [[1]]}, "its column 'split' is list<.*>, expected names of splits"),
        ({str(at): [at] for at in range(1000)}, "has 1,001 columns, expected at most 1,000"),
    ],
)
def test_columns_that_cannot_be_stored_are_refused(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table({"image": [png(1)], **columns}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "x.parquet")


def test_two_columns_of_images_are_refused(tmp_path: Path) -> None:
    images = pa.array([png(1)])
    pq.write_table(pa.table([images, images], names=["image"] * 2), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="has two columns 'image'"):
        open_source(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "facts", ["[" * 100_000, '{"info": {"features": {"label": {"names": "\\ud800"}}}}']
)
def test_metadata_that_names_no_classes_is_ignored(tmp_path: Path, facts: str) -> None:
    table = pa.table({"image": [png(1)], "label": [0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": facts}), tmp_path / "x.parquet")
    assert open_source(tmp_path / "x.parquet").class_names == ("0",)
