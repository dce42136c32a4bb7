"""Image sources: facts about a data set, and a way to read a range of its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.data.listing import LeftOut
from stages.data.resize import Resize, resizing_to
from stages.errors import InputError
from store.plan import differences

SPLITS = ("train", "test")

SPLIT_NAMES = (*SPLITS, "val", "valid", "validation", "dev")
"""Usual names of splits."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A range of rows of a source.

    Attributes:
        images: ``uint8 [n, H, W, 3]``, RGB; a row that could not be read is zeros.
        columns: one array of length ``n`` per column: ``sample_id`` (str), ``label`` (int64,
            -1 = unknown) and the source's extra columns.
        failed: offset within these rows -> why that row could not be read, in one line.
    """

    images: NDArray[np.uint8]
    columns: dict[str, NDArray[Any]]  # Any: strings and integers side by side
    failed: dict[int, str] = field(default_factory=dict)


class ImageSource(Protocol):
    """Facts about one split of a data set, and access to its rows; picklable."""

    @property
    def name(self) -> str:
        """Name of the data set, e.g. ``cifar10c``."""

    @property
    def split(self) -> str:
        """``train``, ``test``, or another name of a split."""

    @property
    def family(self) -> str:
        """Name shared by data sets with the same classes and trained networks."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label; empty if the labels are unknown."""

    @property
    def is_named(self) -> bool:
        """Whether the data set names its classes; if not, ``class_names`` only counts them."""

    @property
    def image_size(self) -> tuple[int, int]:
        """``(H, W)`` of the images that ``read`` returns."""

    @property
    def resize(self) -> str:
        """``none``, or the rule by which images are resized to ``image_size``."""

    @property
    def n_rows(self) -> int:
        """Number of images."""

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 if the labels are unknown."""

    @property
    def extra_columns(self) -> tuple[tuple[str, str], ...]:
        """``(name, type)`` of the columns beside ``sample_id`` and ``label``."""

    @property
    def corruption(self) -> Mapping[str, Any] | None:  # Any: JSON
        """How images are corrupted when they are read; see `stages.data.corrupting`."""

    @property
    def sample(self) -> Mapping[str, int] | None:
        """How the rows were drawn; see `stages.data.picked.sampled`."""

    @property
    def alteration(self) -> Mapping[str, Any] | None:  # Any: JSON
        """How images are denoised and augmented when they are read; see `stages.data.altering`."""

    @property
    def original(self) -> ImageSource | None:
        """The source of the images before they are denoised and augmented, if they are."""

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Files beside the images that are not read, by reason."""

    @property
    def how_to_label(self) -> str:
        """Where labels are expected, if the source found none; else empty."""

    @property
    def held_bytes(self) -> int:
        """Memory in bytes that the data takes while a process reads from it."""

    def fingerprint(self) -> str:
        """Cheap hash of what ``read`` returns, hex; independent of the location of the data."""

    def read(self, start: int, stop: int) -> Rows:
        """Rows ``[start, stop)``."""


class Reader(Protocol):
    """Reads the rows of a source; holds paths and numbers, and opens files on each read."""

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``, resized."""

    def held_bytes(self) -> int:
        """Memory in bytes that the data takes while a process reads from it."""

    def content(self) -> str:
        """Hash of the data, hex."""


@dataclass(frozen=True, slots=True)
class ReaderSource:
    """An image source consisting of facts and a reader.

    Attributes:
        resizing: how stored images become those of ``read``.
        native: stored ``(H, W)``; ``None`` if it varies between images.
        corruption: how images are corrupted when they are read; ``None`` if they are not.
        sample: how the rows were drawn, ``of`` how many, with which ``seed``; ``None`` if they were
            not.
        cell_rows: stored images of each corruption and severity; ``None`` if it is not a set of
            corrupted images.
        alteration: how they are then denoised and augmented; ``None`` if they are not.
        original: the source before that.
    """

    name: str
    split: str
    family: str
    class_names: tuple[str, ...]
    resizing: Resize
    native: tuple[int, int] | None
    n_rows: int
    reader: Reader
    extra_columns: tuple[tuple[str, str], ...] = ()
    is_named: bool = True
    left_out: tuple[LeftOut, ...] = ()
    how_to_label: str = ""
    corruption: Mapping[str, Any] | None = None  # Any: JSON
    sample: Mapping[str, int] | None = None
    cell_rows: int | None = None
    alteration: Mapping[str, Any] | None = None  # Any: JSON
    original: ReaderSource | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """``(H, W)`` of the images that ``read`` returns."""
        return self.resizing.size

    @property
    def resize(self) -> str:
        """``none``, or the rule by which images are resized to ``image_size``."""
        return self.resizing.rule(self.native)

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 if the labels are unknown."""
        return len(self.class_names)

    @property
    def held_bytes(self) -> int:
        """Memory in bytes that the data takes while a process reads from it."""
        return self.reader.held_bytes()

    def fingerprint(self) -> str:
        """Hash of the data, ``n_rows``, the classes and the size; not of the name or location."""
        facts = [self.reader.content(), self.n_rows, self.class_names, self.image_size, self.resize]
        facts += [dict(self.sample)] if self.sample else []
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def read(self, start: int, stop: int) -> Rows:
        """Rows ``[start, stop)``.

        Raises:
            IndexError: the range does not lie within ``[0, n_rows)``.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"{self.name}: rows {start}:{stop} are not within 0:{self.n_rows}")
        return self.reader.read(start, stop, self.resizing)


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """Rows of an array of images and an array of labels.

    Attributes:
        load: returns images, ``uint8 [n, h, w]``, ``[n, h, w, 1]`` or ``[n, h, w, 3]``, and labels,
            ``int64 [n]``. It is called on each read, so it should map the file or cache the data. A
            module's function or a ``partial`` of one, so that it can be pickled.
        hash_content: returns the hash of the data.
        id_prefix: a row's ``sample_id`` is ``<id_prefix>/<row, five digits>``.
    """

    load: Callable[[], tuple[NDArray[np.uint8], NDArray[np.int64]]]
    hash_content: Callable[[], str]
    id_prefix: str

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``, resized."""
        images, labels = self.load()
        ids = [f"{self.id_prefix}/{row:05d}" for row in range(start, stop)]
        columns = {"sample_id": np.array(ids, dtype=np.str_), "label": labels[start:stop].copy()}
        return Rows(resizing.arrays(images[start:stop]), columns)

    def held_bytes(self) -> int:
        """Size of the arrays, except for memory-mapped ones: the kernel can reclaim their pages."""
        images, labels = self.load()
        return labels.nbytes + (0 if isinstance(images, np.memmap) else images.nbytes)

    def content(self) -> str:
        """Hash of the data, hex."""
        return self.hash_content()


@dataclass(frozen=True, slots=True)
class UnlabelledReader:
    """The rows of another reader without their labels."""

    reader: Reader

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``, resized."""
        rows = self.reader.read(start, stop, resizing)
        label = np.full(len(rows.images), -1, dtype=np.int64)
        return replace(rows, columns={**rows.columns, "label": label})

    def held_bytes(self) -> int:
        """Memory in bytes that the data takes while a process reads from it."""
        return self.reader.held_bytes()

    def content(self) -> str:
        """Hash of the data, hex."""
        return self.reader.content()


@dataclass(frozen=True, slots=True)
class NoReader:
    """The reader of a source that has no rows."""

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Raise ``IndexError``: there are no rows."""
        raise IndexError(f"there are no rows {start}:{stop} to resize to {resizing.size}")

    def held_bytes(self) -> int:
        """Return 0: there is no data."""
        return 0

    def content(self) -> str:
        """Return an empty hash: there is no data."""
        return ""


def without_images(class_names: tuple[str, ...], image_size: int | Resize) -> ReaderSource:
    """A source that has names of classes and no rows, for a network without a data set."""
    resizing = resizing_to(image_size)
    is_named = bool(class_names)
    return ReaderSource(
        "the network", "", "", class_names, resizing, None, 0, NoReader(), is_named=is_named
    )


def without_labels(source: ReaderSource) -> ReaderSource:
    """The source without classes, for images whose labels do not apply to the network."""
    reader = UnlabelledReader(source.reader)
    return replace(source, class_names=(), reader=reader, how_to_label="")


def read_each(source: ImageSource, start: int, stop: int) -> Rows:
    """Rows ``[start, stop)``; rows that cannot be read on their own become failed rows of zeros.

    If no row can be read, the rows are not the cause, and the first error is raised. So is
    ``MemoryError``.
    """
    try:
        return source.read(start, stop)
    except MemoryError:
        raise
    except Exception as error:
        if start + 1 == stop:  # read a neighbour to find out whether only this row is bad
            near = start - 1 if start else min(start + 1, source.n_rows)
            good = _halves_read(source, near, near + 1) if near < source.n_rows else []
            parts: list[Rows | Exception] = [error]
        else:
            parts = _halves_read(source, start, stop)
            good = parts
        like = next((part for part in good if isinstance(part, Rows)), None)
        if like is None:
            raise
        return joined([_blank(like, p) if isinstance(p, Exception) else p for p in parts])


def _halves_read(source: ImageSource, start: int, stop: int) -> list[Rows | Exception]:
    """The rows in order: blocks that could be read at once, and the error of each bad row."""
    try:
        return [source.read(start, stop)]
    except MemoryError:
        raise
    except Exception as error:
        if start + 1 == stop:
            return [error]
    half = (start + stop) // 2
    return [*_halves_read(source, start, half), *_halves_read(source, half, stop)]


_BLANKS = {"i": -1, "u": -1, "f": np.nan}
"""Kind of a column -> value in a row that could not be read; text is empty."""


def _blank(like: Rows, error: Exception) -> Rows:
    """One failed row with the columns of ``like``, without a name or label."""
    columns = {
        name: np.array([_BLANKS.get(values.dtype.kind, "")]).astype(values.dtype)
        for name, values in like.columns.items()
    }
    reason = " ".join(str(error).split()) or type(error).__name__
    return Rows(np.zeros_like(like.images[:1]), columns, {0: f"cannot be read: {reason}"})


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several reads, one after the other."""
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
    """What plans record about a source: everything that determines its rows."""
    altered: dict[str, Any] = {}
    if source.alteration and source.original:
        of = {"of": source.original.name, "fingerprint": source.original.fingerprint()}
        altered = {"alteration": {**of, **source.alteration}}
    return {
        "name": source.name,
        "split": source.split,
        "family": source.family,
        "class_names": list(source.class_names),
        "n_rows": source.n_rows,
        "image_size": list(source.image_size),
        "resize": source.resize,
        "fingerprint": source.fingerprint(),
        **({"corruption": dict(source.corruption)} if source.corruption else {}),
        **({"sample": dict(source.sample)} if source.sample else {}),
        **altered,
    }


def require_labels(source: ImageSource) -> None:
    """Refuse a source without labels; call it where labels are needed.

    Raises:
        InputError: the message says how to add them.
    """
    if source.n_classes == 0:
        how = f"; {source.how_to_label}" if source.how_to_label else ""
        raise InputError(
            f"{source.name} {source.split}: has no labels, expected one for each image{how}"
        )


def require_clean(source: ImageSource) -> None:
    """Refuse a source whose images are corrupted; raises ``InputError``."""
    columns = [name for name, _ in source.extra_columns]
    if "corruption" in columns:
        raise InputError(
            f"{source.name} {source.split}: is already corrupted (it has the columns "
            f"{', '.join(columns)}); corrupt the clean set"
        )


def check_planned(source: ImageSource, planned: Mapping[str, Any]) -> None:
    """Check that a source is still the one for which a plan was made.

    Raises:
        InputError: it is not; the message lists the fields that differ.
    """
    if different := list(differences(source_facts(source), planned)):
        raise InputError(
            f"{source.name} {source.split} is not the data set that this run was planned for "
            f"({'; '.join(different[:3])}): it changed, or another one was found; run the command "
            "again"
        )


def first_rows(source: ReaderSource, limit: int | None) -> ReaderSource:
    """The first ``limit`` rows of the source; all if ``None``."""
    if limit is None:
        return source
    if limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 row; omit it for all rows")
    return replace(source, n_rows=min(limit, source.n_rows))
