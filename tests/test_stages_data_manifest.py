"""Manifests: rows in the order of a table, labels, splits, and columns of the samples."""

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

from stages.data.classes import class_notes, counted_classes, with_classes
from stages.data.known import KNOWN
from stages.data.registry import known_datasets, open_source
from stages.data.source import ReaderSource
from stages.data.stored_sizes import stored_sizes
from stages.errors import DataNotFoundError, InputError

FILES = ("b.png", "a.png", "more/c.png")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three images, whose red is 0, 100 and 200."""
    (tmp_path / "more").mkdir()
    for row, name in enumerate(FILES):
        Image.new("RGB", (8, 8), (100 * row, 0, 0)).save(tmp_path / name)
    return tmp_path


def csv(home: Path, *lines: str) -> Path:
    (home / "mine.csv").write_text("\n".join(lines) + "\n")
    return home / "mine.csv"


def parquet(home: Path, metadata: dict[bytes, bytes] | None = None, **columns: Any) -> Path:
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, home / "mine.parquet")
    return home / "mine.parquet"


def columns_of(source: ReaderSource) -> dict[str, list[Any]]:
    columns = source.read(0, source.n_rows).columns
    return {name: values.tolist() for name, values in columns.items()}


def test_rows_are_in_the_order_of_the_manifest(home: Path) -> None:
    source = open_source(csv(home, "path,label", "b.png,dog", "a.png,cat", "more/c.png,dog"))
    rows = source.read(0, 3)
    assert rows.images[:, 0, 0, 0].tolist() == [0, 100, 200]
    assert rows.columns["sample_id"].tolist() == list(FILES)
    assert (source.name, source.class_names, source.extra_columns) == ("mine", ("cat", "dog"), ())
    assert rows.columns["label"].tolist() == [1, 0, 1]
    assert source.read(1, 3).columns["label"].tolist() == [0, 1]
    assert stored_sizes(source) == {(8, 8): 3}
    assert counted_classes(source).tolist() == [1, 2]
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()


def test_a_table_may_call_the_paths_image_and_be_parquet(home: Path) -> None:
    path = parquet(home, image=[str(home / "a.png"), "b.png"], label=pa.array(["x", None]))
    source = open_source(path)
    assert source.read(0, 2).images[:, 0, 0, 0].tolist() == [100, 0]
    assert columns_of(source)["label"] == [0, -1]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["2", "", "0"], ("0", "1", "2"), [2, -1, 0]),
        (["1.0", "0.0", ""], ("0", "1"), [1, 0, -1]),
        (["10", "x", "9"], ("10", "9", "x"), [0, 2, 1]),
        (["", "", ""], (), [-1, -1, -1]),
        ([2, None, 0], ("0", "1", "2"), [2, -1, 0]),
        ([1.0, float("nan"), 0.0], ("0", "1"), [1, -1, 0]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b"), [1, 0, 1]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
    ],
)
def test_labels_are_numbers_or_names(
    home: Path, labels: Any, names: tuple[str, ...], expected: list[int]
) -> None:
    source = open_source(parquet(home, path=FILES, label=labels))
    assert source.class_names == names
    assert columns_of(source)["label"] == expected


def test_class_numbers_have_the_names_that_are_given(home: Path) -> None:
    source = open_source(csv(home, "path,label", "b.png,1", "a.png,0"))
    assert not source.is_named
    assert with_classes(source, ("cat", "dog")).class_names == ("cat", "dog")
    features = {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    source = open_source(parquet(home, metadata, path=FILES, label=[1, 0, -1]))
    assert (source.class_names, source.is_named) == (("cat", "dog", "owl"), True)


def test_given_classes_reorder_named_labels(home: Path) -> None:
    path = csv(home, "path,label", "b.png,dog", "a.png,cat")
    source = open_source(path, classes=("dog", "owl", "cat"))
    assert columns_of(source)["label"] == [0, 2]
    assert counted_classes(source).tolist() == [1, 0, 1]


def test_further_columns_become_columns_of_the_samples(home: Path) -> None:
    lines = [
        "path,site,age,score,note",
        "b.png,A,3,1,2",
        "a.png,B,40,.5,x",
        "more/c.png,A,5,,",
    ]
    source = open_source(csv(home, *lines))
    assert dict(source.extra_columns) == {
        "site": "string",
        "age": "int64",
        "score": "float64",
        "note": "string",
    }
    columns = columns_of(source)
    assert columns["age"] == [3, 40, 5]
    assert columns["score"][:2] == [1, 0.5]
    assert np.isnan(columns["score"][2])
    assert columns["note"] == ["2", "x", ""]
    assert columns["label"] == [-1, -1, -1]
    assert open_source(parquet(home, path=FILES, code=["1", "2", "3"])).extra_columns == (
        ("code", "string"),
    )
    assert source.how_to_label == "add a column 'label' to mine.csv"


def test_columns_of_other_types_are_left_out_and_listed(home: Path) -> None:
    days = pa.array([1, 2, 3], pa.date32())
    columns = {"boxes": [[1], [2], [3]], "day": days, "status": ["x", "y", "z"]}
    source = open_source(parquet(home, path=FILES, **columns))
    assert source.extra_columns == (("day", "string"),)
    assert columns_of(source)["day"] == ["1970-01-02", "1970-01-03", "1970-01-04"]
    assert {each.reason: each.examples for each in source.left_out} == {
        "columns that are neither numbers nor text": ("boxes",),
        "columns with a name that the store uses itself": ("status",),
    }


def test_a_column_split_selects_rows_and_classes_are_those_of_all(home: Path) -> None:
    lines = ["path,label,split", "b.png,dog,train", "a.png,cat,val", "more/c.png,owl,train"]
    path = csv(home, *lines)
    train, val = open_source(path, "train"), open_source(path, "val")
    assert train.class_names == val.class_names == ("cat", "dog", "owl")
    assert columns_of(train)["sample_id"] == ["b.png", "more/c.png"]
    assert columns_of(val)["label"] == [0]
    with pytest.raises(DataNotFoundError, match=r"no 'test', only train, val: give one .* --split"):
        open_source(path)


def test_a_missing_file_is_a_failed_row(home: Path) -> None:
    rows = open_source(csv(home, "path,label,n", "b.png,0,7", "gone.png,1,8")).read(0, 2)
    assert list(rows.failed) == [1]
    assert rows.failed[1].startswith("gone.png: [Errno 2] No such file")
    assert rows.columns["n"].tolist() == [7, 8]


def test_a_file_elsewhere_is_only_decoded_as_an_image(home: Path) -> None:
    (home / "secret.pkl").write_bytes(pickle.dumps({"a": 1}))
    (home / "inner").mkdir()
    path = csv(home, "path", "../secret.pkl", "../b.png").rename(home / "inner" / "mine.csv")
    rows = open_source(path).read(0, 2)
    assert list(rows.failed) == [0]
    assert rows.failed[0].startswith("../secret.pkl: cannot identify image file")


def test_the_fingerprint_follows_labels_and_columns_and_not_the_place(home: Path) -> None:
    found = set()
    for last in ("a.png,0,1", "a.png,1,1", "a.png,0,2"):
        found.add(open_source(csv(home, "path,label,n", "b.png,1,1", last)).fingerprint())
    assert len(found) == 3
    shutil.copytree(home, home / "copy")
    found.add(open_source(home / "copy" / "mine.csv").fingerprint())
    assert len(found) == 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["file,label", "b.png,1"],
            "expected a column 'path' .* of image files, found file, label",
        ),
        (["path,label", "b.png,1", "b.png,0"], "rows 1 and 2 name the same file, 'b.png'"),
        (["path,n,n", "b.png,1,1"], "has two columns 'n', expected one"),
        (["path,label", "b.png,-2"], "the label of row 0 is -2, expected 0 to"),
        (["path,label"], "has no rows"),
        (["path,label", "b.png"], "expected a complete csv table in UTF-8 .*got 1"),
        (["path", "x/b.png"], "none of its 1 files exists, the first is .*/x/b.png"),
        (["path", "b\0.png"], "row 1: expected the path of a file, found a zero byte"),
        (["path,n", "caf\udce9.png,1"], "expected a complete csv table in UTF-8"),
    ],
)
def test_a_manifest_that_is_not_as_expected_is_one_line(
    home: Path, lines: list[str], message: str
) -> None:
    path = home / "mine.csv"
    path.write_bytes("\n".join([*lines, ""]).encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
        open_source(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 and more"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_damaged_table_is_one_line(home: Path, content: bytes, suffix: str) -> None:
    (home / f"mine{suffix}").write_bytes(content)
    with pytest.raises(InputError, match="expected a co") as caught:
        open_source(home / f"mine{suffix}")
    assert "\n" not in str(caught.value)


def test_labels_and_paths_of_other_types_are_refused(home: Path) -> None:
    with pytest.raises(InputError, match=r"its labels are list<.*expected class numbers or names"):
        open_source(parquet(home, path=FILES, label=[[1], [2], [3]]))
    with pytest.raises(InputError, match="its column 'path' is int64, expected paths as text"):
        open_source(parquet(home, path=[1, 2]))


def test_nearly_equal_labels_are_noted(home: Path) -> None:
    source = open_source(csv(home, "path,label", "b.png,cat", "a.png, cat"))
    (note,) = class_notes(source, is_ordered=False)
    assert "these names are nearly equal but count as different classes" in note


def test_the_list_shows_manifests_and_no_other_tables(home: Path) -> None:
    csv(home, "path,split", "b.png,train", "a.png,train", "more/c.png,val")
    (home / "notes.csv").write_text("x,y\n1,2\n")
    infos = {info.name: info for info in known_datasets(home)[len(KNOWN) :]}
    assert infos["mine.csv"].n_rows == {"train": 2, "val": 1}
    assert "notes.csv" not in infos


def test_a_table_that_fills_the_memory_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    indexes = pa.array([0] * 2000, pa.int32())
    text = pa.DictionaryArray.from_arrays(indexes, pa.array(["x" * 2**20]))
    table = pa.table({"path": list(map(str, range(2000))), "t": text})
    pq.write_table(table, tmp_path / "x.parquet", dictionary_pagesize_limit=2**24)
    with pytest.raises(InputError, match=r"at most 1 GiB, found one of 2\.0 GiB"):
        open_source(tmp_path / "x.parquet")


def test_too_many_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("path" + ",a" * 1000)
    with pytest.raises(InputError, match="has 1,001 columns, expected at most 1,000"):
        open_source(tmp_path / "x.csv")
