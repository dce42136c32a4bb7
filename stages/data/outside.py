"""Out-of-distribution images that need no download: noise, and patches of photographs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stages.data.fingerprint import array_content
from stages.data.resize import Resize
from stages.data.source import ArrayReader, ReaderSource, Rows

N_NOISE = 10_000
PATCH = 32
PHOTOGRAPHS = ("brick", "grass", "gravel", "astronaut", "chelsea", "coffee", "rocket")
"""Images in ``skimage.data`` that come with the package: three textures, four photographs."""


@dataclass(frozen=True, slots=True)
class NoiseReader:
    """Independent random pixels, each image from its row number: uniform, or normal around grey.

    Attributes:
        kind: ``uniform-noise`` or ``gaussian-noise``; the latter has a standard deviation equal to
            the full range of a pixel, and is clipped to it (Liang et al. 2018).
    """

    kind: str

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``, generated at the size after the resize."""
        images = np.empty((stop - start, *resizing.size, 3), np.uint8)
        for image, row in zip(images, range(start, stop), strict=True):
            rng = np.random.default_rng([len(self.kind), row])
            if self.kind == "uniform-noise":
                image[:] = rng.integers(0, 256, image.shape, np.uint8)
            else:
                image[:] = np.rint(255 * np.clip(rng.normal(0.5, 1.0, image.shape), 0, 1))
        ids = np.array([f"test/{row:05d}" for row in range(start, stop)], np.str_)
        return Rows(images, {"sample_id": ids, "label": np.full(len(images), -1)})

    def held_bytes(self) -> int:
        """Zero: images are generated when read."""
        return 0

    def content(self) -> str:
        """The kind of noise, which determines the images."""
        return self.kind


def noise_source(kind: str, resizing: Resize) -> ReaderSource:
    """10,000 images of noise, of any size."""
    resizing = Resize(resizing.size)
    return _source(kind, resizing, resizing.size, N_NOISE, NoiseReader(kind))


def patch_source(resizing: Resize) -> ReaderSource:
    """Adjacent 32x32 squares of seven photographs; grey ones have three equal channels."""
    images, _ = load_patches()
    reader = ArrayReader(load_patches, _content, "test")
    return _source("patches", resizing, (PATCH, PATCH), len(images), reader)


@lru_cache(maxsize=1)
def load_patches() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Patches ``uint8 [n, 32, 32, 3]`` without labels, photograph by photograph, row by row."""
    from skimage import data  # slow to import

    patches = []
    for name in PHOTOGRAPHS:
        image = getattr(data, name)()
        image = image if image.ndim == 3 else np.repeat(image[..., np.newaxis], 3, axis=2)
        n_down, n_across = image.shape[0] // PATCH, image.shape[1] // PATCH
        cut = image[: n_down * PATCH, : n_across * PATCH]
        squares = cut.reshape(n_down, PATCH, n_across, PATCH, 3).swapaxes(1, 2)
        patches.append(squares.reshape(-1, PATCH, PATCH, 3))
    images = np.concatenate(patches)
    return images, np.full(len(images), -1, np.int64)


def _content() -> str:
    return array_content(load_patches()[0])


def _source(
    name: str,
    resizing: Resize,
    native: tuple[int, int],
    n_rows: int,
    reader: NoiseReader | ArrayReader,
) -> ReaderSource:
    return ReaderSource(name, "test", name, (), resizing, native, n_rows, reader)
