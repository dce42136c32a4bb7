"""Parquet and tar files at a URL give the rows and the fingerprint that they give on disk."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from test_stages_data_parquet_images import write as write_parquet
from test_stages_data_tar_images import shard
from test_stages_data_tar_images import write as write_tar

from stages.data.registry import SourceSpec, open_source
from stages.data.source import source_facts
from stages.errors import InputError


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    """A bucket in memory with the files of ``tmp_path / "sets"``."""
    data = tmp_path / "sets"
    write_parquet(data / "pets/data/train-00000-of-00002.parquet", [0, 1, 2], label=[0, 1, 2])
    write_parquet(data / "pets/data/train-00001-of-00002.parquet", [3], label=[0])
    write_parquet(data / "pets/data/test-00000-of-00001.parquet", [7, 8], label=[0, 1])
    write_tar(data / "owls/train-000000.tar", shard(0, 5))
    write_tar(data / "owls/train-000001.tar", shard(5, 2))
    write_tar(data / "owls/val-000000.tar", shard(9, 1))
    write_tar(data / "one.tar", shard(3, 2))
    memory = fsspec.filesystem("memory")
    memory.put(str(data), "/bucket", recursive=True)
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("name", "split"), [("pets", "train"), ("pets", "test"), ("owls", "train"), ("one.tar", "val")]
)
def test_a_url_gives_what_the_disk_gives(
    tmp_path: Path, bucket: str, name: str, split: str
) -> None:
    ours = SourceSpec(f"{bucket}/{name}", split, "").open()
    theirs = open_source(tmp_path / "sets" / name, split)
    assert source_facts(ours) == source_facts(theirs)
    for start, stop in ((0, theirs.n_rows), (1, 2), (theirs.n_rows, theirs.n_rows)):
        rows, expected = ours.read(start, stop), theirs.read(start, stop)
        assert (rows.images == expected.images).all()
        assert rows.failed == expected.failed == {}
        assert {name: values.tolist() for name, values in rows.columns.items()} == {
            name: values.tolist() for name, values in expected.columns.items()
        }


def test_large_files_have_the_same_fingerprint_too(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.data.fingerprint.WHOLE_BYTES", 10)
    ours = open_source(f"{bucket}/owls", "train").fingerprint()
    assert ours == open_source(tmp_path / "sets" / "owls", "train").fingerprint()


def test_rows_that_lie_far_apart_are_read_one_by_one(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.data.tar_images.SLACK", -(2**20))
    for place in (tmp_path / "sets" / "owls", f"{bucket}/owls"):
        images = open_source(place, "train").read(0, 7).images
        assert images[:, 3, 3, 0].tolist() == list(range(7))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/nothing", "no supported data, expected Parquet files with images or tar"),
        ("memory://bucket/pets/data", r"no 'val', only test, train: give one of these"),
        ("nosuch://bucket/pets", "cannot be read .Protocol not known: nosuch"),
        ("memory://u:secret@bucket/x", "that URL cannot hold a data set"),
        ("simplecache::s3://bucket/x", "that URL cannot hold a data set"),
        ("s3://bucket/x?token=secret", "that URL cannot hold a data set"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_line(bucket: str, url: str, message: str) -> None:
    assert bucket
    with pytest.raises(InputError, match=message) as caught:
        open_source(url, "val")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
