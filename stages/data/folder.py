"""Image folders: ``<root>/<split>/<class>/<file>``, and reading the files of any folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.data.fingerprint import listing_content
from stages.data.image_files import decoded
from stages.data.listing import (
    BROKEN_LINK,
    COMPANION,
    HIDDEN,
    OTHER_FOLDERS,
    OUTSIDE_CLASSES,
    UNLISTED,
    Listing,
    expected_images,
    listing,
    shallow_left_out,
    shown,
    tally,
)
from stages.data.regular import size_of_regular
from stages.data.resize import Resize
from stages.data.source import SPLITS, ReaderSource, Rows
from stages.errors import DataNotFoundError, InputError

ALL = "all"
"""The split of a folder that itself has the class folders."""


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Files of one split, in the order of the rows.

    Attributes:
        root: folder that contains the splits.
        files: path of each row below the root, such as ``<split>/<class>/<file>``.
        labels: index of the class of each row among the sorted class names.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``; a file that cannot be decoded becomes a failed row of zeros."""
        files = self.files[start:stop]
        root = str(self.root)
        paths = [os.path.join(root, file) for file in files]  # noqa: PTH118 - a Path is slower
        images, failed = decoded(files, paths, resizing)
        columns = {
            "sample_id": np.array(files, dtype=np.str_),
            "label": np.array(self.labels[start:stop], dtype=np.int64),
        }
        return Rows(images, columns, failed)

    def file_of(self, row: int) -> str:
        """Path of a row below the root."""
        return self.files[row]

    def held_bytes(self) -> int:
        """Memory of the list of files; images are read one at a time."""
        return sum(100 + len(file) for file in self.files)

    def content(self) -> str:
        """Hash of all names and sizes and of the bytes of a sample of files."""
        sizes = (size_of_regular(self.root / name) for name in self.files)
        return listing_content(self.root, list(zip(self.files, sizes, strict=True)))


def folder_source(root: Path, name: str, split: str, resizing: Resize) -> ReaderSource:
    """A source over the images of one split; class names are the sorted folder names.

    Files are taken in sorted order within the sorted classes. Anything else in ``root`` is left out
    and counted, except train and test. If ``resizing`` leaves it to the layout, images are
    stretched.

    Args:
        root: folder of the splits, or of the classes if there are no splits.
        name: name of the source.
        split: folder of the split, or ``all`` for class folders that ``root`` has itself.
        resizing: how images become those of ``read``.

    Raises:
        InputError: the split is missing, a class folder has no images or cannot be listed, or train
            or test has other classes.
    """
    folder = f"{split}/" if (root / split).is_dir() else ""
    if not folder and (split != ALL or has_split(root, *SPLITS)):
        raise DataNotFoundError(
            f"{root}: has no folder '{split}', expected {split}/<class>/<file>{_other_splits(root)}"
        )
    above = listing(root / folder)
    class_names = above.folders
    _check_links(root / folder, above)
    other = _split_beside(root, split) if folder and class_names else ""
    if other:
        _check_same_classes(root, {split: class_names, other: listing(root / other).folders})
    files, labels, left_out = class_files(root, folder, class_names, other)
    left_out = [*_outside_classes(folder, above), *left_out]
    if not files:
        raise InputError(
            f"{root / folder}: has no images, {expected_images('<class>/<file>', left_out)}"
        )
    check_utf8(root, [*class_names, *files])
    if folder:
        left_out = [*_outside_splits(root, split), *left_out]
    return ReaderSource(
        name=name,
        split=split,
        family=name,
        class_names=class_names,
        resizing=resizing,
        native=None,
        n_rows=len(files),
        reader=FolderReader(root, tuple(files), tuple(labels)),
        left_out=tally(left_out),
    )


def class_files(
    root: Path, folder: str, class_names: Sequence[str], other: str
) -> tuple[list[str], list[int], list[tuple[str, str]]]:
    """Path and label of each image in the class folders, and what is left out of them.

    Args:
        root: folder that the paths are relative to.
        folder: folder of the classes below ``root``: "", or a path that ends in "/".
        class_names: names of the class folders, in the order of the labels.
        other: folder below ``root`` that may have the images of an empty class instead; "" if none.
    """
    files: list[str] = []
    labels: list[int] = []
    left_out: list[tuple[str, str]] = []
    for label, class_name in enumerate(class_names):
        place = f"{folder}{class_name}/"
        found = listing(root / place)
        if not found.images:
            _check_empty(root, place, found, root / other / class_name if other else None)
        files += [f"{place}{image}" for image in found.images]
        labels += [label] * len(found.images)
        left_out += shallow_left_out(root, place, found)
    return files, labels, left_out


def has_split(root: Path, *splits: str) -> bool:
    """Whether one of these splits has at least one class folder."""
    return any((root / split).is_dir() and listing(root / split).folders for split in splits)


def splits_in(root: Path) -> tuple[str, ...]:
    """Names of the folders that have class folders with images; train and test come first."""
    folders = listing(root).folders
    found = [name for name in folders if _has_images(root / name)]
    return tuple(sorted(found, key=lambda name: (name not in SPLITS[:1], name not in SPLITS, name)))


def _has_images(folder: Path) -> bool:
    return any(listing(folder / name).images for name in listing(folder).folders)


def _other_splits(root: Path) -> str:
    others = splits_in(root)
    return f"; it has {', '.join(others)}: use --split {others[0]}" if others else ""


def _split_beside(root: Path, split: str) -> str:
    """Train or test, whichever has the same classes as this split; empty if there is neither."""
    return next((each for each in SPLITS if each != split and has_split(root, each)), "")


def _check_same_classes(root: Path, classes: dict[str, tuple[str, ...]]) -> None:
    (one, other) = sorted(classes, key=lambda split: (split not in SPLITS, split != SPLITS[0]))
    mine, others = set(classes[one]), set(classes[other])
    if mine != others:
        only = [f"only in {one}: {', '.join(sorted(mine - others)) or '-'}"]
        only.append(f"only in {other}: {', '.join(sorted(others - mine)) or '-'}")
        raise InputError(
            f"{root}: {one} has {len(mine)} classes and {other} {len(others)}, expected the same "
            f"({'; '.join(only)}); rename or add the folders"
        )


def _check_links(folder: Path, found: Listing) -> None:
    """Refuse a broken link beside the class folders: it may stand for a class that is missing."""
    for reason, name in found.left_out:
        if reason == BROKEN_LINK:
            raise InputError(
                f"{folder / name}: expected a class folder, found a broken link; mount or copy its "
                "target, or remove the link"
            )


def _check_empty(root: Path, place: str, found: Listing, elsewhere: Path | None) -> None:
    """Refuse a class folder without images: its files may be too deep, or it may not be a class.

    An empty one is accepted if the images of the class are ``elsewhere``, in another split.
    """
    existing = [*shallow_left_out(root, place, found)]
    is_bare = not found.folders and all(reason in (HIDDEN, COMPANION) for reason, _ in existing)
    if is_bare and elsewhere and elsewhere.is_dir() and listing(elsewhere).images:
        return
    raise InputError(
        f"{root / place}: the class folder has no images, {expected_images('<file>', existing)}; "
        "put its images directly into it, or move it away if it is not a class"
    )


def _outside_splits(root: Path, split: str) -> Iterator[tuple[str, str]]:
    """Yield ``(reason, path)`` of everything beside the splits; a folder counts as one entry."""
    try:
        found = listing(root)
    except InputError:  # entering the folder suffices to read its splits
        yield UNLISTED, f"{root.name}/"
        return
    others = (name for name in found.folders if name not in (*SPLITS, split))
    yield from ((OTHER_FOLDERS, f"{name}/") for name in others)
    yield from ((OUTSIDE_CLASSES, name) for name in found.images)
    yield from found.left_out


def _outside_classes(folder: str, found: Listing) -> Iterator[tuple[str, str]]:
    """Yield ``(reason, path)`` of everything beside the class folders of a split."""
    yield from ((OUTSIDE_CLASSES, f"{folder}{name}") for name in found.images)
    yield from ((reason, f"{folder}{name}") for reason, name in found.left_out)


def check_utf8(root: Path, files: Sequence[str]) -> None:
    """Refuse a path that is not UTF-8, since it could not be written to the store."""
    for path in files:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{root}: expected names of files and folders in UTF-8, found '{shown(path)}': "
                "rename it"
            ) from error
