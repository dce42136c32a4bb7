"""The method noise: also train on distorted copies of some training images."""

from __future__ import annotations

import zlib
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.progress import Progress
from stages.data.corruptions.names import CURE, N_SEVERITIES, SIDES
from stages.errors import InputError
from stages.sensing.labelled import LabelledImages
from stages.sensing.methods.method import Method
from stages.sensing.methods.method_params import Noise

KEY = zlib.crc32(b"noise")
"""Part of every seed, so that no image gets the noise of a test image of the same row."""


def noise(params: Noise, seed: int) -> Method:
    """The method; the seed draws the images, their levels, and the noise itself."""
    return Method(added=partial(distorted, params=params, seed=seed))


def distorted(data: LabelledImages, rows: Tensor, *, params: Noise, seed: int) -> LabelledImages:
    """``params.per_distortion`` of the images with each of the six distortions, one after another.

    Images are drawn without replacement for each distortion, levels uniformly.

    Args:
        data: the training images.
        rows: indexes of those that may be drawn.
        params: the parameters.
        seed: seed of the training.

    Raises:
        InputError: there are fewer images, or they are not of the size for which the distortions
            have constants.
    """
    from stages.data.corruptions.severities import corrupt

    n_each, side = params.per_distortion, SIDES["cure"]
    _check(data, len(rows), n_each, side)
    generator = np.random.default_rng([seed, KEY])
    chosen = [torch.from_numpy(generator.permutation(len(rows))[:n_each]) for _ in CURE]
    levels = generator.integers(1, N_SEVERITIES + 1, size=(len(CURE), n_each))
    index = torch.cat([rows[each] for each in chosen])
    images, origins = data.take(index).cpu().numpy(), data.rows[index]
    with Progress("distort training images", len(index)) as progress:
        for number, name in enumerate(CURE):
            start = number * n_each
            for level in range(1, N_SEVERITIES + 1):
                places = start + np.flatnonzero(levels[number] == level)
                keys = origins[torch.from_numpy(places)].numpy()
                block = images[places]
                images[places] = corrupt(block, name, level, keys, KEY + seed, collection="cure")
                progress.advance(len(places))
    return LabelledImages(torch.from_numpy(images), data.labels[index], origins, 0)


def _check(data: LabelledImages, n_rows: int, n_each: int, side: int) -> None:
    if (size := tuple(data.images.shape[1:3])) != (side, side):
        raise InputError(
            f"--method noise: the distortions have constants for {side}x{side} pixels, found "
            f"{size[0]}x{size[1]}; give --image-size {side}"
        )
    if n_rows < n_each:
        raise InputError(
            f"--method noise: --per-distortion {n_each} needs as many training images, found "
            f"{n_rows}; give --per-distortion {n_rows} or fewer"
        )
