"""Data sets of several domains with the same classes: Office-31 and VisDA-2017."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stages.data.classes import with_classes
from stages.data.folder import ALL, folder_source
from stages.data.resize import Resize
from stages.data.source import ReaderSource

OFFICE31_NAMES = (
    *("back_pack", "bike", "bike_helmet", "bookcase", "bottle", "calculator", "desk_chair"),
    *("desk_lamp", "desktop_computer", "file_cabinet", "headphones", "keyboard"),
    *("laptop_computer", "letter_tray", "mobile_phone", "monitor", "mouse", "mug"),
    *("paper_notebook", "pen", "phone", "printer", "projector", "punchers", "ring_binder"),
    *("ruler", "scissors", "speaker", "stapler", "tape_dispenser", "trash_can"),
)
"""Classes of Office-31 in the order of its labels, which is string order."""

VISDA_NAMES = (
    *("aeroplane", "bicycle", "bus", "car", "horse", "knife", "motorcycle", "person", "plant"),
    *("skateboard", "train", "truck"),
)
"""Classes of VisDA-2017 in the order of its labels, which is string order."""


def office31_source(folder: Path, domain: str, resizing: Resize) -> ReaderSource:
    """All images of a domain of Office-31.

    Args:
        folder: has ``<domain>/images/<class>/<file>``, as the archive is unpacked, or
            ``<domain>/<class>/<file>``. An ``image_list`` beside them is not needed: its labels are
            the positions of the class folders.
        domain: ``amazon``, ``dslr`` or ``webcam``.
        resizing: how images become those of ``read``.

    Raises:
        InputError: it has no such folder, or a folder that is none of the classes.
    """
    inside = folder / domain / "images"
    root = inside if inside.is_dir() else folder / domain
    return _domain(root, f"office31-{domain}", "office31", OFFICE31_NAMES, resizing)


def visda_source(folder: Path, split: str, resizing: Resize) -> ReaderSource:
    """The synthetic images of VisDA-2017 (``train``) or the photographs (``validation``).

    ``folder`` has ``<split>/<class>/<file>``. The ``image_list.txt`` in a split is not needed: its
    labels are the positions of the class folders.

    Raises:
        InputError: it has no such folder, or a folder that is none of the classes.
    """
    found = _domain(folder / split, "visda2017", "visda2017", VISDA_NAMES, resizing)
    return replace(found, split=split)


def _domain(
    root: Path, name: str, family: str, class_names: tuple[str, ...], resizing: Resize
) -> ReaderSource:
    """Images in class folders; a class without a folder keeps its label."""
    found = replace(folder_source(root, name, ALL, resizing), family=family)
    return with_classes(found, class_names)
