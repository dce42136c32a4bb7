"""Office-31 and VisDA-2017 in the layouts in which they are distributed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data.domains import OFFICE31_NAMES, VISDA_NAMES
from stages.data.known import KNOWN
from stages.data.registry import known_datasets, open_source
from stages.errors import InputError

OFFICE = ("back_pack/frame_0001.jpg", "back_pack/frame_0002.jpg", "trash_can/frame_0001.jpg")
"""Two of the 31 classes: the labels of the others stay free."""

VISDA = ("aeroplane/a__0.png", "train/t__0.png", "truck/u__0.png")
"""One class has the name of a split."""


def write(folder: Path, files: tuple[str, ...]) -> None:
    for number, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 40, 3), 40 * number, np.uint8)).save(folder / file)


def write_list(path: Path, place: str, labels: dict[str, int]) -> None:
    """Lines of a path and a label, as in the lists of the Transfer-Learning-Library and VisDA."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{place}{file} {label}\n" for file, label in labels.items()))


@pytest.mark.parametrize(
    ("folder", "inside", "has_lists"),
    [
        ("domain_adaptation_images", "images/", False),  # the original archive
        ("office31", "", False),  # Dassl
        ("office31", "images/", True),  # the Transfer-Learning-Library
    ],
)
def test_the_layouts_of_office_31_give_the_same_rows(
    tmp_path: Path, folder: str, inside: str, has_lists: bool
) -> None:
    labels = dict(zip(OFFICE, (0, 0, 30), strict=True))
    for domain in ("amazon", "dslr", "webcam"):
        write(tmp_path / folder / domain / inside, OFFICE)
        if has_lists:
            place = f"{domain}/{inside}"
            write_list(tmp_path / folder / "image_list" / f"{domain}.txt", place, labels)
    for domain in ("amazon", "dslr", "webcam"):
        found = open_source(f"office31-{domain}", "all", tmp_path)
        columns = found.read(0, 3).columns

        assert (found.name, found.split, found.family) == (f"office31-{domain}", "all", "office31")
        assert found.class_names == OFFICE31_NAMES
        assert dict(zip(columns["sample_id"], columns["label"], strict=True)) == labels


def test_visda_has_synthetic_images_and_photographs(tmp_path: Path) -> None:
    labels = dict(zip(VISDA, (0, 10, 11), strict=True))
    for split in ("train", "validation"):
        write(tmp_path / "visda17" / split, VISDA)
        write_list(tmp_path / "visda17" / split / "image_list.txt", "", labels)
    write(tmp_path / "visda17" / "test", ("trunk00/1.jpg",))
    for split in ("train", "validation"):
        found = open_source("visda2017", split, tmp_path)
        columns = found.read(0, 3).columns

        assert (found.name, found.split, found.class_names) == ("visda2017", split, VISDA_NAMES)
        assert dict(zip(columns["sample_id"], columns["label"], strict=True)) == labels


def test_a_folder_that_is_no_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "office31" / "dslr", (*OFFICE, "umbrella/frame_0001.jpg"))

    with pytest.raises(InputError, match="umbrella"):
        open_source("office31-dslr", "all", tmp_path)


def test_the_split_that_exists_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="office31-dslr: has no split 'test', only all"):
        open_source("office31-dslr", "test", tmp_path)


def test_the_sets_are_listed_and_have_as_many_classes_as_published(tmp_path: Path) -> None:
    write(tmp_path / "office31" / "amazon" / "images", OFFICE)
    found = {info.name: info for info in known_datasets(tmp_path)}

    assert found["office31-amazon"].is_on_disk
    assert not found["office31-amazon"].problem
    assert not found["office31-dslr"].is_on_disk
    assert (len(OFFICE31_NAMES), len(VISDA_NAMES)) == (31, 12)
    assert sum(KNOWN[name].n_rows["all"] for name in KNOWN if name.startswith("office")) == 4_110
