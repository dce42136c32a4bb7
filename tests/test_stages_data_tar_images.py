"""Tar archives in WebDataset's form: rows, splits, labels, and what is left out."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from stages.data.known import KNOWN
from stages.data.registry import known_datasets, open_source
from stages.errors import DataNotFoundError, InputError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(first: int, n: int) -> dict[str, bytes]:
    """Samples whose grey values are their keys, and whose labels are the parity."""
    members = {}
    for key in range(first, first + n):
        members[f"{key:04d}.cls"] = str(key % 2).encode()
        members[f"{key:04d}.png"] = png(key)
    return members


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write(tmp_path / "pets" / "train-000000.tar", shard(0, 3))
    write(tmp_path / "pets" / "train-000001.tar", shard(3, 2))
    write(tmp_path / "pets" / "val-000000.tar", shard(7, 2))
    return tmp_path


def greys(source, start: int, stop: int) -> list[int]:
    return source.read(start, stop).images[:, 3, 3, 0].tolist()


def test_the_archives_of_a_split_are_consecutive_rows(home: Path) -> None:
    train = pickle.loads(pickle.dumps(open_source(home / "pets", "train")))
    assert greys(train, 0, 5) == [0, 1, 2, 3, 4]
    assert greys(train, 2, 4) == [2, 3]
    assert greys(train, 1, 1) == []
    columns = train.read(0, 5).columns
    assert columns["label"].tolist() == [0, 1, 0, 1, 0]
    assert columns["sample_id"][4] == "train/00004"
    assert columns["key"].tolist() == ["0000", "0001", "0002", "0003", "0004"]
    assert (train.name, train.class_names, train.is_named) == ("pets", ("0", "1"), False)
    assert greys(open_source(home / "pets", "val"), 0, 2) == [7, 8]


def test_a_missing_split_lists_the_others(home: Path) -> None:
    with pytest.raises(DataNotFoundError, match="no archive of split 'test', only train, val"):
        open_source(home / "pets")
    infos = {info.name: info for info in known_datasets(home)[len(KNOWN) :]}
    assert infos["pets"].n_rows == {"train": 5, "val": 2}


@pytest.mark.parametrize("name", ["shard-000000.tar", "imagenet-test-07.tar", "test/00.tar"])
def test_archives_are_matched_with_splits_by_usual_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / "set" / name, shard(5, 1))
    assert greys(open_source(tmp_path / "set"), 0, 1) == [5]


def test_an_archive_may_be_given_itself(home: Path) -> None:
    source = open_source(home / "pets" / "val-000000.tar")
    assert (source.name, source.n_rows) == ("val-000000", 2)


def test_json_gives_further_columns(tmp_path: Path) -> None:
    facts = {"label": "cat", "width": 8, "key": "x", "status": "success", "boxes": [1]}
    members = {
        "a/1.png": png(1),
        "a/1.json": json.dumps(facts).encode(),
        "a/2.json": json.dumps({**facts, "label": "dog"}).encode(),
        "a/2.png": png(2),
        "b/1.png": png(3),
    }
    source = open_source(write(tmp_path / "pets.tar", members))
    columns = source.read(0, 3).columns
    assert columns["key"].tolist() == ["a/1", "a/2", "b/1"]
    assert source.class_names == ("cat", "dog")
    assert columns["label"].tolist() == [0, 1, -1]
    assert columns["width"].tolist()[:2] == [8, 8]
    assert {each.examples for each in source.left_out} == {("boxes",), ("status",)}


def test_everything_else_is_left_out(tmp_path: Path) -> None:
    members = {
        "1.png": png(1),
        "1.txt": b"a cat",
        "1.seg.png": png(9),
        "2.cls": b"0",
        "._1.png": b"x",
        "1.cls": b"0",
    }
    source = open_source(write(tmp_path / "pets.tar", members))
    assert greys(source, 0, source.n_rows) == [1]
    assert {each.reason: each.examples for each in source.left_out} == {
        "not images by name": ("pets.tar/1.txt",),
        "further images of a sample": ("pets.tar/1.seg.png",),
        "hidden": ("pets.tar/._1.png",),
    }


def test_damaged_images_are_failed_rows_and_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pets.tar", {"1.png": png(1), "2.png": b"x", "3.png": png(3)})
    source = open_source(path)
    assert source.read(0, 3).failed == {1: "test/00001: cannot identify image file"}
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"IDAT") + 4])
    with pytest.raises(InputError, match=r"expected a complete tar archive.*unexpected end"):
        open_source(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no images, expected members such as"),
        ({"1.png": png(1), "1.json": b"[]"}, "a .json member holds no object"),
        ({"1.png": png(1), "1.json": b"{"}, "expected a complete tar archive"),
        ({"1.png": png(1), "1.cls": b"\xff"}, "with labels in UTF-8"),
        ({"1.png": png(1), "1.cls": b"-2"}, "the label of row 0 is -2"),
        (
            {"1.png": png(1), "1.json": b'{"x": 1}', "2.png": png(2), "2.json": b'{"x": "a"}'},
            "expected one type of values for 'x' in all samples",
        ),
    ],
)
def test_an_archive_that_is_not_as_expected_is_one_line(
    tmp_path: Path, content: dict[str, bytes], message: str
) -> None:
    path = write(tmp_path / "pets.tar", content)
    with pytest.raises(InputError, match=message) as caught:
        open_source(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_compressed_archives_and_other_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pets.tar", shard(0, 1), "w:gz")
    with pytest.raises(InputError, match="expected a complete tar archive without compression"):
        open_source(path)
    path.write_bytes(b"x" * 2_000)
    with pytest.raises(InputError, match="expected a complete tar archive without compression"):
        open_source(path)


def test_nothing_is_extracted_whatever_the_names_of_members(tmp_path: Path) -> None:
    members = {"../out.png": png(1), "/abs.png": png(2), "../out.cls": b"0"}
    path = write(tmp_path / "in" / "pets.tar", members)
    assert greys(open_source(path), 0, 2) == [1, 2]
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["in", "pets.tar"]


def test_the_fingerprint_follows_content_and_not_place(home: Path) -> None:
    before = open_source(home / "pets", "val").fingerprint()
    shutil.copytree(home / "pets", home / "copy")
    write(home / "copy" / "train-000001.tar", shard(9, 2))
    assert open_source(home / "copy", "val").fingerprint() == before
    write(home / "copy" / "val-000000.tar", shard(8, 2))
    assert open_source(home / "copy", "val").fingerprint() != before


def header(size: int, kind: bytes = tarfile.REGTYPE, name: str = "1.png") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (header(-512), "1.png has -512 bytes"),  # the next header would be the same one
        (header(2**50, tarfile.GNUTYPE_LONGNAME), "a header or label has 1,125,899,906,842,624"),
        (header(2**50, tarfile.XHDTYPE), "a header or label has 1,125,899,906,842,624"),
    ],
)
def test_sizes_that_lead_back_or_fill_the_memory_are_refused(
    tmp_path: Path, member: bytes, message: str
) -> None:
    (tmp_path / "x.tar").write_bytes(header(0, name="0.png") + member + bytes(1024))
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (b"[" * 100_000, "maximum recursion depth"),
        (b'{"a": %d}' % 10**30, "expected one type of values for 'a'"),
        (rb'{"a": "\ud800"}', "expected one type of values for 'a'"),
        (rb'{"\ud800": 1}', "expected one type of values for"),
        (json.dumps(dict.fromkeys(map(str, range(1001)))).encode(), "has 1,001 columns"),
        (b'{"label": 2000000000}', "the label of row 0 is 2000000000, expected 0 to 65535"),
        (b'{"label": -2}', "the label of row 0 is -2"),
    ],
)
def test_a_json_that_no_table_can_hold_is_refused(
    tmp_path: Path, facts: bytes, message: str
) -> None:
    write(tmp_path / "x.tar", {"0.png": png(0), "0.json": facts})
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "x.tar")


def test_two_labels_of_a_sample_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"0.png": png(0), "0.cls": b"0"})
    write(tmp_path / "x.tar", {"0.cls": b"1"}, mode="a")
    with pytest.raises(InputError, match=r"there are two members 0\.cls"):
        open_source(tmp_path / "x.tar")


def test_links_and_huge_images_are_left_out_and_counted(tmp_path: Path) -> None:
    huge = header(2**28 + 1)
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(header(0, name="0.png") + header(0, tarfile.SYMTYPE, "2.png") + huge)
        file.truncate(2**28 + 4096)  # takes no space on the disk
    found = open_source(tmp_path / "x.tar")
    assert found.n_rows == 1
    assert [(each.reason, each.examples) for each in found.left_out] == [
        ("links, sparse files and devices", ("x.tar/2.png",)),
        ("images of more than 256 MiB", ("x.tar/1.png",)),
    ]
