"""Lists of labels: every name is preserved, and no two are merged."""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.active_learning.labels import COLUMNS, label_list, read_labels
from stages.data.near_equal import near_equal, near_equal_note

NAMES = (
    *("3", "3.0", "Cat", "cat", " cat", "cat ", "caf\u00e9", "cafe\u0301", "zero\u200bwidth"),
    *("with, comma", 'with "quotes"', "two\nlines", "carriage\r", "both\r\n", "\rfirst"),
    *("007", "NA", "null", "None", "nan", "1e3", "True", "=1+1", "#hash", "'", "\N{CAT FACE}"),
    *("\uff13", "no\u00a0break", "tab\there", "\ufeffmark", "\u2028line"),
)


def write_labels(path: Path, ids: list[str], names: list[str]) -> Path:
    """A list as people give it back: the same columns, with a label for each sample."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([COLUMNS, *zip(range(1, len(ids) + 1), ids, names, strict=True)])
    return path


def round_trip(path: Path, names: list[str]) -> list[str]:
    ids = [f"{row}.png" for row in range(len(names))]
    write_labels(path, ids, names)
    found = read_labels([path], {name: row for row, name in enumerate(ids)})
    return [found[row] for row in range(len(names))]


def test_every_name_survives_the_list(tmp_path: Path) -> None:
    assert round_trip(tmp_path / "labels.csv", list(NAMES)) == list(NAMES)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))).filter(str.strip)))
def test_writing_and_reading_is_identity(names: list[str]) -> None:
    with TemporaryDirectory() as folder:
        assert round_trip(Path(folder, "labels.csv"), names) == names


def test_sample_ids_survive_the_list(tmp_path: Path) -> None:
    ids = ["a,b.png", 'a"b.png', "a\nb.png", "a\rb.png", " a.png", "007.png"]
    known = {name: row for row, name in enumerate(ids)}

    path = write_labels(tmp_path / "labels.csv", ids, ["x"] * len(ids))
    assert read_labels([path], known) == dict.fromkeys(range(len(ids)), "x")

    path.write_bytes(label_list(ids))
    assert read_labels([path], known) == {}
    with path.open(encoding="utf-8", newline="") as file:
        assert [row["sample_id"] for row in csv.DictReader(file)] == ids


def test_a_list_with_windows_line_ends_has_the_same_labels(tmp_path: Path) -> None:
    text = b"sample_id,label\r\na.png,cat\r\nb.png,dog\r\n"
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text)

    assert read_labels([tmp_path / "labels.csv"], {"a.png": 0, "b.png": 1}) == {0: "cat", 1: "dog"}


def test_a_list_without_labels_is_written_as_before(tmp_path: Path) -> None:
    assert label_list(["a.png", "b,c.png"]) == b'number,sample_id,label\n1,a.png,\n2,"b,c.png",\n'


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u00a0"])
def test_a_blank_label_is_no_label(tmp_path: Path, blank: str) -> None:
    path = write_labels(tmp_path / "labels.csv", ["a.png"], [blank])

    assert read_labels([path], {"a.png": 0}) == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3", "3.0"),
        ("3", "03"),
        ("1000", "1e3"),
        ("-1", "-1.00"),
        ("Cat", "cat"),
        ("STRASSE", "straße"),
        ("caf\u00e9", "cafe\u0301"),
        ("cat", "cat\u200b"),
        ("cat", "cat\r"),
        ("cat", " cat"),
        ("cat", "cat "),
        ("big cat", "big  cat"),
        ("big cat", "big\u00a0cat"),
        ("3", "\uff13"),
        ("ﬁsh", "fish"),
        ("cat", "\ufeffcat"),
        ("cat", "ca\u00adt"),
    ],
)
def test_nearly_equal_names_are_named(one: str, other: str) -> None:
    assert near_equal(["dog", one, "4", other]) == [(one, other)]
    assert near_equal_note([one, other], "x").startswith("x: these names are nearly equal")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3", "30"),
        ("cat", "cats"),
        ("12345678901234567890123456789012", "12345678901234567890123456789013"),
        ("nan", "inf"),
        ("n01440764", "n01443537"),
        ("1e999999999", "1e999999998"),
        ("c", "ç"),
    ],
)
def test_names_that_differ_visibly_are_not_reported(one: str, other: str) -> None:
    assert near_equal([one, other]) == []


def test_the_note_is_one_line_with_escapes() -> None:
    note = near_equal_note(
        ["caf\u00e9", "cafe\u0301", "cat", "cat\r", "a", "A", "b", "B"], "labels"
    )

    assert note == (
        "labels: these names are nearly equal but count as different classes: "
        "'café' and 'cafe\\u0301'; 'cat' and 'cat\\r'; 'a' and 'A'; and 1 more; "
        "if they mean the same class, give them the same name"
    )
