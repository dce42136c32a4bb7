"""The classes of a data set: files of class names, their order, and the images of each class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.class_names import first_few
from stages.data.folder import FolderReader
from stages.data.near_equal import near_equal_note, near_hint, number_in
from stages.data.picked import PickedReader
from stages.data.resize import Resize
from stages.data.sample_table import TableReader
from stages.data.source import ArrayReader, Reader, ReaderSource, Rows, UnlabelledReader
from stages.errors import DataNotFoundError, InputError

MAX_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class RelabelledReader:
    """The rows of another reader with other labels: label ``k`` becomes ``places[k]``."""

    reader: Reader
    places: tuple[int, ...]

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``, resized."""
        rows = self.reader.read(start, stop, resizing)
        return replace(
            rows, columns={**rows.columns, "label": self.label_of(rows.columns["label"])}
        )

    def label_of(self, label: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map old labels to new ones; -1 (unknown) stays."""
        found: NDArray[np.int64] = np.where(label < 0, label, np.array(self.places)[label])
        return found

    def held_bytes(self) -> int:
        """Memory in bytes that the data takes while a process reads from it."""
        return self.reader.held_bytes()

    def content(self) -> str:
        """Hash of the data, hex. The order is part of the class names, which are hashed as well."""
        return self.reader.content()


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names from a text file, one per line, in the order of a network's outputs.

    The file is UTF-8, with or without a byte order mark, with any line endings. Blanks around a
    name are ignored.

    Raises:
        InputError: a line is empty or repeated, or it is not a text file.
    """
    names = [line.strip() for line in _text(path).split("\n")]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(f"{path}: expected one class name per line, found none")
    for number, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"{path}:{number}: expected a class name, found an empty line")
    _check_distinct(names, str(path))
    return tuple(names)


def with_classes(source: ReaderSource, names: tuple[str, ...]) -> ReaderSource:
    """The source with its classes in this order; there may be more names than classes with images.

    If the data set does not name its classes, such as an array of labels, these become the names of
    its labels.

    Raises:
        InputError: the source has no labels, or has a class that is not among the names.
    """
    _check_distinct(names, "classes")
    if not source.class_names:
        raise InputError(
            f"{source.name}: the data set has no labels, so it has no classes: omit --classes"
        )
    reader = source.reader
    if source.is_named:
        places = _places(source, names)
        if places != tuple(range(len(places))):
            reader = RelabelledReader(reader, places)
    elif len(names) < source.n_classes:
        raise InputError(
            f"{source.name}: has a label {source.n_classes - 1}, but only {len(names)} class names "
            f"were given: give at least {source.n_classes}"
        )
    return replace(source, class_names=names, reader=reader, is_named=True)


def check_same_classes(source: ReaderSource, other: ReaderSource) -> None:
    """Check that labels have the same meaning in two data sets that both name their classes.

    Raises:
        InputError: one has other classes, or the same classes in another order.
    """
    names, others = source.class_names, other.class_names
    if names == others or not (names and others and source.is_named and other.is_named):
        return
    where = f"{other.name} {other.split} has other classes than {source.name} {source.split}"
    if sorted(names) == sorted(others):
        at = next(at for at, name in enumerate(names) if name != others[at])
        raise InputError(
            f"{where}: label {at} is {others[at]!r} in the first and {names[at]!r} in the second: "
            "give both the same order with --classes FILE"
        )
    raise InputError(
        f"{where} ({first_few(others)} and {first_few(names)}): expected the same classes"
    )


def class_notes(source: ReaderSource, *, is_ordered: bool) -> list[str]:
    """Notes for the user on a data set's classes: their order, and nearly equal names.

    Set ``is_ordered`` if the user has given the order.
    """
    found = [
        None if is_ordered else order_note(source.name, source.class_names),
        near_equal_note(source.class_names, source.name),
    ]
    return [note for note in found if note]


def order_note(
    where: str, names: Sequence[str], way_out: str = "give --classes FILE"
) -> str | None:
    """A note if the string order of the classes differs from the order by their numbers."""
    natural = _in_natural_order(names)
    if list(names) != sorted(names) or natural == list(names):
        return None
    first = next(at for at, name in enumerate(names) if name != natural[at])
    return (
        f"{where}: classes are in string order, as in torchvision's ImageFolder "
        f"({first_few(names)}; label {first} is {names[first]!r}), not in natural order "
        f"({first_few(natural)}); if the network's outputs are in another order, {way_out}"
    )


def counted_classes(source: ReaderSource) -> NDArray[np.int64] | None:
    """Number of images per class, ``int64 [n_classes]``; ``None`` if images had to be read."""
    labels = stored_labels(source)
    if labels is None:
        return None
    return np.bincount(labels[labels >= 0], minlength=source.n_classes)


def stored_labels(source: ReaderSource) -> NDArray[np.int64] | None:
    """Labels of the rows, ``int64 [n]``; empty if unknown, ``None`` if images had to be read."""
    labels = _labels_in(source.reader)
    return None if labels is None else labels[: source.n_rows]


def _labels_in(reader: Reader) -> NDArray[np.int64] | None:
    if isinstance(reader, FolderReader):
        return np.array(reader.labels, dtype=np.int64)
    if isinstance(reader, TableReader):
        return reader.labels()
    if isinstance(reader, ArrayReader):
        return reader.load()[1]
    if isinstance(reader, PickedReader):
        inner = _labels_in(reader.reader)
        return None if inner is None else inner[reader.rows]
    if isinstance(reader, RelabelledReader):
        inner = _labels_in(reader.reader)
        return None if inner is None else reader.label_of(inner)
    return np.array([], dtype=np.int64) if isinstance(reader, UnlabelledReader) else None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path}: no such file of class names") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read as class names: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected class names in UTF-8 ({error}); save the file as UTF-8"
        ) from error
    if len(content) > MAX_BYTES or "\0" in text:
        raise InputError(
            f"{path}: expected a text file in UTF-8 with one class name per line, found "
            + ("zero bytes" if "\0" in text else f"more than {MAX_BYTES:,} bytes")
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check_distinct(names: Sequence[str], where: str) -> None:
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if (first := seen.setdefault(name, number)) != number:
            raise InputError(
                f"{where}: expected every class once, found {name!r} on lines {first} and {number}"
            )


def _places(source: ReaderSource, names: tuple[str, ...]) -> tuple[int, ...]:
    place = {name: at for at, name in enumerate(names)}
    missing = [name for name in source.class_names if name not in place]
    if missing:
        raise InputError(
            f"{source.name}: its class {missing[0]!r} is not among the {len(names)} given names "
            f"({first_few(names)}){near_hint(missing[0], names)}; {len(missing)} of "
            f"{source.n_classes} are missing: add or rename them"
        )
    if len(set(source.class_names)) < source.n_classes:
        raise InputError(f"{source.name}: two classes have the same name: rename one of them")
    return tuple(place[name] for name in source.class_names)


def _in_natural_order(names: Sequence[str]) -> list[str]:
    """Sort by value if all are numbers; else ``img2`` comes before ``img10``."""
    if all(number_in(name) is not None for name in names):
        return sorted(names, key=Decimal)
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: digits compare by value, so longer numbers are larger; text compares as text."""
    parts = re.split("([0-9]+)", name)
    digits = [part.lstrip("0") if at % 2 else part for at, part in enumerate(parts)]
    return [(len(part) if at % 2 else 0, part) for at, part in enumerate(digits)]
