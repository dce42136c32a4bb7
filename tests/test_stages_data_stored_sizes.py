"""Sizes of images as stored, and what resizing does to their shape."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data.registry import SourceSpec
from stages.data.resize import Resize, shape_after
from stages.data.source import ImageSource
from stages.data.stored_sizes import in_words, shape_of, stored_sizes

PHOTO, TALL, SQUARE = (30, 40), (50, 20), (32, 32)


def write_folder(folder: Path, *sizes: tuple[int, int], classes: bool) -> Path:
    """An image of each ``(H, W)``, under ``test/<class>`` or loose in a folder."""
    place = folder / "test" / "cat" if classes else folder / "some"
    place.mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height), (number, 0, 0)).save(place / f"{number}.png")
    return folder


def write_npy(path: Path, size: tuple[int, int]) -> Path:
    np.save(path, np.zeros((3, *size, 1), np.uint8))
    return path


def opened(place: Path, *, labels: bool = True) -> ImageSource:
    return SourceSpec(str(place), "test", "", labels=labels).open()


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_sizes_of_files_are_those_of_their_headers(
    tmp_path: Path, classes: bool, labels: bool
) -> None:
    folder = write_folder(tmp_path / "photos", PHOTO, PHOTO, SQUARE, classes=classes)
    assert stored_sizes(opened(folder, labels=labels)) == {PHOTO: 2, SQUARE: 1}


def test_sizes_of_arrays_are_those_of_the_array(tmp_path: Path) -> None:
    assert stored_sizes(opened(write_npy(tmp_path / "a.npy", (28, 28)))) == {(28, 28): 3}
    assert stored_sizes(opened(write_npy(tmp_path / "b.npy", SQUARE))) == {SQUARE: 3}


def test_files_that_cannot_be_read_have_no_size(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", PHOTO, SQUARE, classes=True)
    (folder / "test" / "cat" / "1.png").write_bytes(b"broken")
    source = opened(folder)
    (folder / "test" / "cat" / "0.png").unlink()
    os.mkfifo(folder / "test" / "cat" / "0.png")  # no process writes to it
    assert not stored_sizes(source)


def test_a_large_set_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.data.stored_sizes.SAMPLE", 3)
    folder = write_folder(tmp_path / "photos", PHOTO, TALL, SQUARE, TALL, PHOTO, classes=True)
    assert stored_sizes(opened(folder)) == {PHOTO: 2, SQUARE: 1}


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (Resize(SQUARE).rule(SQUARE), "kept"),
        (Resize(SQUARE).rule((28, 28)), "kept"),
        (Resize(SQUARE).rule((64, 64)), "kept"),
        (Resize(SQUARE).rule((28, 32)), "stretched"),
        (Resize(SQUARE).rule(None), "stretched"),
        (Resize(SQUARE, 32).rule(None), "cropped"),
    ],
)
def test_a_rule_determines_what_happens_to_the_shape(rule: str, shape: str) -> None:
    assert shape_after(rule) == shape


@pytest.mark.parametrize(
    ("sizes", "classes", "shape"),
    [
        ((PHOTO, SQUARE), True, "stretched"),
        ((PHOTO, SQUARE), False, "cropped"),
        ((SQUARE, (64, 64)), True, "kept"),
        ((SQUARE, (64, 64)), False, "kept"),
    ],
)
def test_square_files_keep_their_shape_by_either_rule(
    tmp_path: Path, sizes: tuple[tuple[int, int], ...], classes: bool, shape: str
) -> None:
    assert shape_of(opened(write_folder(tmp_path / "f", *sizes, classes=classes))) == shape


def test_square_files_give_the_same_pixels_by_either_rule(tmp_path: Path) -> None:
    """Which is why they may be compared with either."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    read = []
    for classes in (True, False):
        folder = write_folder(tmp_path / str(classes), SQUARE, classes=classes)
        (file,) = folder.rglob("*.png")
        Image.fromarray(pixels).save(file)
        read.append(opened(folder).read(0, 1).images)
    assert (read[0] == read[1]).all()


def test_sizes_in_words() -> None:
    assert in_words(Counter({PHOTO: 1})) == "30x40"
    assert in_words(Counter({PHOTO: 2, TALL: 1})) == "30x40 and 1 other size"
