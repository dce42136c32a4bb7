"""The method augmix: mixtures of augmented images, and a consistency loss.

Source: Hendrycks et al., "AugMix", ICLR 2020, and their code (google-research/augmix, ``cifar.py``
and ``augmentations.py``). Operations are applied to whole batches, on the device of the images,
instead of by Pillow to one image after another; they give what Pillow gives.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stages.sensing.methods.affine import transformed
from stages.sensing.methods.method import Batch, Method, Views
from stages.sensing.methods.method_params import AugMix
from stages.sensing.methods.tonal_ops import (
    autocontrast,
    equalize,
    looked_up,
    posterize,
    solarize,
)

TONAL = ("autocontrast", "equalize", "posterize", "solarize")
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*TONAL, *GEOMETRIC)
"""The nine operations, which the corruptions of CIFAR-10-C do not contain."""

NONE = -1
"""In place of an operation, beyond the end of a chain."""

N_VIEWS = 2
"""Mixtures of each image, beside the image itself."""

MAX_DEPTH = 3
"""Largest number of operations in a chain whose depth is random."""

MIN_PROBABILITY = 1e-7
"""Lower bound of the mean probabilities whose logarithm is taken."""

BLOCK_PIXELS = 2**18
"""Pixels that are transformed at once, which bounds the memory."""


def augmix(params: AugMix) -> Method:
    """The method: the images and two mixtures of each, trained to get the same prediction."""
    return Method(
        views=partial(mixed_views, params=params),
        loss=partial(consistent_loss, weight=params.jsd_weight),
    )


@dataclass(frozen=True, slots=True)
class Chains:
    """The random numbers of one view of a batch.

    Attributes:
        operations: ``[width, depth, n]`` indexes of ``OPERATIONS``, or ``NONE``.
        levels: ``[width, depth, n]``, uniform between .1 and the severity.
        signs: ``[width, depth, n]``, 1 or -1.
        weights: ``[width, n]`` float32, of the chains; they add up to 1.
        shares: ``[n]`` float32, of all chains together; the image itself has the rest.
    """

    operations: NDArray[np.int64]
    levels: NDArray[np.float64]
    signs: NDArray[np.int64]
    weights: NDArray[np.float32]
    shares: NDArray[np.float32]


def drawn(n: int, params: AugMix, generator: np.random.Generator) -> Chains:
    """Draw the random numbers of one view of ``n`` images."""
    width, depth = params.mix_width, params.mix_depth or MAX_DEPTH
    shape = (width, depth, n)
    operations = generator.integers(0, len(OPERATIONS), shape)
    if params.mix_depth is None:
        lengths = generator.integers(1, MAX_DEPTH + 1, (width, 1, n))
        operations[np.arange(depth)[:, None] >= lengths] = NONE
    return Chains(
        operations,
        generator.uniform(0.1, params.mix_severity, shape),
        np.where(generator.random(shape) > 0.5, -1, 1),
        generator.dirichlet([1] * width, n).T.astype(np.float32),
        generator.beta(1, 1, n).astype(np.float32),
    )


def mixed_views(batch: Batch, *, params: AugMix) -> Views:
    """The images of a batch and two mixtures of each, ``[n, H, W, 3]`` float32 in [0, 255]."""
    generator = np.random.default_rng([*batch.key, zlib.crc32(b"augmix")])
    images = batch.images.float()
    views = [drawn(len(images), params, generator) for _ in range(N_VIEWS)]
    return (images, *(mixture(batch.images, chains) for chains in views))


def mixture(images: Tensor, chains: Chains) -> Tensor:
    """``(1 - share) x + share Σ weight chain(x)`` of each image, ``[n, H, W, 3]`` float32."""
    weights, shares = (
        torch.from_numpy(each)[..., None, None, None].to(images.device)
        for each in (chains.weights, chains.shares)
    )
    mixed = torch.zeros(images.shape, device=images.device)
    for chain, weight in enumerate(weights):
        mixed += weight * _through(images, chains, chain)
    return torch.lerp(images.float(), mixed, shares)


def _through(images: Tensor, chains: Chains, chain: int) -> Tensor:
    """The images after the operations of one of their chains, uint8."""
    n_rows = max(1, BLOCK_PIXELS // math.prod(images.shape[1:3]))
    blocks = []
    for start in range(0, len(images), n_rows):
        rows = slice(start, start + n_rows)
        block = images[rows]
        steps = (chains.operations, chains.levels, chains.signs)
        for operations, levels, signs in zip(*(each[chain] for each in steps), strict=True):
            block = applied(block, operations[rows], levels[rows], signs[rows])
        blocks.append(block)
    return torch.cat(blocks)


def applied(
    images: Tensor,
    operations: NDArray[np.int64],
    levels: NDArray[np.float64],
    signs: NDArray[np.int64],
) -> Tensor:
    """Images after one operation each, at its level of 10; ``[n, H, W, 3]`` uint8.

    Parameters grow linearly up to level 10 and are truncated to whole numbers where they are
    degrees, pixels, bits or grey levels.
    """
    result = images.clone()
    for number, name in enumerate(TONAL):
        rows = np.flatnonzero(operations == number)
        if len(rows):
            index = torch.from_numpy(rows).to(images.device)
            chosen = images[index]
            result[index] = looked_up(chosen, _tables(name, chosen, levels[rows]))
    rows = np.flatnonzero(operations >= len(TONAL))
    if len(rows):
        index = torch.from_numpy(rows).to(images.device)
        numbers = operations[rows] - len(TONAL)
        matrices = _matrices(numbers, levels[rows], signs[rows], tuple(images.shape[1:3]))
        result[index] = transformed(images[index], matrices)
    return result


def _tables(name: str, images: Tensor, levels: NDArray[np.float64]) -> Tensor:
    """What an operation does to the values of each image, ``[n, 3, 256]`` uint8."""
    if name == "autocontrast":
        return autocontrast(images)
    if name == "equalize":
        return equalize(images)
    if name == "posterize":
        return posterize(images, torch.from_numpy(4 - _whole(levels, 4)).to(images.device))
    return solarize(images, torch.from_numpy(256 - _whole(levels, 256)).to(images.device))


def _matrices(
    numbers: NDArray[np.int64],
    levels: NDArray[np.float64],
    signs: NDArray[np.int64],
    size: tuple[int, ...],
) -> NDArray[np.float64]:
    """The matrices of operations, by their number in ``GEOMETRIC``, for `transformed`."""
    height, width = size
    zero, one = np.zeros(len(levels)), np.ones(len(levels))
    angle = -np.radians(signs * _whole(levels, 30))
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2
    shear = signs * levels * 0.3 / 10
    right, down = (signs * _whole(levels, side / 3) for side in (width, height))
    known = {
        "rotate": (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y),
        "shear_x": (one, shear, zero, zero, one, zero),
        "shear_y": (one, zero, zero, shear, one, zero),
        "translate_x": (one, zero, right, zero, one, zero),
        "translate_y": (one, zero, zero, zero, one, down),
    }
    every = np.stack([np.stack(known[name], 1) for name in GEOMETRIC])
    return np.asarray(every[numbers, np.arange(len(numbers))])


def _whole(levels: NDArray[np.float64], largest: float) -> NDArray[np.int64]:
    """A parameter that is ``largest`` at level 10, truncated."""
    return (levels * largest / 10).astype(np.int64)


def consistent_loss(outputs: Views, labels: Tensor, *, weight: float) -> Tensor:
    """Cross entropy of the images, plus ``weight`` times the divergence between the views.

    That is the Jensen-Shannon divergence: the mean over the views of the Kullback-Leibler
    divergence of their probabilities from the mean probabilities, clamped at 1e-7.
    """
    probabilities = [logits.softmax(1) for logits in outputs]
    mean = torch.stack(probabilities).mean(0).clamp(MIN_PROBABILITY, 1).log()
    divergences = [functional.kl_div(mean, each, reduction="batchmean") for each in probabilities]
    return functional.cross_entropy(outputs[0], labels) + weight * torch.stack(divergences).mean()
