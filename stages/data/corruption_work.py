"""The corrupt stage: makes a set in the layout of CIFAR-10-C from any labelled 32x32 source.

One shard is one corruption and one file, ``<corruption>.npy``: ``uint8 [5 n, 32, 32, 3]``, severity
``s`` in the rows ``[(s - 1) n, s n)``, with images in the order of the source. Rotations have 15
severities instead of 5. ``labels.npy`` is the same for all of them and is written first
(``labels_npy``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.work import ShardOutput, Tick
from stages.data.corruptions.frost import frost_folder
from stages.data.corruptions.names import SIDES, VERSION, Collection, n_severities_of, names_of
from stages.data.corruptions.pixels import SIDE
from stages.data.listing import left_out_facts
from stages.data.registry import SourceSpec
from stages.data.source import (
    ImageSource,
    Rows,
    check_planned,
    require_clean,
    require_labels,
    source_facts,
)
from stages.data.stored_sizes import Sizes, in_words, stored_sizes
from stages.errors import InputError
from store.plan import Plan
from store.receipts import BESIDE
from store.seal import vouch
from store.shards import Shard

READ_ROWS = 1_000
LABELS_KEY = "labels.npy"


@dataclass(frozen=True)
class CorruptionWork:
    """Corrupts every image of a source by each corruption in ``names`` at all severities.

    The resulting set is ordered by corruption (alphabetical), severity and image.

    Attributes:
        source: the clean set.
        names: corruptions, sorted alphabetically; empty means all.
        seed: seed; an image's random numbers depend on it, the corruption, severity and row.
        collection: collection that defines the levels: ``cifar10c``, ``cure`` or ``rotations``.
        is_shrunk: accept images that are larger than 32x32, or not square. It is not part of the
            plan, whose source says how images are resized.
    """

    source: SourceSpec
    names: tuple[str, ...] = ()
    seed: int = 0
    collection: Collection = "cifar10c"
    is_shrunk: bool = False

    name: ClassVar[str] = "corrupt"
    version: ClassVar[int] = VERSION
    rows: ClassVar[str] = "images"
    unit: ClassVar[str] = "corruption"
    fixed_keys: ClassVar[tuple[str, ...]] = (LABELS_KEY,)
    image_bytes: ClassVar[int] = SIDE * SIDE * 3
    file_bytes: ClassVar[int] = SIDE * SIDE * 3

    def __post_init__(self) -> None:
        collections = [each for each, side in SIDES.items() if side == SIDE]
        if self.collection not in collections:
            raise InputError(
                f"collection {self.collection!r} is unknown; use {' or '.join(collections)}"
            )
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, expected zero or more")
        # The order in which names are given must not change the plan.
        object.__setattr__(self, "names", chosen_names(self.names, self.collection))

    @property
    def n_severities(self) -> int:
        """Number of severities of each corruption."""
        return n_severities_of(self.collection)

    def plan(
        self, facts: Mapping[str, Any] | None = None, source: ImageSource | None = None
    ) -> dict[str, Any]:  # Any: JSON
        """Everything that determines the bytes; checks that the source is suitable.

        Args:
            facts: of the source, if they are known; by default it is hashed.
            source: the source, if it is open.

        Raises:
            InputError: the source is opened at a size other than 32x32, has larger or non-square
                images, is unlabelled or already corrupted; or ``frost`` is requested and its
                photographs are not installed.
        """
        if "frost" in self.names:
            frost_folder()
        source = source or self.source.open()
        _check(source)
        if not self.is_shrunk:
            _check_stored(source, stored_sizes(source))
        shard_rows = self.n_severities * source.n_rows
        params = {"collection": self.collection, "names": list(self.names), "seed": self.seed}
        return {
            "stage": {"name": self.name, "version": self.version, "params": params},
            "inputs": {"source": facts or source_facts(source)},
            "n_rows": len(self.names) * shard_rows,
            "shard_rows": shard_rows,
        }

    def fixed_files(self) -> dict[str, bytes]:
        """The labels, which are the same for every corruption."""
        return {LABELS_KEY: labels_npy(self.source.open(), self.n_severities)}

    def resized(self, source: ImageSource) -> str:
        """A note with the sizes of images that are resized to 32x32 first; empty for 32x32."""
        sizes = stored_sizes(source)
        if set(sizes) <= {(SIDE, SIDE)}:
            return ""
        return f"{source.name} {source.split}: images of {in_words(sizes)} become {SIDE}x{SIDE}"

    def check(self, plan: Plan) -> None:
        """Check that the source is still the planned one; raises ``InputError``."""
        check_planned(self.source.open(), plan["inputs"]["source"])

    def setup(self, n_threads: int) -> ImageSource:  # noqa: ARG002 - one thread is fastest
        """Open the source."""
        return self.source.open()

    def compute(self, state: ImageSource, shard: Shard, tick: Tick) -> ShardOutput:
        """Apply one corruption at every severity: the whole ``<corruption>.npy``.

        The source is read once. An image that cannot be read is zeros at every severity and listed
        in ``facts["failed"]``: row within the shard (a string, for JSON) -> reason.
        """
        name, n_images = self._name_of(shard, state.n_rows), state.n_rows
        buffer, images = _npy_buffer((self.n_severities * n_images, SIDE, SIDE, 3))
        by_severity = images.reshape(self.n_severities, n_images, SIDE, SIDE, 3)
        crc, failed, labels = 0, {}, []
        for start, rows in _chunks(state):
            labels.append(rows.columns["label"])
            crc = google_crc32c.extend(crc, rows.images.tobytes())
            self._corrupt_chunk(name, start, rows, by_severity, tick)
            for offset, reason in rows.failed.items():
                for block in range(self.n_severities):
                    failed[block * n_images + start + offset] = reason
        del images, by_severity  # BytesIO.getvalue() requires that no view of it exists
        facts = {
            "corruption": name,
            "rows": shard.n_rows,
            "source_crc32c": f"{crc:08x}",
            "failed": {str(row): failed[row] for row in sorted(failed)},
            "versions": library_versions(),
            **left_out_facts(state.left_out),
            BESIDE: {LABELS_KEY: vouch(_labels_file(labels, self.n_severities))},
        }
        return ShardOutput({f"{name}.npy": buffer.getvalue()}, facts)

    def _corrupt_chunk(
        self, name: str, start: int, rows: Rows, out: NDArray[np.uint8], tick: Tick
    ) -> None:
        """Write the rows from ``start`` into ``out``, shape ``[severities, n, 32, 32, 3]``."""
        # Imported here: it loads OpenCV and SciPy.
        from stages.data.corruptions.severities import corrupt

        n = len(rows.images)
        row_numbers, bad = np.arange(start, start + n), list(rows.failed)
        for severity in range(1, self.n_severities + 1):
            corrupted = corrupt(
                rows.images, name, severity, row_numbers, self.seed, collection=self.collection
            )
            corrupted[bad] = 0
            out[severity - 1, start : start + n] = corrupted
            tick(n)

    def _name_of(self, shard: Shard, n_images: int) -> str:
        per = self.n_severities * n_images
        if shard.start != shard.index * per or shard.n_rows != per:
            raise ValueError(
                f"shard {shard.index} covers rows [{shard.start}, {shard.stop}), expected one "
                f"corruption: {per} rows from {shard.index * per}; use shard_rows from plan()"
            )
        return self.names[shard.index]


def chosen_names(names: tuple[str, ...], collection: Collection) -> tuple[str, ...]:
    """Corruptions of a collection, each once and sorted; all if none are named.

    Raises ``InputError`` for an unknown one.
    """
    known = names_of(collection)
    for name in names:
        if name not in known:
            raise InputError(
                f"corruption {name!r} is unknown; {collection} has: {', '.join(known)}"
            )
    return tuple(sorted(set(names or known)))


def labels_npy(source: ImageSource, n_severities: int) -> bytes:
    """The whole ``labels.npy`` of a set made from ``source``: its labels, repeated per severity.

    Raises:
        InputError: an image has no label, or one that does not fit into a byte.
    """
    _check(source)
    parts = [rows.columns["label"] for _, rows in _chunks(source)]
    labels = np.concatenate(parts)
    for row in np.flatnonzero((labels < 0) | (labels > 255))[:1]:
        raise InputError(
            f"{source.name} {source.split}: the label of row {row} is {labels[row]}, expected 0 to "
            "255; corrupt a labelled data set"
        )
    return _labels_file(parts, n_severities)


def _labels_file(parts: Sequence[NDArray[np.int64]], n_severities: int) -> bytes:
    buffer = BytesIO()
    np.save(buffer, np.tile(np.concatenate(parts).astype(np.uint8), n_severities))
    return buffer.getvalue()


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose arithmetic determines the bytes."""
    import cv2
    import PIL
    import scipy

    modules = {"numpy": np, "opencv": cv2, "pillow": PIL, "scipy": scipy}
    return {name: str(module.__version__) for name, module in modules.items()}


def _check(source: ImageSource) -> None:
    title = f"{source.name} {source.split}"
    if source.image_size != (SIDE, SIDE):
        height, width = source.image_size
        raise InputError(
            f"{title}: images are {height}x{width}, expected {SIDE}x{SIDE}, for which the "
            f"corruptions are defined; open it with image size {SIDE}"
        )
    require_labels(source)
    require_clean(source)


def _check_stored(source: ImageSource, sizes: Sizes) -> None:
    """Refuse images that would lose pixels or change shape; smaller squares are enlarged."""
    if all(height == width <= SIDE for height, width in sizes):
        return
    raise InputError(
        f"{source.name} {source.split}: stored images are {in_words(sizes)}, expected "
        f"{SIDE}x{SIDE} or smaller squares, for which the corruptions are defined: resize them, or "
        f"accept with --image-size {SIDE} that they are resized; --image-size 224 writes files in "
        "the layout of ImageNet-C"
    )


def _chunks(source: ImageSource) -> Iterator[tuple[int, Rows]]:
    """The source in chunks, each with the row at which it starts."""
    for start in range(0, source.n_rows, READ_ROWS):
        yield start, source.read(start, min(start + READ_ROWS, source.n_rows))


def _npy_buffer(shape: tuple[int, ...]) -> tuple[BytesIO, NDArray[np.uint8]]:
    """An npy file in memory, and its array to fill in place: a set takes 150 MB instead of 300."""
    buffer = BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    offset = buffer.tell()
    buffer.seek(offset + int(np.prod(shape)) - 1)
    buffer.write(b"\0")  # the gap before it becomes zeros
    return buffer, np.frombuffer(buffer.getbuffer(), np.uint8, offset=offset).reshape(shape)
