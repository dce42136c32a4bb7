"""Random flips and crops of images, drawn by row, as they are augmented in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Flips = Literal["flip", "crop_flip"]

CROP_PAD = 4
"""Black border in pixels from which crops are cut; main.py of wide-resnet.pytorch."""


@dataclass(frozen=True, slots=True)
class Augmenting:
    """Each image flipped horizontally with probability 1/2, and shifted by up to `CROP_PAD` pixels.

    Attributes:
        how: ``flip``, or ``crop_flip`` to also crop at random, as training does.
        seed: number of the draw. What is drawn for an image depends on it and on the row alone.
    """

    how: Flips
    seed: int = 0

    @property
    def label(self) -> str:
        """Suffix of the name of a data set, such as ``crop_flip-0``."""
        return f"{self.how}-{self.seed}"

    def of(self, images: NDArray[np.uint8], first: int) -> NDArray[np.uint8]:
        """Augmented images, ``uint8 [n, H, W, 3]``; the first has the row ``first``."""
        augmented = np.empty_like(images)
        for at, image in enumerate(images):
            augmented[at] = self._one(image, first + at)
        return augmented

    def _one(self, image: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        generator = np.random.default_rng([self.seed, row])
        is_flipped = generator.random() < 0.5
        if self.how == "crop_flip":
            top, left = generator.integers(0, 2 * CROP_PAD + 1, size=2)
            border = (CROP_PAD, CROP_PAD)
            padded = np.pad(image, (border, border, (0, 0)))
            image = padded[top : top + image.shape[0], left : left + image.shape[1]]
        return image[:, ::-1] if is_flipped else image
