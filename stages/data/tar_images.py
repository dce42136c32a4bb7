"""Tar archives of images in WebDataset's form, read by offset without unpacking.

Members that share their path up to the first dot are a sample: ``0017.jpg`` is its image,
``0017.cls`` its label, and the numbers and texts in ``0017.json`` are further columns.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.data.anywhere import files_at, open_file, ranges, version_of
from stages.data.encoded import EncodedReader
from stages.data.fingerprint import file_content
from stages.data.listing import HIDDEN, NOT_IMAGES, image_suffixes, shown
from stages.data.regular import refused
from stages.data.resize import Resize
from stages.data.sample_table import check_columns, sample_table, table_source
from stages.data.source import SPLIT_NAMES, ReaderSource
from stages.errors import DataNotFoundError, InputError

FURTHER_IMAGES = "further images of a sample"
LARGE_IMAGES = "images of more than 256 MiB"
NOT_FILES = "links, sparse files and devices"
SLACK = 2**20
"""Bytes between images that are read rather than skipped, to save requests."""

MAX_BESIDE = 2**20
"""Largest label or JSON of a sample, in bytes."""

MAX_IMAGE = 2**28
"""Largest file of an image, in bytes."""


@dataclass(frozen=True, slots=True)
class TarImages:
    """Images within tar archives.

    Attributes:
        files: the archives.
        file_of: index of the archive of each image, int64.
        offsets: where the bytes of each image begin, int64.
        sizes: number of bytes of each image, int64.
    """

    files: tuple[str, ...]
    file_of: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def encoded(self, numbers: NDArray[np.int64]) -> list[bytes]:
        """The bytes of these images; fewer than expected if an archive is truncated."""
        found = [b""] * len(numbers)
        for index in np.unique(self.file_of[numbers]).tolist():
            at = np.flatnonzero(self.file_of[numbers] == index)
            starts = self.offsets[numbers[at]]
            contents = _members(self.files[index], starts, starts + self.sizes[numbers[at]])
            for row, content in zip(at.tolist(), contents, strict=True):
                found[row] = content
        return found

    def held_bytes(self) -> int:
        """Memory of the index."""
        return self.file_of.nbytes + self.offsets.nbytes + self.sizes.nbytes

    def content(self) -> str:
        """Hash of the archives, hex."""
        return file_content({f"{at:06d}": path for at, path in enumerate(self.files)})


@dataclass(slots=True)
class _Sample:
    """The members of an archive that share a key; the offset is negative without an image."""

    offset: int = -1
    size: int = 0
    columns: dict[str, Any] = field(default_factory=dict)  # Any: JSON
    read: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Index:
    samples: Mapping[str, _Sample]
    left_out: tuple[tuple[str, str], ...]


def _members(place: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> list[bytes]:
    """Ranges of an archive; neighbours are read at once, since requests to a bucket are slow."""
    first, last = int(starts.min()), int(stops.max())
    if last - first > 2 * int((stops - starts).sum()) + SLACK:
        return ranges(place, starts.tolist(), stops.tolist())
    (span,) = ranges(place, [first], [last])
    return [span[start - first : stop - first] for start, stop in zip(starts, stops, strict=True)]


def tar_source(path: Path | str, name: str, split: str, resizing: Resize) -> ReaderSource:
    """A source over one split of a tar archive, or of a folder of them; also at a URL.

    In a folder the names of the archives, or of their folders, have the splits:
    ``train-000000.tar``, ``imagenet-val-17.tar``, ``test/000.tar``. If none of them has the usual
    name of a split, all belong to the requested one. Rows are in the order of the archives and of
    their members. If ``resizing`` leaves it to the layout, images are cropped.

    Raises:
        InputError: an archive is damaged or compressed, there are no images, or a label or column
            is invalid.
    """
    files = _of_split(archives_in(path), split, path)
    indexes = [_indexed(file) for file in files]
    samples = [sample for index in indexes for sample in index.samples.values()]
    if not samples:
        raise InputError(f"{path}: has no images, expected members such as 0000.jpg and 0000.cls")
    keys = [key for index in indexes for key in index.samples]
    found = sample_table(_table(keys, samples, path), "", split, str(path))
    images = TarImages(
        files,
        np.repeat(np.arange(len(files)), [len(index.samples) for index in indexes]),
        np.array([sample.offset for sample in samples]),
        np.array([sample.size for sample in samples]),
    )
    left_out = [entry for index in indexes for entry in index.left_out]
    reader = EncodedReader(images, found.rows, split)
    return table_source(
        found,
        reader,
        name,
        split,
        resizing,
        how_to_label="add a member <key>.cls to each sample",
        left_out=left_out,
    )


def archives_in(path: Path | str) -> tuple[str, ...]:
    """The archive at a path or URL, or those in a folder or in its subfolders, sorted."""
    return files_at(str(path), ".tar")


def tar_splits(path: Path) -> tuple[str, ...]:
    """The splits of an archive or of a folder of them."""
    files = archives_in(path)
    found = sorted({_split_of(file) for file in files} - {""})
    return tuple(found) if files != (str(path),) and found else ("test",)


def _split_of(file: str) -> str:
    """The usual name of a split in the name of an archive, or of its folder; else empty."""
    path = PurePosixPath(file)
    words = [*re.split("[-_.]", path.stem), path.parent.name]
    return next((word for word in words if word in SPLIT_NAMES), "")


def _of_split(files: tuple[str, ...], split: str, path: Path | str) -> tuple[str, ...]:
    """The archives of a split."""
    splits = {file: _split_of(file) for file in files}
    if files == (str(path),) or not any(splits.values()):
        return files
    found = tuple(file for file in files if splits[file] == split)
    if not found:
        raise DataNotFoundError(
            f"{path}: has no archive of split '{split}', only "
            f"{', '.join(sorted(set(splits.values()) - {''}))}: give one of these with --split"
        )
    return found


def _indexed(file: str) -> _Index:
    with refused(file):
        return _index(file, version_of(file))


@lru_cache(maxsize=4096)
def _index(place: str, version: str) -> _Index:
    """The samples of an archive that have an image; the version invalidates the cache."""
    del version
    samples: dict[str, _Sample] = {}
    left_out: list[tuple[str, str]] = []
    name = PurePosixPath(place).name
    try:
        with (
            open_file(place) as file,
            tarfile.open(fileobj=cast("IO[bytes]", _Headers(file)), mode="r:") as archive,
        ):
            for member in (each for each in archive if not each.isdir()):
                if member.size < 0:  # the next header would be an earlier one
                    raise ValueError(f"{shown(member.name)} has {member.size} bytes")
                if reason := _take(member, samples, archive):
                    left_out.append((reason, f"{name}/{shown(member.name)}"))
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise InputError(
            f"{place}: expected a complete tar archive without compression, with labels in UTF-8 "
            f"({' '.join(str(error).split())})"
        ) from error
    with_image = {key: sample for key, sample in samples.items() if sample.offset >= 0}
    return _Index(with_image, tuple(left_out))


@dataclass(frozen=True, slots=True)
class _Headers:
    """An archive for tarfile, which would read a header of any size that the header claims."""

    file: IO[bytes]

    def read(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= MAX_BESIDE:
            raise ValueError(f"a header or label has {n_bytes:,} bytes")
        return self.file.read(n_bytes)

    def seek(self, place: int) -> int:
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()


def _take(member: tarfile.TarInfo, samples: dict[str, _Sample], archive: tarfile.TarFile) -> str:
    """Add a member to its sample; returns the reason if it is left out."""
    if not member.isreg() or member.issparse():
        return NOT_FILES
    place = PurePosixPath(member.name)
    stem, _, kind = place.name.partition(".")
    if not stem:
        return HIDDEN
    sample = samples.setdefault(str(place.with_name(stem)), _Sample())
    if f".{kind}".lower().endswith(image_suffixes()):
        if sample.offset >= 0:
            return FURTHER_IMAGES
        if member.size > MAX_IMAGE:
            return LARGE_IMAGES
        sample.offset, sample.size = member.offset_data, member.size
    elif kind.lower() in ("cls", "json") and member.size <= MAX_BESIDE:
        content = archive.extractfile(member)
        assert content is not None  # it is a regular member
        if kind.lower() in sample.read:
            raise ValueError(f"there are two members {shown(member.name)}")
        sample.read.add(kind.lower())
        _add_columns(sample.columns, kind.lower(), content.read().decode())
    else:
        return NOT_IMAGES
    return ""


def _add_columns(columns: dict[str, Any], kind: str, text: str) -> None:  # Any: JSON
    """Add the label of a ``.cls`` member, or what a ``.json`` member says in addition."""
    if kind == "cls":
        columns["label"] = text.strip()
        return
    facts = json.loads(text)
    if not isinstance(facts, dict):
        raise ValueError("a .json member holds no object")
    for name in facts.keys() - columns.keys() - {"split"}:
        columns[name] = facts[name]


def _table(keys: Sequence[str], samples: Sequence[_Sample], path: Path | str) -> pa.Table:
    """The key and the columns of all samples."""
    names = dict.fromkeys(name for sample in samples for name in sample.columns if name != "key")
    check_columns(names, str(path))
    columns = {"key": pa.array(map(shown, keys), pa.string())}
    for name in sorted(names):
        try:
            name.encode()  # JSON may have lone surrogates, which cannot be stored
            columns[name] = pa.array([sample.columns.get(name) for sample in samples])
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise InputError(
                f"{path}: expected one type of values for {name!r} in all samples "
                f"({' '.join(str(error).split())})"
            ) from error
    return pa.table(columns)
