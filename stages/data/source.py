"""What an image source is: facts about a data set and a way to read a range of its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.data.resize import rgb_array
from stages.errors import InputError
from store.plan import differences

SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True)
class Rows:
    """A range of rows of a source, as read.

    Attributes:
        images: ``uint8 [n, H, W, 3]``, RGB; a row that could not be read is zeros.
        columns: one array of length ``n`` per column: ``sample_id`` (str), ``label`` (int64,
            -1 = unknown) and the source's extra columns.
        failed: offset within these rows -> why that row could not be read, one line.
    """

    images: NDArray[np.uint8]
    columns: dict[str, NDArray[Any]]  # Any: strings and integers side by side
    failed: dict[int, str] = field(default_factory=dict)


class ImageSource(Protocol):
    """Facts about one split of a data set, and its rows; picklable."""

    @property
    def name(self) -> str:
        """Name of the data set, e.g. ``cifar10c``."""

    @property
    def split(self) -> str:
        """``train`` or ``test``."""

    @property
    def family(self) -> str:
        """Data sets of one family share their classes and a trained network."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label; empty where the labels are unknown."""

    @property
    def image_size(self) -> tuple[int, int]:
        """``(H, W)`` of the images that ``read`` gives."""

    @property
    def resize(self) -> str:
        """``none``, or the rule by which images are brought to ``image_size``."""

    @property
    def n_rows(self) -> int:
        """Number of images."""

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 where the labels are unknown."""

    @property
    def extra_columns(self) -> tuple[tuple[str, str], ...]:
        """``(name, type)`` of the columns beside ``sample_id`` and ``label``."""

    @property
    def held_bytes(self) -> int:
        """Memory that the data takes in a process for as long as it reads from it."""

    def fingerprint(self) -> str:
        """Cheap hash of what ``read`` gives, hex; independent of where the data lies."""

    def read(self, start: int, stop: int) -> Rows:
        """Rows ``[start, stop)``."""


class Reader(Protocol):
    """Where a source's rows come from: paths and numbers, opened on each read."""

    def read(self, start: int, stop: int, size: tuple[int, int]) -> Rows:
        """Rows ``[start, stop)`` with images of ``size`` = ``(H, W)``."""

    def held_bytes(self) -> int:
        """Memory that the data takes in a process for as long as it reads from it."""

    def content(self) -> str:
        """Hash of the data, hex."""


@dataclass(frozen=True, slots=True)
class ReaderSource:
    """An image source made of facts and a reader."""

    name: str
    split: str
    family: str
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    resize: str
    n_rows: int
    reader: Reader
    extra_columns: tuple[tuple[str, str], ...] = ()

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 where the labels are unknown."""
        return len(self.class_names)

    @property
    def held_bytes(self) -> int:
        """Memory that the data takes in a process for as long as it reads from it."""
        return self.reader.held_bytes()

    def fingerprint(self) -> str:
        """Hash of the data, ``n_rows``, the classes and the size; not of the name or place."""
        facts = [self.reader.content(), self.n_rows, self.class_names, self.image_size, self.resize]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def read(self, start: int, stop: int) -> Rows:
        """Rows ``[start, stop)``.

        Raises:
            IndexError: the range does not lie within ``[0, n_rows)``.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"{self.name}: rows {start}:{stop} are not within 0:{self.n_rows}")
        return self.reader.read(start, stop, self.image_size)


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """Rows of one array of images and one of labels.

    Attributes:
        load: gives images, ``uint8 [n, h, w]``, ``[n, h, w, 1]`` or ``[n, h, w, 3]``, and labels,
            ``int64 [n]``; called on each read, so it maps the file or remembers what it loaded.
            A module's function or a ``partial`` of one, which pickles by name.
        hash_content: gives the hash of the data.
        id_prefix: a row's ``sample_id`` is ``<id_prefix>/<row, five digits>``.
    """

    load: Callable[[], tuple[NDArray[np.uint8], NDArray[np.int64]]]
    hash_content: Callable[[], str]
    id_prefix: str

    def read(self, start: int, stop: int, size: tuple[int, int]) -> Rows:
        """Rows ``[start, stop)`` with images of ``size`` = ``(H, W)``."""
        images, labels = self.load()
        ids = [f"{self.id_prefix}/{row:05d}" for row in range(start, stop)]
        columns = {"sample_id": np.array(ids, dtype=np.str_), "label": labels[start:stop].copy()}
        return Rows(rgb_array(images[start:stop], size), columns)

    def held_bytes(self) -> int:
        """The arrays, but for one that is mapped: the kernel takes its pages back."""
        images, labels = self.load()
        return labels.nbytes + (0 if isinstance(images, np.memmap) else images.nbytes)

    def content(self) -> str:
        """Hash of the data, hex."""
        return self.hash_content()


@dataclass(frozen=True, slots=True)
class UnlabelledReader:
    """The rows of another reader, their labels taken off."""

    reader: Reader

    def read(self, start: int, stop: int, size: tuple[int, int]) -> Rows:
        """Rows ``[start, stop)`` with images of ``size`` = ``(H, W)``."""
        rows = self.reader.read(start, stop, size)
        label = np.full(len(rows.images), -1, dtype=np.int64)
        return replace(rows, columns={**rows.columns, "label": label})

    def held_bytes(self) -> int:
        """Memory that the data takes in a process for as long as it reads from it."""
        return self.reader.held_bytes()

    def content(self) -> str:
        """Hash of the data, hex."""
        return self.reader.content()


def without_labels(source: ReaderSource) -> ReaderSource:
    """The source as images of no class: those of another network's classes have none here."""
    return replace(source, class_names=(), reader=UnlabelledReader(source.reader))


def read_each(source: ImageSource, start: int, stop: int) -> Rows:
    """Rows ``[start, stop)``; those that cannot be read alone are failed rows of zeros.

    Where none can be read it is not the rows: the first error is raised. So is ``MemoryError``.
    """
    try:
        return source.read(start, stop)
    except MemoryError:
        raise
    except Exception as error:
        if start + 1 == stop:  # is it this row? A neighbour tells
            near = start - 1 if start else min(start + 1, source.n_rows)
            good = _halves_read(source, near, near + 1) if near < source.n_rows else []
            parts: list[Rows | Exception] = [error]
        else:
            parts = _halves_read(source, start, stop)
            good = parts
        like = next((part for part in good if isinstance(part, Rows)), None)
        if like is None:
            raise
        return _joined([_blank(like, p) if isinstance(p, Exception) else p for p in parts])


def _halves_read(source: ImageSource, start: int, stop: int) -> list[Rows | Exception]:
    """The rows in order: what could be read at once, and the error of each row that could not."""
    try:
        return [source.read(start, stop)]
    except MemoryError:
        raise
    except Exception as error:
        if start + 1 == stop:
            return [error]
    half = (start + stop) // 2
    return [*_halves_read(source, start, half), *_halves_read(source, half, stop)]


def _blank(like: Rows, error: Exception) -> Rows:
    """One failed row, with columns as those of ``like``: no name, no label."""
    columns = {
        name: np.array([-1 if values.dtype.kind in "iu" else ""]).astype(values.dtype)
        for name, values in like.columns.items()
    }
    reason = " ".join(str(error).split()) or type(error).__name__
    return Rows(np.zeros_like(like.images[:1]), columns, {0: f"cannot be read: {reason}"})


def _joined(parts: Sequence[Rows]) -> Rows:
    starts = np.cumsum([0, *(len(part.images) for part in parts)])
    return Rows(
        np.concatenate([part.images for part in parts]),
        {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        {
            int(at) + row: why
            for at, part in zip(starts, parts, strict=False)
            for row, why in part.failed.items()
        },
    )


def source_facts(source: ImageSource) -> dict[str, Any]:  # Any: JSON
    """What plans record of a source: everything that determines its rows."""
    return {
        "name": source.name,
        "split": source.split,
        "family": source.family,
        "class_names": list(source.class_names),
        "n_rows": source.n_rows,
        "image_size": list(source.image_size),
        "resize": source.resize,
        "fingerprint": source.fingerprint(),
    }


def check_planned(source: ImageSource, planned: Mapping[str, Any]) -> None:
    """Make sure that a source is still the one that a plan was made for.

    Raises:
        InputError: it is not; names the fields that differ.
    """
    if different := list(differences(source_facts(source), planned)):
        raise InputError(
            f"{source.name} {source.split} is not the data set that this run was planned for "
            f"({'; '.join(different[:3])}): it changed, or another one was found; run the command "
            "again"
        )


def first_rows(source: ReaderSource, limit: int | None) -> ReaderSource:
    """The source cut to its first ``limit`` rows; ``None`` keeps all."""
    if limit is None:
        return source
    if limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 row; leave it out for all rows")
    return replace(source, n_rows=min(limit, source.n_rows))
