"""Sets in the layout of CIFAR-10-C: one array per corruption, with consecutive severities.

``<corruption>.npy`` is ``uint8 [5 n, H, W, 3]``: severity ``s`` is in the rows
``[(s - 1) n, s n)``, each block in the order of the clean test set. ``labels.npy`` has the test
labels five times. (Hendrycks & Dietterich, ICLR 2019; record 2535967 on Zenodo.) Rotations, which
only have ``rotation.npy``, have fifteen severities instead of five.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.arrays import (
    check_label_range,
    checked_images,
    checked_labels,
    mapped_npy,
    open_npy,
)
from stages.data.cifar import CLASS_NAMES
from stages.data.class_names import numbers
from stages.data.corrupted_folders import CorruptedFolderReader
from stages.data.corruptions.names import N_ANGLES, N_SEVERITIES, ROTATION
from stages.data.fingerprint import file_content
from stages.data.resize import Resize
from stages.data.source import ReaderSource, Rows
from stages.data.written_sets import check_finished, planned_family
from stages.errors import DataNotFoundError, InputError

CIFAR10C_FOLDERS = ("CIFAR-10-C", "cifar10c")


@dataclass(frozen=True, slots=True)
class CorruptedReader:
    """Rows ordered by corruption, then severity, then image."""

    folder: Path
    corruptions: tuple[str, ...]
    n_images: int
    n_severities: int

    @property
    def rows_per_corruption(self) -> int:
        """Rows of one array: every image at every severity."""
        return self.n_images * self.n_severities

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``; only these are read from the memory-mapped arrays."""
        corruption, within = np.divmod(np.arange(start, stop), self.rows_per_corruption)
        severity, image = within // self.n_images + 1, within % self.n_images
        labels = mapped_npy(self.folder / "labels.npy")[within].astype(np.int64)
        names = [self.corruptions[index] for index in corruption.tolist()]
        ids = [
            f"{name}/{level}/{index:05d}"
            for name, level, index in zip(names, severity.tolist(), image.tolist(), strict=True)
        ]
        columns = {
            "sample_id": np.array(ids, dtype=np.str_),
            "label": labels,
            "corruption": np.array(names, dtype=np.str_),
            "severity": severity.astype(np.int64),
        }
        return Rows(self._images(start, stop, resizing), columns)

    def held_bytes(self) -> int:
        """Zero: the arrays are memory-mapped, and the kernel can reclaim their pages."""
        return 0

    def content(self) -> str:
        """Hash of the arrays, hex."""
        names = (*self.corruptions, "labels")
        return file_content({name: self.folder / f"{name}.npy" for name in names})

    def _images(self, start: int, stop: int, resizing: Resize) -> NDArray[np.uint8]:
        images = np.empty((stop - start, *resizing.size, 3), dtype=np.uint8)
        per = self.rows_per_corruption
        for index in range(start // per, -(-stop // per)):
            low, high = max(start, index * per), min(stop, (index + 1) * per)
            array = mapped_npy(self.folder / f"{self.corruptions[index]}.npy")
            part = array[low - index * per : high - index * per]
            images[low - start : high - start] = resizing.arrays(part)
        return images


def corrupted_source(
    folder: Path,
    name: str,
    resizing: Resize,
    *,
    required: tuple[str, ...] = (),
) -> ReaderSource:
    """A source over every ``<corruption>.npy`` of a folder in the layout of CIFAR-10-C.

    The family and class names come from ``plan.json`` beside the arrays if it exists. ``cifar10c``
    has those of CIFAR-10; any other set belongs to the family with which its name starts
    (``digits-c`` -> ``digits``), and its classes are numbered.

    Args:
        folder: folder that contains the arrays.
        name: name of the source.
        resizing: how images become those of ``read``.
        required: corruptions that must exist; if given, no others are read.

    Raises:
        InputError: arrays are missing, truncated, or do not match each other.
    """
    corruptions = required or corruptions_in(folder)
    missing = [each for each in corruptions if not (folder / f"{each}.npy").is_file()]
    if missing:
        raise DataNotFoundError(
            f"{folder}: {len(missing)} of {len(corruptions)} corruptions are missing: "
            f"{', '.join(missing)}; get the set again, or open the folder by its path"
        )
    check_finished(folder)
    n_severities = N_ANGLES if corruptions == (ROTATION,) else N_SEVERITIES
    labels = _labels(folder, n_severities)
    native = _common_size(folder, corruptions, len(labels), n_severities)
    family, class_names = _family(folder, name)
    class_names = class_names or numbers(int(labels.max()) + 1)
    check_label_range(labels, len(class_names), str(folder / "labels.npy"))
    reader = CorruptedReader(folder, corruptions, len(labels) // n_severities, n_severities)
    return ReaderSource(
        name=name,
        split="test",
        family=family,
        class_names=class_names,
        resizing=resizing,
        native=native,
        n_rows=len(corruptions) * len(labels),
        reader=reader,
        extra_columns=(("corruption", "string"), ("severity", "int64")),
        is_named=class_names != numbers(len(class_names)),
        cell_rows=reader.n_images,
    )


def only_corruptions(source: ReaderSource, names: tuple[str, ...]) -> ReaderSource:
    """Restrict the source to some corruptions, under a name that lists them; empty keeps all.

    Raises:
        InputError: it has no corruptions, or lacks one of these.
    """
    if not names:
        return source
    reader = source.reader
    if not isinstance(reader, CorruptedReader | CorruptedFolderReader):
        raise InputError(
            f"{source.name}: has no corruption {names[0]!r}: it is not a corrupted set; omit "
            "--corruptions, or corrupt its images with --corrupt"
        )
    existing = reader.corruptions
    if missing := [name for name in names if name not in existing]:
        raise InputError(
            f"{source.name}: has no corruption {missing[0]!r}, expected one of "
            f"{', '.join(existing)}"
        )
    chosen = tuple(name for name in existing if name in names)
    label = "+".join(chosen) if len(chosen) <= 3 else f"{len(chosen)}-corruptions"
    reader = replace(reader, corruptions=chosen)
    n_rows = len(chosen) * reader.rows_per_corruption
    return replace(source, name=f"{source.name}-{label}", n_rows=n_rows, reader=reader)


def corruptions_in(folder: Path) -> tuple[str, ...]:
    """Names of the corruption arrays in a folder, sorted; empty if it has another layout."""
    if not (folder / "labels.npy").is_file():
        return ()
    stems = (path.stem for path in folder.glob("*.npy") if not path.name.startswith("."))
    return tuple(sorted(stem for stem in stems if stem != "labels"))


def _labels(folder: Path, n_severities: int) -> NDArray[np.int64]:
    path = folder / "labels.npy"
    array = open_npy(path)
    labels = checked_labels(array, array.size, str(path))
    n_images, rest = divmod(len(labels), n_severities)
    if n_images == 0 or rest:
        raise InputError(
            f"{path}: has {len(labels)} labels, expected {n_severities} equal blocks, one per "
            "severity"
        )
    blocks = labels.reshape(n_severities, n_images)
    if (blocks != blocks[0]).any():
        severity = int(np.flatnonzero((blocks != blocks[0]).any(axis=1))[0]) + 1
        raise InputError(
            f"{path}: the labels of severity {severity} differ from those of severity 1; expected "
            f"the same images in {n_severities} blocks"
        )
    return labels


def _common_size(
    folder: Path, corruptions: tuple[str, ...], n_rows: int, n_severities: int
) -> tuple[int, int]:
    sizes = {}
    for name in corruptions:
        path = folder / f"{name}.npy"
        array = open_npy(path)
        if array.ndim == 5:
            raise InputError(
                f"{path}: is {list(array.shape)}, expected consecutive severities: "
                "[severities * n, H, W, 3]; save it again with numpy's "
                "reshape(-1, *array.shape[2:])"
            )
        images = checked_images(array, str(path))
        if len(images) != n_rows:
            raise InputError(
                f"{path}: has {len(images)} rows, expected {n_rows}: {n_severities} severities of "
                f"{n_rows // n_severities} images, as labels.npy has"
            )
        sizes[images.shape[1:3]] = name
    if len(sizes) > 1:
        found = ", ".join(f"{name} {list(size)}" for size, name in sizes.items())
        raise InputError(f"{folder}: the arrays have images of several sizes: {found}")
    height, width = next(iter(sizes))
    return int(height), int(width)


def _family(folder: Path, name: str) -> tuple[str, tuple[str, ...]]:
    default = ("cifar10", CLASS_NAMES) if name == "cifar10c" else (name.removesuffix("-c"), ())
    return planned_family(folder) or default
