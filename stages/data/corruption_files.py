"""The corrupt stage at any size: image files in the layout of ImageNet-C.

One shard is a range of rows, by corruption, severity and image, and one file per row:
``<corruption>/<severity>/<class>/<file>``, a JPEG of quality 85.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, ClassVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.work import ShardOutput, Tick
from stages.data.corrupting import corrupting
from stages.data.corruption_work import chosen_names, library_versions
from stages.data.corruptions.cells import cells_of
from stages.data.corruptions.names import (
    VERSION,
    Collection,
    collection_for,
    constants_in_words,
)
from stages.data.folder import FolderReader
from stages.data.listing import left_out_facts
from stages.data.registry import SourceSpec
from stages.data.resize import Resize, resizing_to
from stages.data.source import (
    ReaderSource,
    Rows,
    check_planned,
    require_labels,
    source_facts,
)
from stages.data.stored_sizes import in_words, stored_sizes
from stages.errors import InputError
from store.plan import Plan
from store.shards import Shard
from store.storage import leads_out

JPEG_QUALITY = 85
MOST_FILES, MOST_PIXELS = 500, 2**25
"""Limits of a shard, whose files are made in memory."""

MOST_NAME_BYTES = 255
"""Longest name of a folder that file systems have."""

READ_ROWS = 16


@dataclass(frozen=True)
class CorruptedFiles:
    """Corrupts every image of a source, with the constants for its size, and encodes it as JPEG.

    Attributes:
        source: the clean set, at the size of the files.
        names: corruptions, sorted, each at all severities; empty means all.
        seed: seed; an image's random numbers depend on it, the corruption, severity and row.
    """

    source: SourceSpec
    names: tuple[str, ...] = ()
    seed: int = 0

    name: ClassVar[str] = "corrupt"
    version: ClassVar[int] = VERSION
    rows: ClassVar[str] = "images"
    unit: ClassVar[str] = "shard"
    fixed_keys: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", chosen_names(self.names, self.collection))

    @property
    def collection(self) -> Collection:
        """The collection that defines the levels."""
        return collection_for(resizing_to(self.source.image_size).size)

    def plan(
        self, facts: Mapping[str, Any] | None = None, source: ReaderSource | None = None
    ) -> dict[str, Any]:  # Any: JSON
        """Everything that determines the bytes; checks that the source is suitable.

        Args:
            facts: of the source, if they are known; by default it is hashed.
            source: the source, if it is open.

        Raises:
            InputError: the source is unlabelled or already corrupted, a class cannot be the name of
                a folder, or the photographs of frost are not installed.
        """
        source = source or self.source.open()
        require_labels(source)
        for name in source.class_names:
            _check_folder(name, source)
        corrupted = self.corrupted(source)
        height, width = source.image_size
        return {
            "stage": {
                "name": self.name,
                "version": self.version,
                "params": {
                    "collection": self.collection,
                    "names": list(self.names),
                    "seed": self.seed,
                    "jpeg_quality": JPEG_QUALITY,
                },
            },
            "inputs": {"source": facts or source_facts(source)},
            "n_rows": corrupted.n_rows,
            "shard_rows": max(1, min(MOST_FILES, MOST_PIXELS // (height * width))),
        }

    def corrupted(self, clean: ReaderSource) -> ReaderSource:
        """The corrupted images of the opened source."""
        return corrupting(clean, cells_of(self.names, self.seed))

    def check(self, plan: Plan) -> None:
        """Check that the source is still the planned one; raises ``InputError``."""
        check_planned(self.source.open(), plan["inputs"]["source"])

    def setup(self, n_threads: int) -> ReaderSource:  # noqa: ARG002 - one thread is fastest
        """Open the source."""
        return self.corrupted(self.source.open())

    def compute(self, state: ReaderSource, shard: Shard, tick: Tick) -> ShardOutput:
        """The files of a shard.

        An image that cannot be read has no file; ``facts["failed"]`` has row -> reason.
        """
        files: dict[str, bytes] = {}
        failed: dict[str, str] = {}
        crc = 0
        for start in range(shard.start, shard.stop, READ_ROWS):
            rows = state.read(start, min(start + READ_ROWS, shard.stop))
            crc = google_crc32c.extend(crc, rows.images.tobytes())
            failed |= {str(start + at): why for at, why in sorted(rows.failed.items())}
            keys = file_keys(state, rows)
            read = [at for at in range(len(keys)) if at not in rows.failed]
            files |= {keys[at]: _jpeg(rows.images[at]) for at in read}
            tick(len(keys))
        if len(files) + len(failed) < shard.n_rows:
            raise InputError(
                f"{state.name}: several images would be written to the same file of rows "
                f"{shard.start} to {shard.stop - 1}; expected distinct names in each class"
            )
        facts = {
            "rows": shard.n_rows,
            "images_crc32c": f"{crc:08x}",
            "failed": failed,
            "versions": library_versions(),
            **left_out_facts(state.left_out),
        }
        return ShardOutput(files, facts)

    def fixed_files(self) -> dict[str, bytes]:
        """No files but those of images."""
        return {}

    @property
    def image_bytes(self) -> int:
        """Memory of an image, in which its file fits as well."""
        height, width = resizing_to(self.source.image_size).size
        return 3 * height * width

    @property
    def file_bytes(self) -> int:
        """Size of a file, roughly: a tenth of its pixels; with noise, a fifth."""
        return self.image_bytes // 10

    def resized(self, source: ReaderSource) -> str:
        """A note with the sizes of images, and how they are prepared."""
        height, width = source.image_size
        return (
            f"{source.name} {source.split}: images of {in_words(stored_sizes(source))} become "
            f"{height}x{width} ({source.resize}), with the constants of "
            f"{constants_in_words(source.image_size)}"
        )


def sized(spec: SourceSpec, source: ReaderSource, side: int) -> SourceSpec:
    """The images at ``side`` x ``side`` pixels, as ImageNet-C prepares them.

    The shorter side is resized to 8/7 of it (256 for 224) and the centre cut out. Images that all
    have this size already are used as they are.
    """
    is_exact = set(stored_sizes(source)) == {(side, side)}
    return replace(spec, image_size=Resize((side, side), side if is_exact else side * 8 // 7))


def file_keys(source: ReaderSource, rows: Rows) -> list[str]:
    """The paths of rows in the set.

    Files of class folders keep their names; other images are numbered. Those that are not JPEG by
    name get a second suffix.
    """
    reader: Any = source.reader
    while (within := getattr(reader, "reader", None)) is not None:  # of a wrapper
        reader = within
    keeps_names = isinstance(reader, FolderReader) and max(reader.labels, default=-1) >= 0
    columns = rows.columns
    keys = []
    for row, label in enumerate(columns["label"].tolist()):
        cell, _, number = str(columns["sample_id"][row]).rpartition("/")
        name = PurePosixPath(str(columns["clean_id"][row])).name if keeps_names else number
        is_jpeg = name.lower().endswith((".jpg", ".jpeg"))
        if label < 0:
            raise InputError(
                f"{source.name} {source.split}: image {columns['clean_id'][row]} has no label, "
                "expected one for each image"
            )
        keys.append(f"{cell}/{source.class_names[label]}/{name}{'' if is_jpeg else '.JPEG'}")
    return keys


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def _check_folder(class_name: str, source: ReaderSource) -> None:
    is_long = len(class_name.encode()) > MOST_NAME_BYTES
    if is_long or "/" in class_name or class_name.startswith(".") or leads_out(class_name):
        raise InputError(
            f"{source.name} {source.split}: class {class_name[:80]!r} cannot be the name of a "
            "folder; expected a name without / that does not start with a dot, of at most "
            f"{MOST_NAME_BYTES} bytes"
        )
