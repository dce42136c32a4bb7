"""Corrupted image files in ImageNet-C's layout: ``<corruption>/<severity>/<class>/<file>``.

Tiny-ImageNet-C and ImageNet-C-bar have it too. Rows are ordered by corruption, severity, class and
file. Every corruption has the same severities, and each of these the same classes and files. In
ImageNet-C-bar, where each corruption has its own folders such as ``2.35``, severities are their
ranks, from 1. As in CIFAR-10-C, the ``sample_id`` of image 42 is ``fog/3/00042``; ``clean_id`` is
``<class>/<file>``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages.data.classes import with_classes
from stages.data.fingerprint import listing_content
from stages.data.folder import FolderReader, check_utf8, class_files
from stages.data.listing import OTHER_FOLDERS, OUTSIDE_CLASSES, listing, tally
from stages.data.regular import size_of_regular
from stages.data.resize import Resize
from stages.data.source import ReaderSource, Rows
from stages.data.written_sets import check_finished, planned_family
from stages.errors import InputError

MAX_HASHED = 65_536
"""Number of files, evenly spaced over the rows, whose sizes are part of the fingerprint."""


@dataclass(frozen=True, slots=True)
class CorruptedFolderReader:
    """Rows ordered by corruption, then severity, then image.

    Attributes:
        root: folder that contains the corruptions.
        corruptions: names of the folders.
        severities: severity of each folder below a corruption.
        folders: corruption -> names of these folders.
        files: ``<class>/<file>`` of each image, the same in every cell.
        labels: index of the class of each image.
    """

    root: Path
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    folders: Mapping[str, tuple[str, ...]]
    files: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def rows_per_corruption(self) -> int:
        """Rows of one corruption: every image at every severity."""
        return len(self.files) * len(self.severities)

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``; a file that cannot be decoded becomes a failed row of zeros."""
        rows = range(start, stop)
        images = [row % len(self.files) for row in rows]
        cells = [(name, self.severities[at]) for name, at in map(self._cell, rows)]
        found = FolderReader(
            self.root,
            tuple(self.file_of(row) for row in rows),
            tuple(self.labels[image] for image in images),
        ).read(0, len(rows), resizing)
        ids = [f"{name}/{level}/{n:05d}" for (name, level), n in zip(cells, images, strict=True)]
        columns = {
            "sample_id": np.array(ids, np.str_),
            "clean_id": np.array([self.files[image] for image in images], np.str_),
            "corruption": np.array([name for name, _ in cells], np.str_),
            "severity": np.array([level for _, level in cells], np.int64),
        }
        return replace(found, columns={**found.columns, **columns})

    def file_of(self, row: int) -> str:
        """Path of a row below the root."""
        corruption, at = self._cell(row)
        return f"{corruption}/{self.folders[corruption][at]}/{self.files[row % len(self.files)]}"

    def held_bytes(self) -> int:
        """Memory of the list of files of one cell; images are read one at a time."""
        return sum(100 + len(file) for file in self.files)

    def content(self) -> str:
        """Hash of all names, and of the sizes and bytes of a sample of files."""
        names = [(name, self.folders[name]) for name in self.corruptions]
        digest = hashlib.sha256(repr((names, self.severities, self.files)).encode())
        n_rows = len(self.corruptions) * self.rows_per_corruption
        rows = np.unique(np.linspace(0, n_rows - 1, MAX_HASHED).astype(int)).tolist()
        files = [self.file_of(row) for row in rows]
        sizes = [size_of_regular(self.root / file) for file in files]
        digest.update(listing_content(self.root, list(zip(files, sizes, strict=True))).encode())
        return digest.hexdigest()

    def _cell(self, row: int) -> tuple[str, int]:
        """Corruption of a row, and index of its severity."""
        corruption, at = divmod(row // len(self.files), len(self.severities))
        return self.corruptions[corruption], at


def corrupted_folder_source(root: Path, name: str, split: str, resizing: Resize) -> ReaderSource:
    """A source over every corruption and severity of a folder in the layout of ImageNet-C.

    The images are listed in the first cell; one that another cell lacks is a failed row. The set
    belongs to the family with which its name starts (``imagenet-c`` -> ``imagenet``); one that
    ``corrupt`` wrote has the family and classes of its clean images. If ``resizing`` leaves it to
    the layout, images are stretched.

    Raises:
        InputError: corruptions differ in their severities, cells in their classes, there are no
            images, or the set is not written completely.
    """
    if split != "test":
        raise InputError(f"{root}: a corrupted set has no split '{split}', only test")
    check_finished(root)
    corruptions = corruptions_below(root)
    folders = {name: _numbered(root / name) for name in corruptions}
    severities = _severities(root, folders)
    cells = [f"{name}/{folder}" for name in corruptions for folder in folders[name]]
    class_names = _common_classes(root, cells)
    files, labels, left_out = class_files(root / cells[0], "", class_names, "")
    check_utf8(root, [*corruptions, *class_names, *files])
    reader = CorruptedFolderReader(
        root, corruptions, severities, folders, tuple(files), tuple(labels)
    )
    planned = planned_family(root)
    family, planned_names = planned or (re.sub("(?i)-c$", "", name), ())
    left_out += [] if planned else _outside(root, corruptions)  # those of `corrupt` are its own
    source = ReaderSource(
        name=name,
        split="test",
        family=family,
        class_names=class_names,
        resizing=resizing,
        native=None,
        n_rows=len(corruptions) * reader.rows_per_corruption,
        reader=reader,
        extra_columns=(("clean_id", "string"), ("corruption", "string"), ("severity", "int64")),
        left_out=tally(left_out),
        cell_rows=len(files),
    )
    return with_classes(source, planned_names) if planned_names else source


def corruptions_below(root: Path) -> tuple[str, ...]:
    """Names of the folders that have severities, sorted; empty if it has another layout."""
    return tuple(name for name in listing(root).folders if _numbered(root / name))


def _numbered(folder: Path) -> tuple[str, ...]:
    """The subfolders with a number as name and with class folders, in order of the numbers."""
    names = [name for name in listing(folder).folders if re.fullmatch(r"\d\d?(\.\d+)?", name)]
    return tuple(sorted((name for name in names if listing(folder / name).folders), key=float))


def _severities(root: Path, folders: Mapping[str, tuple[str, ...]]) -> tuple[int, ...]:
    """The severities of every corruption: the numbers of its folders, or ranks of decimal ones."""
    first, *others = folders
    is_ranked = any("." in name for names in folders.values() for name in names)
    for name in others:
        mine, theirs = folders[name], folders[first]
        if (len(mine) if is_ranked else mine) != (len(theirs) if is_ranked else theirs):
            raise InputError(
                f"{root}: {name} has the severities {', '.join(mine)} and {first} "
                f"{', '.join(theirs)}, expected the same: add or move folders"
            )
    names = folders[first]
    return tuple(range(1, len(names) + 1)) if is_ranked else tuple(map(int, names))


def _common_classes(root: Path, cells: Sequence[str]) -> tuple[str, ...]:
    """The class folders that every cell has."""
    class_names = listing(root / cells[0]).folders
    for cell in cells[1:]:
        if different := set(listing(root / cell).folders) ^ set(class_names):
            raise InputError(
                f"{root}: {cell} has other classes than {cells[0]}, expected the same; only one of "
                f"them has {min(different)}"
            )
    return class_names


def _outside(root: Path, corruptions: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield ``(reason, path)`` of everything beside the corruptions."""
    found = listing(root)
    yield from ((OTHER_FOLDERS, f"{name}/") for name in found.folders if name not in corruptions)
    yield from ((OUTSIDE_CLASSES, name) for name in found.images)
    yield from found.left_out
