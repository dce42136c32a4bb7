"""Some rows of a source, as a source of their own or as images in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.data.resize import Resize
from stages.data.source import Reader, ReaderSource, Rows, joined


@dataclass(frozen=True, eq=False)
class PickedReader:
    """Reads some rows of another reader; neighbouring rows are read together.

    Attributes:
        reader: reads all rows.
        rows: the rows to read, ascending, shape ``(n,)``.
    """

    reader: Reader
    rows: NDArray[np.int64]

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)`` of the picked ones, resized."""
        picked = self.rows[start:stop]
        if not len(picked):
            return self.reader.read(0, 0, resizing)
        runs = np.split(picked, np.flatnonzero(np.diff(picked) != 1) + 1)
        return joined([self.reader.read(int(run[0]), int(run[-1]) + 1, resizing) for run in runs])

    def held_bytes(self) -> int:
        """Memory in bytes that the data takes while a process reads from it."""
        return self.reader.held_bytes() + self.rows.nbytes

    def content(self) -> str:
        """Hash of the data, hex: that of all rows."""
        return self.reader.content()


def picked(source: ReaderSource, rows: NDArray[np.int64]) -> ReaderSource:
    """The source with these rows alone, which ascend; row ``i`` is row ``rows[i]`` of all."""
    return replace(source, reader=PickedReader(source.reader, rows), n_rows=len(rows))


class Sample(NamedTuple):
    """How many rows to draw, and with which seed."""

    rows: int
    seed: int


def sampled(source: ReaderSource, sample: Sample) -> ReaderSource:
    """The source with some of its rows, drawn at random, in their order; all if there are no more.

    Rows of a smaller sample are among those of a larger one with the same seed. Each keeps its
    ``sample_id``.
    """
    if sample.rows >= source.n_rows:
        return source
    order = np.random.default_rng(sample.seed).permutation(source.n_rows)
    found = picked(source, np.sort(order[: sample.rows]))
    return replace(found, sample={"of": source.n_rows, "seed": sample.seed})


def images_of(
    source: ReaderSource, rows: NDArray[np.integer[Any]]
) -> Callable[[int], NDArray[np.uint8]]:
    """A function from the number of a row, one of ``rows``, to its image; all are read at once."""
    wanted = np.unique(rows).astype(np.int64)
    images = picked(source, wanted).read(0, len(wanted)).images
    return lambda row: images[np.searchsorted(wanted, row)]
