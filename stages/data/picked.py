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
        rows: the rows to read, each once, shape ``(n,)``.
    """

    reader: Reader
    rows: NDArray[np.int64]

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)`` of the picked ones, resized."""
        picked = self.rows[start:stop]
        if not len(picked):
            return self.reader.read(0, 0, resizing)
        ascending = np.sort(picked)
        runs = np.split(ascending, np.flatnonzero(np.diff(ascending) != 1) + 1)
        found = joined([self.reader.read(int(run[0]), int(run[-1]) + 1, resizing) for run in runs])
        return found if (ascending == picked).all() else _taken(found, np.argsort(picked).argsort())

    def held_bytes(self) -> int:
        """Memory in bytes that the data takes while a process reads from it."""
        return self.reader.held_bytes() + self.rows.nbytes

    def content(self) -> str:
        """Hash of the data, hex: that of all rows."""
        return self.reader.content()


def _taken(found: Rows, order: NDArray[np.int64]) -> Rows:
    """The rows in another order; ``order[i]`` becomes row ``i``."""
    columns = {name: values[order] for name, values in found.columns.items()}
    old = order.tolist()
    failed = {at: found.failed[row] for at, row in enumerate(old) if row in found.failed}
    return Rows(found.images[order], columns, failed)


def picked(source: ReaderSource, rows: NDArray[np.int64]) -> ReaderSource:
    """The source with these rows alone; row ``i`` is row ``rows[i]`` of all."""
    return replace(source, reader=PickedReader(source.reader, rows), n_rows=len(rows))


class Sample(NamedTuple):
    """How many rows to draw, or None for all; with which seed; and whether in random order."""

    rows: int | None
    seed: int
    is_shuffled: bool = False


def sampled(source: ReaderSource, sample: Sample) -> ReaderSource:
    """The source with some of its rows, drawn at random; all if there are no more.

    They keep their order, or are in random order within each cell of a corrupted set. Rows of a
    smaller sample are among those of a larger one with the same seed. Each keeps its ``sample_id``.
    """
    n_rows = min(source.n_rows, sample.rows or source.n_rows)
    if n_rows == source.n_rows and not sample.is_shuffled:
        return source
    drawn = np.random.default_rng(sample.seed).permutation(source.n_rows)[:n_rows]
    cells = drawn // (source.cell_rows or source.n_rows)
    rows = drawn[np.argsort(cells, kind="stable")] if sample.is_shuffled else np.sort(drawn)
    facts = {"of": source.n_rows, "seed": sample.seed}
    return replace(
        picked(source, rows),
        sample={**facts, "shuffled": True} if sample.is_shuffled else facts,
        cell_rows=source.cell_rows if n_rows == source.n_rows else None,
    )


def sample_of(rows: int | None, seed: int, *, is_shuffled: bool) -> Sample | None:
    """The sample; None if it is all rows in their order."""
    return None if rows is None and not is_shuffled else Sample(rows, seed, is_shuffled)


def images_of(
    source: ReaderSource, rows: NDArray[np.integer[Any]]
) -> Callable[[int], NDArray[np.uint8]]:
    """A function from the number of a row, one of ``rows``, to its image; all are read at once."""
    wanted = np.unique(rows).astype(np.int64)
    images = picked(source, wanted).read(0, len(wanted)).images
    return lambda row: images[np.searchsorted(wanted, row)]
