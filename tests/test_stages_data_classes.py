"""The classes of a data set: the file that names them, their order, and their images."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data.classes import class_notes, counted_classes, read_classes
from stages.data.registry import SourceSpec, open_source
from stages.data.source import ReaderSource, without_labels
from stages.errors import InputError

NUMBERS = tuple(str(number) for number in range(1, 13))


def write_folders(root: Path, names: tuple[str, ...]) -> Path:
    """One image of 8x8 pixels for each class, ``20 * place`` bright."""
    for place, name in enumerate(names):
        folder = root / "test" / name
        folder.mkdir(parents=True)
        Image.new("L", (8, 8), 20 * place).save(folder / "0.png")
    return root


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("data") / "numbered", NUMBERS)


def labels_of(source: ReaderSource) -> dict[str, int]:
    """Folder of each row -> its label."""
    columns = source.read(0, source.n_rows).columns
    folders = [sample_id.split("/")[1] for sample_id in columns["sample_id"]]
    return dict(zip(folders, columns["label"].tolist(), strict=True))


# Order


def test_folders_stay_in_string_order_by_default(numbered: Path) -> None:
    labels = labels_of(open_source(numbered))

    assert sorted(labels, key=labels.__getitem__) == sorted(NUMBERS)


def test_named_classes_give_the_labels_and_leave_rows_and_images(numbered: Path) -> None:
    plain, ordered = open_source(numbered), open_source(numbered, classes=NUMBERS)

    assert labels_of(ordered) == {name: place for place, name in enumerate(NUMBERS)}
    assert ordered.class_names == NUMBERS
    assert (ordered.read(0, 12).images == plain.read(0, 12).images).all()


def test_two_orders_are_two_data_sets_and_the_default_one_is_unchanged(numbered: Path) -> None:
    plain = open_source(numbered).fingerprint()

    assert open_source(numbered, classes=NUMBERS).fingerprint() != plain
    assert open_source(numbered, classes=tuple(sorted(NUMBERS))).fingerprint() == plain


def test_a_spec_opens_its_classes(numbered: Path) -> None:
    spec = SourceSpec(str(numbered), "test", "", limit=3, classes=NUMBERS)

    assert labels_of(spec.open()) == {"1": 0, "10": 9, "11": 10}


def test_a_source_with_named_classes_survives_pickling(numbered: Path) -> None:
    source = open_source(numbered, classes=NUMBERS)

    assert labels_of(pickle.loads(pickle.dumps(source))) == labels_of(source)


def test_there_may_be_more_classes_than_folders(numbered: Path) -> None:
    source = open_source(numbered, classes=("0", *NUMBERS, "13"))

    assert source.n_classes == 14
    assert labels_of(source)["12"] == 12


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            NUMBERS[:-1],
            r"class '12' is not among the 11 given names \(1, 2, 3, 4, \.\.\.\); 1 of",
        ),
        ((*NUMBERS[:-1], "12.0"), r"'12' is not among the 12 .*\(nearly equal: '12.0'\)"),
        ((*NUMBERS, "12"), "found '12' on lines 12 and 13"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    numbered: Path, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_source(numbered, classes=classes)


@pytest.mark.parametrize(
    ("names", "natural"),
    [
        (NUMBERS, "1, 2, 3, 4"),
        (("img1", "img10", "img2"), "img1, img2, img10"),
        (("-1", "-10", "2"), "-10, -1, 2"),
        (("v1.10", "v1.9"), "v1.9, v1.10"),
        (("level 2 a", "level 10 a"), "level 2 a, level 10 a"),
    ],
)
def test_an_order_that_may_not_be_meant_is_noted(
    tmp_path: Path, names: tuple[str, ...], natural: str
) -> None:
    (note,) = class_notes(open_source(write_folders(tmp_path / "set", names)), is_ordered=False)

    assert f"natural order ({natural}" in note
    assert "--classes FILE" in note
    assert "\n" not in note


@pytest.mark.parametrize(
    "names",
    [
        ("ant", "bee"),
        ("01", "02", "10"),
        ("0.25", "0.5"),
        ("n01440764", "n02102040"),
        ("7", "8", "9"),
        ("9" * 250, "ant"),
    ],
)
def test_an_order_that_is_clear_is_not_noted(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = open_source(write_folders(tmp_path / "set", names))

    assert class_notes(source, is_ordered=False) == []


def test_a_named_order_is_not_noted(numbered: Path) -> None:
    source = open_source(numbered, classes=tuple(sorted(NUMBERS)))

    assert class_notes(source, is_ordered=True) == []


@pytest.mark.parametrize("names", [("Cat", "cat"), ("3", "3.0"), ("caf\u00e9", "cafe\u0301")])
def test_nearly_equal_folders_are_noted(tmp_path: Path, names: tuple[str, str]) -> None:
    source = open_source(write_folders(tmp_path / "set", names))

    assert source.n_classes == 2
    (note,) = class_notes(source, is_ordered=False)
    assert note.startswith("set: these names are nearly equal")


# Arrays


def write_array(path: Path, **more: list[str]) -> Path:
    images = np.zeros((5, 8, 8), np.uint8)
    np.savez(path, images=images, labels=np.array([0, 1, -1, 2, 2]), **more)
    return path


def test_names_of_an_array_without_names_are_those_of_its_labels(tmp_path: Path) -> None:
    source = open_source(write_array(tmp_path / "few.npz"), classes=("c", "a", "b", "z"))

    assert source.class_names == ("c", "a", "b", "z")
    assert source.read(0, 5).columns["label"].tolist() == [0, 1, -1, 2, 2]


def test_an_array_with_names_gets_the_labels_of_the_order(tmp_path: Path) -> None:
    path = write_array(tmp_path / "few.npz", class_names=["a", "b", "c"])

    source = open_source(path, classes=("c", "a", "b"))

    assert source.read(0, 5).columns["label"].tolist() == [1, 2, -1, 0, 0]


def test_fewer_names_than_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="has a label 2, but only 2 class names were given: give at least 3"
    ):
        open_source(write_array(tmp_path / "few.npz"), classes=("a", "b"))


def test_names_for_images_without_labels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "bare.npy", np.zeros((2, 8, 8), np.uint8))

    with pytest.raises(InputError, match="the data set has no labels, so it has no classes"):
        open_source(tmp_path / "bare.npy", classes=("a", "b"))


# Counts


def test_images_of_each_class_are_counted_without_reading_them(
    tmp_path: Path, numbered: Path
) -> None:
    array = open_source(write_array(tmp_path / "few.npz"), classes=("a", "b", "c", "d"))

    assert counted_classes(array).tolist() == [1, 1, 2, 0]
    assert counted_classes(open_source(numbered, limit=2, classes=NUMBERS)).tolist() == [
        *(1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0)
    ]
    assert counted_classes(without_labels(array)).tolist() == []
    assert counted_classes(open_source("uniform-noise")) is None


# The file


@pytest.mark.parametrize(
    "content",
    [
        b"cat\ndog\n",
        b"cat\ndog",
        b"\xef\xbb\xbfcat\ndog\n",
        b"cat\r\ndog\r\n",
        b"cat\rdog\r",
        b"  cat\t\ndog  \n",
        b"cat\ndog\n\n \n",
    ],
)
def test_a_file_of_names_is_read_whatever_its_line_ends(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "classes.txt").write_bytes(content)

    assert read_classes(tmp_path / "classes.txt") == ("cat", "dog")


def test_names_in_a_file_are_kept_verbatim(tmp_path: Path) -> None:
    names = ("big cat", "007", "NA", "1e3", "caf\u00e9", "cafe\u0301", "a\u2028b", "# x", '"q",')
    (tmp_path / "classes.txt").write_text("\n".join(names))

    assert read_classes(tmp_path / "classes.txt") == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected one class name per line, found none"),
        (b"\xef\xbb\xbf\n\n", "found none"),
        (b"cat\n\ndog\n", ":2: expected a class name, found an empty line"),
        (b"cat\ndog\ncat\n", "found 'cat' on lines 1 and 3"),
        (b"cat\ncat \n", "found 'cat' on lines 1 and 2"),
        (b"caf\xe9\n", "expected class names in UTF-8"),
        ("cat\ndog\n".encode("utf-16"), "expected class names in UTF-8"),
        ("cat\ndog\n".encode("utf-16-le"), "found zero bytes"),
        (b"x" * (16 * 2**20 + 1), "found more than 16,777,216 bytes"),
    ],
)
def test_a_file_that_is_no_list_of_names_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "classes.txt").write_bytes(content)

    with pytest.raises(InputError, match=message) as refused:
        read_classes(tmp_path / "classes.txt")

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"), [("missing.txt", "no such file of class names"), (".", "Is a directory")]
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_classes(tmp_path / name)
