"""Images that lie as the bytes of image files within larger files, and are read by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stages.data.image_files import decoded
from stages.data.resize import Resize
from stages.data.source import Rows


class EncodedImages(Protocol):
    """Image files within larger files, by number; holds paths and numbers."""

    def encoded(self, numbers: NDArray[np.int64]) -> list[bytes]:
        """The bytes of these image files; empty for one that is missing."""

    def held_bytes(self) -> int:
        """Memory in bytes that a process takes while it reads."""

    def content(self) -> str:
        """Hash of the files, hex."""


@dataclass(frozen=True, slots=True)
class EncodedReader:
    """Rows of encoded images, without labels.

    Attributes:
        images: where the images lie.
        numbers: number of the image of each row, int64.
        id_prefix: a row's ``sample_id`` is ``<id_prefix>/<row, five digits>``.
    """

    images: EncodedImages
    numbers: NDArray[np.int64]
    id_prefix: str

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``; one that cannot be decoded becomes a failed row of zeros."""
        ids = [f"{self.id_prefix}/{row:05d}" for row in range(start, stop)]
        files = self.images.encoded(self.numbers[start:stop])
        images, failed = decoded(ids, files, resizing)
        columns = {"sample_id": np.array(ids, np.str_), "label": np.full(len(ids), -1)}
        return Rows(images, columns, failed)

    def held_bytes(self) -> int:
        """Memory of the numbers, and of what is read at once."""
        return self.numbers.nbytes + self.images.held_bytes()

    def content(self) -> str:
        """Hash of the files, hex; the table of the columns determines the rows."""
        return self.images.content()
