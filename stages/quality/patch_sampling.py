"""Random patches of photographs, on which the autoencoder of UNIQUE is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.progress import Progress
from stages.data.decoding import PLAIN
from stages.data.regular import require_regular
from stages.errors import InputError
from stages.quality.patches import PATCH, PATCH_VALUES, Floats, patches_of, ygcr

MOST_PATCHES = 2**20
"""Patches that are held in memory: 1.5 GiB."""


@dataclass(frozen=True, eq=False)
class SampledPatches:
    """Patches, one per column, and how many images they are from.

    Attributes:
        patches: in YGCr, in [0, 1], shape ``(192, n)``.
        n_images: number of images that were read.
        n_left_out: number of images that could not be read, or are smaller than a patch.
    """

    patches: Floats
    n_images: int
    n_left_out: int

    def facts(self) -> dict[str, int]:
        """The numbers, for a card."""
        return {"n_images": self.n_images, "n_left_out": self.n_left_out}


def check_number(n_patches: int) -> None:
    """Raise ``InputError`` for more patches than are held in memory."""
    if n_patches > MOST_PATCHES:
        raise InputError(
            f"{n_patches:,} patches, expected at most {MOST_PATCHES:,}: use fewer --max-images or "
            "--patches"
        )


def sampled_patches(
    files: Sequence[Path], max_images: int, n_per_image: int, seed: int
) -> SampledPatches:
    """Random 8x8 patches of images at their full size.

    The patches of a file depend on the seed and its position in the list alone.

    Raises:
        InputError: none of the images can be used.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(files))[:max_images]
    parts = []
    with Progress("read patches", len(order)) as progress:
        for index in sorted(order.tolist()):
            image = _image(files[index])
            if image is not None:
                rng = np.random.default_rng([seed, 2, index])
                parts.append(_random_patches(image, n_per_image, rng))
            progress.advance(1)
    if not parts:
        raise InputError(
            f"{files[0].parent}: none of {len(order):,} images can be read and is at least "
            f"{PATCH}x{PATCH} pixels, expected photographs"
        )
    return SampledPatches(np.concatenate(parts, axis=1), len(parts), len(order) - len(parts))


def _image(path: Path) -> NDArray[np.uint8] | None:
    """The pixels of a file; ``None`` if it cannot be read or is smaller than a patch."""
    try:
        require_regular(path)
        with Image.open(path) as image:
            pixels = np.asarray(PLAIN.rgb(image))
    except Exception:  # PIL raises nearly anything on a broken file; such files are counted
        return None
    return pixels if min(pixels.shape[:2]) >= PATCH else None


def _random_patches(image: NDArray[np.uint8], n: int, rng: np.random.Generator) -> Floats:
    """Patches at random positions, shape ``(192, n)``."""
    converted = ygcr(image)
    tops = rng.integers(0, image.shape[0] - PATCH + 1, n)
    lefts = rng.integers(0, image.shape[1] - PATCH + 1, n)
    found = np.empty((PATCH_VALUES, n))
    for at, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
        patch = converted[top : top + PATCH, left : left + PATCH]
        found[:, at] = patches_of(patch)[:, 0]
    return found
