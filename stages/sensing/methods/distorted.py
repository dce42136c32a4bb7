"""The method noise: also train on distorted copies of some training images."""

from __future__ import annotations

import zlib
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.progress import Progress
from stages.data.corruptions.names import CURE, N_SEVERITIES
from stages.sensing.labelled import LabelledImages
from stages.sensing.methods.method import Method
from stages.sensing.methods.method_params import Noise, check_images

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
        InputError: the images do not fit the method, see `check_images`.
    """
    from stages.data.corruptions.severities import corrupt

    check_images(params, len(rows), data.images.shape[1:3])
    n_each = params.per_distortion
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
