"""Folders of images without labels: sets to compare with, and pools to be labelled."""

from __future__ import annotations

from pathlib import Path

from stages.data.folder import FolderReader, check_utf8
from stages.data.listing import expected_images, images_below, listing, shallow_left_out, tally
from stages.data.resize import Resize
from stages.data.source import SPLITS, ReaderSource
from stages.errors import InputError


def loose_source(root: Path, name: str, resizing: Resize) -> ReaderSource:
    """A source over the images directly in a folder and in its subfolders, without labels.

    Out-of-distribution sets have this layout: ``dtd/images/<class>/<file>``, ``iSUN/<any>/<file>``.
    Files are in sorted order. If ``resizing`` leaves it to the layout, images are cropped.
    Everything else is excluded and counted.

    Raises:
        InputError: there are no images, or one of these folders cannot be listed.
    """
    top = listing(root)
    files = [*top.images]
    left_out = [*top.left_out]
    for folder in top.folders:
        place = f"{folder}/"
        found = listing(root / folder)
        files += [f"{place}{image}" for image in found.images]
        left_out += shallow_left_out(root, place, found)
    if not files:
        expected = expected_images("<file> or <folder>/<file>", left_out)
        raise InputError(f"{root}: has no images, {expected}")
    check_utf8(root, files)
    return ReaderSource(
        name=name,
        split="test",
        family=name,
        class_names=(),
        resizing=resizing.in_layout(stretches=False),
        native=None,
        n_rows=len(files),
        reader=FolderReader(root, tuple(files), (-1,) * len(files)),
        left_out=tally(left_out),
    )


def has_loose_images(root: Path) -> bool:
    """Whether a folder or one of its subfolders has an image; raises like ``listing``."""
    top = listing(root)
    return bool(top.images) or any(listing(root / each).images for each in top.folders)


def pool_source(root: Path, name: str, resizing: Resize) -> ReaderSource:
    """A source over every image below a folder, in any layout and without labels.

    Files are in the order of their paths; links to folders are not followed. Everything that is not
    an image is excluded and counted. The split is called ``train``, because it is used for
    training.

    Raises:
        InputError: there is no image, or the folder cannot be listed.
    """
    files, left_out = images_below(root)
    if not files:
        raise InputError(f"{root}: has no images, {expected_images('files', left_out)}")
    check_utf8(root, files)
    return ReaderSource(
        name=name,
        split=SPLITS[0],
        family=name,
        class_names=(),
        resizing=resizing,
        native=None,
        n_rows=len(files),
        reader=FolderReader(root, tuple(files), (-1,) * len(files)),
        left_out=tally(left_out),
    )
