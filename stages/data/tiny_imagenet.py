"""Tiny ImageNet as published: classes by WordNet id, and a table of labels for ``val``."""

from __future__ import annotations

from pathlib import Path

from stages.data.classes import read_classes
from stages.data.folder import FolderReader
from stages.data.listing import images_below, listing, tally
from stages.data.regular import require_regular
from stages.data.resize import Resize
from stages.data.source import ReaderSource
from stages.errors import InputError

SPLITS = ("train", "val")
_IDS, _TABLE = "wnids.txt", "val/val_annotations.txt"


def is_tiny_imagenet(root: Path) -> bool:
    """Whether a folder has the files in which Tiny ImageNet lists its classes and labels."""
    return all((root / name).is_file() for name in (_IDS, _TABLE))


def tiny_imagenet_source(root: Path, name: str, split: str, resizing: Resize) -> ReaderSource:
    """A source over ``train/<class>/images/<file>`` or ``val/images/<file>``.

    The classes are those of ``wnids.txt`` in string order, as if they were folders. The label of a
    file of ``val`` is the second column of ``val/val_annotations.txt``.

    Raises:
        InputError: another split, an image without a label, a label that is no class, or a file of
            the data set that cannot be read.
    """
    if split not in SPLITS:
        raise InputError(
            f"{root}: expected --split train or val, found {split!r}: the images of test have no "
            "published labels"
        )
    class_names = tuple(sorted(read_classes(root / _IDS)))
    labels = _labels(root, split, class_names)
    others = () if split == "val" else listing(root / "train").left_out
    return ReaderSource(
        name=name,
        split=split,
        family=name,
        class_names=class_names,
        resizing=resizing,
        native=None,
        n_rows=len(labels),
        reader=FolderReader(root, tuple(labels), tuple(labels.values())),
        left_out=tally(others),
    )


def _labels(root: Path, split: str, class_names: tuple[str, ...]) -> dict[str, int]:
    """File below the root -> label, in the order of the rows."""
    number = {name: label for label, name in enumerate(class_names)}
    if split == "train":
        return {
            f"train/{name}/images/{file}": label
            for name, label in number.items()
            for file in listing(root / "train" / name / "images").images
        }
    class_of = _table(root / _TABLE)
    files, _ = images_below(root / "val" / "images")
    if wrong := [file for file in files if class_of.get(file) not in number]:
        raise InputError(
            f"{root / _TABLE}: gives {wrong[0]!r} the class {class_of.get(wrong[0])!r}, expected "
            f"one of {_IDS}"
        )
    return {f"val/images/{file}": number[class_of[file]] for file in sorted(files)}


def _table(path: Path) -> dict[str, str]:
    """File name -> class, from lines of a file name, a class, and four numbers of a box."""
    require_regular(path)
    try:
        rows = (line.split("\t") for line in path.read_text("utf-8").splitlines())
        return {row[0]: row[1] for row in rows}
    except (UnicodeDecodeError, IndexError) as error:
        raise InputError(
            f"{path}: expected lines of a file name, a tab and a class, in UTF-8"
        ) from error
