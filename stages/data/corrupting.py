"""Corrupt the images of any source while they are read, so that no copy needs to be stored.

Images are corrupted after they are resized and cropped, as in ImageNet-C. An image has the same
bytes as in a set that ``corrupt`` writes at the same size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from threading import BoundedSemaphore
from typing import Any

import numpy as np

from pipeline.cpus import n_cpus
from stages.data.corruptions.cells import Cells
from stages.data.corruptions.frost import frost_folder
from stages.data.corruptions.names import VERSION, Collection, collection_for
from stages.data.resize import Resize
from stages.data.source import Reader, ReaderSource, Rows, joined, require_clean
from stages.errors import InputError

COLUMNS = (("clean_id", "string"), ("corruption", "string"), ("severity", "int64"))
"""``(name, type)`` of the columns that corrupted images have beside those of the clean ones."""

LEAST_SIDE = 32
"""Smallest height and width for which there are constants."""

FIXED_BYTES = 64 * 2**20
"""Memory of the photographs of frost, and of the libraries."""

PIXEL_BYTES, ZOOM_BLUR_BYTES = 600, 4_000
"""Memory per pixel of an image of floats, and of the matrices of zoom blur."""


@dataclass(frozen=True, slots=True)
class CorruptingReader:
    """Corrupted rows of another reader, by corruption, severity and image.

    Attributes:
        reader: reads the clean images.
        cells: corruptions and severities that are applied to them.
        n_images: number of clean images.
        size: ``(H, W)`` of the images, which determines the constants.
    """

    reader: Reader
    cells: Cells
    n_images: int
    size: tuple[int, int]

    @property
    def collection(self) -> Collection:
        """The collection that defines the levels."""
        return collection_for(self.size)

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``; an image that cannot be read stays a failed row of zeros."""
        parts = list(self._parts(start, stop, resizing))
        return parts[0] if len(parts) == 1 else joined(parts)

    def held_bytes(self) -> int:
        """Memory of the clean data, and of the corruptions of one image."""
        zooms = any(name == "zoom_blur" for name, _ in self.cells.cells)
        n_bytes = (ZOOM_BLUR_BYTES if zooms else PIXEL_BYTES) * self.size[0] * self.size[1]
        return self.reader.held_bytes() + FIXED_BYTES + n_bytes

    def content(self) -> str:
        """Hash of the clean data and of what is done to it, hex."""
        return hashlib.sha256(
            json.dumps([self.reader.content(), self.facts()]).encode()
        ).hexdigest()

    def facts(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines what is done to the clean images."""
        return {
            "collection": self.collection,
            "cells": list(self.cells.words),
            "seed": self.cells.seed,
            "version": VERSION,
        }

    def _parts(self, start: int, stop: int, resizing: Resize) -> Iterator[Rows]:
        """Yield the rows of each cell."""
        n = self.n_images
        at = min(start // n, len(self.cells.cells) - 1)
        for index in range(at, max(at + 1, -(-stop // n))):
            first, last = max(start - index * n, 0), min(stop - index * n, n)
            yield self._part(index, self.reader.read(first, last, resizing), first)

    def _part(self, index: int, clean: Rows, first: int) -> Rows:
        # Imported here: it loads OpenCV and SciPy.
        from stages.data.corruptions.severities import corrupt

        (name, severity), n = self.cells.cells[index], len(clean.images)
        images = np.arange(first, first + n)
        with _at_once():
            corrupted = corrupt(
                clean.images, name, severity, images, self.cells.seed, collection=self.collection
            )
        corrupted[list(clean.failed)] = 0
        columns = {
            **clean.columns,
            "sample_id": np.array(
                [f"{name}/{severity}/{each:05d}" for each in images.tolist()], dtype=np.str_
            ),
            "clean_id": clean.columns["sample_id"],
            "corruption": np.full(n, name),
            "severity": np.full(n, severity, dtype=np.int64),
        }
        return Rows(corrupted, columns, clean.failed)


def corrupting(source: ReaderSource, cells: Cells) -> ReaderSource:
    """A source over all images of another one in every cell.

    Rows are in the order of CIFAR-10-C, with its columns; ``clean_id`` is the ``sample_id`` of the
    clean image. An image's random numbers depend on the seed, the cell and its row.

    Raises:
        InputError: the source is corrupted already, has a column of one of these names, its images
            are smaller than 32x32, or the photographs of frost are missing.
    """
    require_clean(source)
    if min(source.image_size) < LEAST_SIDE:
        height, width = source.image_size
        raise InputError(
            f"{source.name} {source.split}: images are {height}x{width}, expected at least "
            f"{LEAST_SIDE}x{LEAST_SIDE} to corrupt them: use a larger --image-size, or a network "
            "with a larger input"
        )
    own = dict(source.extra_columns)
    if taken := [name for name, _ in COLUMNS if name in own]:
        raise InputError(
            f"{source.name} {source.split}: has a column {taken[0]!r}, a name that is needed for "
            "corrupted images: rename it"
        )
    if any(name == "frost" for name, _ in cells.cells):
        frost_folder()
    reader = CorruptingReader(source.reader, cells, source.n_rows, source.image_size)
    return replace(
        source,
        name=f"{source.name}+{cells.label}",
        n_rows=len(cells.cells) * source.n_rows,
        reader=reader,
        extra_columns=(*COLUMNS, *source.extra_columns),
        corruption={"of": source.name, "n_images": source.n_rows, **reader.facts()},
    )


@cache
def _at_once() -> BoundedSemaphore:
    """Limits the threads that corrupt at once, since each holds its floats; others may read."""
    return BoundedSemaphore(n_cpus())
