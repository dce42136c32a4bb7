"""Locate the labels of an array file of images."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from stages.data.listing import LeftOut, shown, tally

_ALONE = r"^{0}(?=$|[_.-])|(?<=train[_.-]){0}$|(?<=test[_.-]){0}$"  # x_test, train_x; not scan_x
_WORD = r"(?<![A-Za-z]){0}(?![A-Za-z])"
_PAIRS = (
    *((_ALONE, "x", "y"), (_ALONE, "X", "y"), (_ALONE, "X", "Y")),
    *((_WORD, "images", "labels"), (_WORD, "images", "targets")),
    *((_WORD, "data", "labels"), (_WORD, "data", "targets")),
)
_MAX_SHOWN = 5


def labels_beside(path: Path) -> tuple[Path | None, tuple[LeftOut, ...]]:
    """The label file for a ``.npy`` of images, and other files that could have been meant.

    The first is ``None`` if no file has a matching name.
    """
    found: list[Path] = []
    for name in (f"{path.stem}-labels", "labels", *_partners(path.stem)):
        place = path.with_name(f"{name}.npy")
        if place.is_file() and place != path and not any(map(place.samefile, found)):
            found.append(place)
    if not found:
        return None, ()
    reason = f"skipped because labels are in {shown(found[0].name)}"
    return found[0], tally((reason, other.name) for other in found[1:])


def _partners(stem: str) -> Iterator[str]:
    """File names of labels that belong to images with that name.

    >>> list(_partners("x_test"))
    ['y_test']
    """
    for pattern, images, labels in _PAIRS:
        if found := re.search(pattern.format(images), stem):
            yield stem[: found.start()] + labels + stem[found.end() :]


def how_to_label(path: Path) -> str:
    """How to add labels to an array file without labels; empty if it has them."""
    numbers = "save class numbers, one for each image,"
    if path.suffix == ".npy":
        return f"{numbers} as {path.stem}-labels.npy beside {path.name}"
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    if "labels" in names:
        return ""
    members = ", ".join(names[:_MAX_SHOWN])
    return f"{numbers} as the array 'labels' in {path.name}, which contains {members}"
