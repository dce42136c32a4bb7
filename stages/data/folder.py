"""Image folders: ``<root>/train|test/<class>/<file>``, or images of no class, loose in a folder."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.data.fingerprint import listing_content
from stages.data.resize import crop_rule, cropped_pixels, resize_rule, rgb_pixels
from stages.data.source import SPLITS, ReaderSource, Rows
from stages.errors import DataNotFoundError, InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_ROWS_PER_TASK = 64
_MAX_THREADS = 4
# Smaller files spend their time under the interpreter's lock: 32x32 JPEGs came at 15,600 a second
# on one thread and at 8,000 on two (two shared cores, Pillow 13.0).
_THREADED_BYTES = 16 * 2**10


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Files of one split, in the order of the rows.

    Attributes:
        root: the folder above the splits.
        files: ``<split>/<class>/<file>`` of each row.
        labels: position of the class of each row among the sorted class names.
        is_cropped: whether images keep their shape and lose their ends, or are stretched.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    is_cropped: bool = False

    def read(self, start: int, stop: int, size: tuple[int, int]) -> Rows:
        """Rows ``[start, stop)``; a file that cannot be decoded is a failed row of zeros."""
        files = self.files[start:stop]
        images = np.zeros((len(files), *size, 3), dtype=np.uint8)
        starts = range(0, len(files), _ROWS_PER_TASK)
        spans = [range(low, min(low + _ROWS_PER_TASK, len(files))) for low in starts]

        def decode_span(span: range) -> dict[int, str]:
            return self._decode(span, files, images)

        if files and _size_bytes(self.root, files[0]) >= _THREADED_BYTES:
            with ThreadPoolExecutor(min(_MAX_THREADS, _n_cores())) as pool:
                failures = list(pool.map(decode_span, spans))
        else:
            failures = [decode_span(span) for span in spans]
        columns = {
            "sample_id": np.array(files, dtype=np.str_),
            "label": np.array(self.labels[start:stop], dtype=np.int64),
        }
        return Rows(images, columns, {row: why for each in failures for row, why in each.items()})

    def held_bytes(self) -> int:
        """The list of files: the images are read one by one."""
        return sum(100 + len(file) for file in self.files)

    def content(self) -> str:
        """Hash of all names and sizes and of the bytes of a sample of files."""
        return listing_content(
            self.root, [(name, _size_bytes(self.root, name)) for name in self.files]
        )

    def _decode(
        self, span: range, files: tuple[str, ...], images: NDArray[np.uint8]
    ) -> dict[int, str]:
        failed = {}
        size = (images.shape[1], images.shape[2])
        root = str(self.root)
        pixels_of = cropped_pixels if self.is_cropped else rgb_pixels
        for row in span:
            try:
                with Image.open(f"{root}/{files[row]}") as image:
                    images[row] = pixels_of(image, size)
            except Exception as error:  # PIL raises nearly anything on a broken file
                images[row] = 0
                failed[row] = f"{files[row]}: {' '.join(str(error).split()) or repr(error)}"
        return failed


def folder_source(root: Path, name: str, split: str, image_size: tuple[int, int]) -> ReaderSource:
    """A source over the images of one split; class names are the sorted folder names.

    Files are taken in sorted order within the sorted classes. Anything that is not an image file
    directly inside a class folder is left out. Images are stretched to ``image_size`` and shown
    as stored: an orientation tag is not applied.

    Raises:
        InputError: the split is missing or empty, or train and test have other classes.
    """
    if not (root / split).is_dir():
        raise DataNotFoundError(f"{root}: has no folder '{split}', expected {split}/<class>/<file>")
    class_names = _class_names(root, split)
    other = SPLITS[1 - SPLITS.index(split)]
    if (root / other).is_dir():
        _check_same_classes(root, {split: class_names, other: _class_names(root, other)})
    files: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        images = _images_in(root / split / class_name)
        files += [f"{split}/{class_name}/{image}" for image in images]
        labels += [label] * len(images)
    if not files:
        raise InputError(
            f"{root / split}: holds no images, expected <class>/<file> with {', '.join(SUFFIXES)}"
        )
    return ReaderSource(
        name=name,
        split=split,
        family=name,
        class_names=class_names,
        image_size=image_size,
        resize=resize_rule(None, image_size),
        n_rows=len(files),
        reader=FolderReader(root, tuple(files), tuple(labels)),
    )


def loose_source(root: Path, name: str, image_size: tuple[int, int]) -> ReaderSource:
    """A source over the images right in a folder and in the folders in it, without labels.

    This is how out-of-distribution sets come: ``dtd/images/<class>/<file>``, ``iSUN/<any>/<file>``.
    Files are in sorted order. The shorter side of an image becomes ``image_size``, and its centre
    is cut out.

    Raises:
        InputError: it holds no images.
    """
    folders = ("", *(f"{each}/" for each in _folders_in(root)))
    files = tuple(f"{each}{image}" for each in folders for image in _images_in(root / each))
    if not files:
        raise InputError(
            f"{root}: holds no images, expected <file> or <folder>/<file> with "
            f"{', '.join(SUFFIXES)}"
        )
    return ReaderSource(
        name=name,
        split="test",
        family=name,
        class_names=(),
        image_size=image_size,
        resize=crop_rule(image_size),
        n_rows=len(files),
        reader=FolderReader(root, files, (-1,) * len(files), is_cropped=True),
    )


def has_loose_images(root: Path) -> bool:
    """Whether a folder, or one in it, holds an image."""
    return any(_images_in(root / each) for each in ("", *_folders_in(root)))


def pool_source(root: Path, name: str, image_size: tuple[int, int]) -> ReaderSource:
    """A source over every image below a folder, in any layout and without labels.

    Files are taken in the order of their paths, hidden ones left out; links to folders are not
    followed. The split is called ``train``: it is what will be learned from.

    Raises:
        InputError: there is no image.
    """
    files: list[str] = []
    for folder, below, _ in os.walk(root):
        below[:] = sorted(each for each in below if not each.startswith("."))
        place = Path(folder)
        files += [(place / image).relative_to(root).as_posix() for image in _images_in(place)]
    if not files:
        raise InputError(f"{root}: holds no images, expected files with {', '.join(SUFFIXES)}")
    return ReaderSource(
        name=name,
        split=SPLITS[0],
        family=name,
        class_names=(),
        image_size=image_size,
        resize=resize_rule(None, image_size),
        n_rows=len(files),
        reader=FolderReader(root, tuple(sorted(files)), (-1,) * len(files)),
    )


def is_image_folder(root: Path) -> bool:
    """Whether there is a split with at least one class folder."""
    return any((root / split).is_dir() and _class_names(root, split) for split in SPLITS)


def _check_same_classes(root: Path, classes: dict[str, tuple[str, ...]]) -> None:
    train, test = set(classes["train"]), set(classes["test"])
    if train != test:
        only = [f"only in train: {', '.join(sorted(train - test)) or '-'}"]
        only.append(f"only in test: {', '.join(sorted(test - train)) or '-'}")
        raise InputError(
            f"{root}: train has {len(train)} classes and test {len(test)}, expected the same "
            f"({'; '.join(only)}); rename or add the folders"
        )


def _class_names(root: Path, split: str) -> tuple[str, ...]:
    return _folders_in(root / split)


def _folders_in(root: Path) -> tuple[str, ...]:
    with os.scandir(root) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def _images_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES)
            and not entry.name.startswith(".")
            and not entry.is_dir()
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{folder}: expected file names in UTF-8, found {name!a}: rename it"
            ) from error
    return names


def _size_bytes(root: Path, name: str) -> int:
    try:
        return (root / name).stat().st_size
    except OSError:
        return -1  # a dangling link: its row fails when it is read


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
