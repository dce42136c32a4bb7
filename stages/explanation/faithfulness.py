"""Measures of whether a map shows what the network uses: it is tested on changed images.

Each map makes a claim about a score of the network in [0, 1], see `claimed_scores`. If the claim is
true, the score falls when the places that the map highlights are removed, and rises when they are
shown. Images are ``[n, H, W, 3]`` with values in [0, 255], maps ``[n, H, W]`` in [0, 1].

- deletion and insertion: area under the score while pixels are replaced, those with the highest
  values first (Petsiuk et al., RISE, BMVC 2018).
- drop and increase: loss of score, and whether it rises, if the image is shown through the map
  (Chattopadhay et al., Grad-CAM++, WACV 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Numbers = NDArray[np.floating[Any]]
Judge = Callable[[Tensor], Tensor]
"""Maps images to the scores, shape ``(n,)``, of the claims about them."""

MEASURES = ("deletion", "insertion", "drop", "increase")
"""Better if lower, higher, lower, higher."""

BLUR = 1 / 16
"""Standard deviation of the blur that insertion starts from, relative to the side of the image."""


def claimed_scores(method: str, logits: Tensor, explained: Tensor, asked: Tensor) -> Tensor:
    """The score that maps of a method make a claim about, in [0, 1].

    With ``p`` the softmax of the logits:

    - ``grad-cam``, "Why P?": ``p_P``.
    - ``counterfactual-cam``, "What if not P?": ``1 - p_P``, since the map shows what speaks
      against P.
    - ``contrast-cam``, "Why P, rather than Q?": ``p_P / (p_P + p_Q)``.

    Args:
        method: one of these names.
        logits: shape ``(n, N)``.
        explained: P of each row, shape ``(n,)``.
        asked: Q of each row for ``contrast-cam``, shape ``(n,)``.

    Raises:
        ValueError: maps of the method claim nothing about one score.
    """
    rows = torch.arange(len(logits), device=logits.device)
    if method == "contrast-cam":
        return (logits[rows, explained] - logits[rows, asked]).sigmoid()
    probability = logits.softmax(dim=1)[rows, explained]
    if method == "grad-cam":
        return probability
    if method == "counterfactual-cam":
        return 1 - probability
    raise ValueError(f"method {method}: expected grad-cam, counterfactual-cam or contrast-cam")


def pixel_ranks(maps: Numbers, seeds: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rank of each pixel by its value, 0 for the highest; equal values in random order.

    Without it the many pixels that are 0 after the ReLU would be ranked from the top left.

    Args:
        maps: shape ``(n, H, W)``.
        seeds: one for each map, so that its ranks do not depend on the other maps.
    """
    n_rows, height, width = maps.shape
    ranks = np.empty((n_rows, height * width), np.int64)
    for row, (values, seed) in enumerate(zip(maps.reshape(n_rows, -1), seeds, strict=True)):
        ties = np.random.default_rng(int(seed)).permutation(len(values))
        ranks[row, np.lexsort((ties, -values))] = np.arange(len(values))
    return ranks.reshape(maps.shape)


def replaced_scores(
    judge: Judge, start: Tensor, end: Tensor, ranks: NDArray[np.int64], n_steps: int
) -> NDArray[np.float64]:
    """The scores while the pixels of one image are replaced by those of another.

    Args:
        judge: scores of images.
        start: the images at first, ``[n, H, W, 3]``.
        end: the images at last.
        ranks: order in which pixels are replaced, ``[n, H, W]``, 0 first.
        n_steps: K; step k has replaced ``round(k / K)`` of the pixels.

    Returns:
        Shape ``(n, K + 1)``.
    """
    order = torch.from_numpy(ranks).to(start.device)[..., None]
    n_pixels = ranks[0].size
    columns = []
    for step in range(n_steps + 1):
        mixed = torch.where(order < round(step * n_pixels / n_steps), end, start)
        columns.append(judge(mixed))
    return torch.stack(columns, dim=1).double().cpu().numpy()


def area(scores: Numbers) -> Numbers:
    """Area under scores ``(n, K + 1)`` at even steps from 0 to 1, by the trapezoidal rule."""
    n_steps = scores.shape[1] - 1
    found: Numbers = (scores.sum(axis=1) - (scores[:, 0] + scores[:, -1]) / 2) / n_steps
    return found


def drop_and_increase(full: Numbers, masked: Numbers) -> tuple[Numbers, Numbers]:
    """Relative loss of score, ``max(0, Y - O) / Y``, and whether it rises, ``Y < O``.

    Args:
        full: Y, scores of the images.
        masked: O, scores of the images shown through the map.

    Returns:
        The drop in [0, 1], 0 where Y is 0, and the increase as 0 or 1.
    """
    loss = np.maximum(full - masked, 0)
    drop = np.divide(loss, full, out=np.zeros_like(loss), where=full > 0)
    return drop, (masked > full).astype(loss.dtype)


def measured(
    judge: Judge,
    images: Tensor,
    mean: Tensor,
    maps: Numbers,
    seeds: NDArray[np.int64],
    n_steps: int,
) -> dict[str, Numbers]:
    """Each of `MEASURES` for each row, and ``score``, that of the unchanged image.

    Deletion replaces pixels by the mean of the network's normalisation, which its input has as 0.
    Insertion starts from a blurred image. Drop and increase show the product of map and image,
    ``map * image + (1 - map) * mean``.

    Args:
        judge: scores of images.
        images: float32, shape ``(n, H, W, 3)``.
        mean: mean pixel, shape ``(3,)``.
        maps: shape ``(n, H, W)``, in [0, 1].
        seeds: see `pixel_ranks`.
        n_steps: steps of deletion and insertion.
    """
    ranks = pixel_ranks(maps, seeds)
    plain = mean.expand_as(images)
    deletion = replaced_scores(judge, images, plain, ranks, n_steps)
    insertion = replaced_scores(judge, blurred(images), images, ranks, n_steps)
    weight = torch.from_numpy(maps).to(images)[..., None]
    masked = judge(weight * images + (1 - weight) * plain).double().cpu().numpy()
    drop, increase = drop_and_increase(deletion[:, 0], masked)
    areas = {"deletion": area(deletion), "insertion": area(insertion)}
    return {"score": deletion[:, 0], **areas, "drop": drop, "increase": increase}


def blurred(images: Tensor) -> Tensor:
    """Images under a Gaussian blur; edges are repeated."""
    sigma = BLUR * max(images.shape[1:3])
    values = ndimage.gaussian_filter(images.cpu().numpy(), (0, sigma, sigma, 0), mode="nearest")
    return torch.from_numpy(values).to(images)


def random_maps(seeds: NDArray[np.int64], grid: tuple[int, int]) -> NDArray[np.float32]:
    """A control: maps of uniform noise, of the size of the layer, ``(n, h, w)``."""
    return np.stack([np.random.default_rng(int(seed)).random(grid, np.float32) for seed in seeds])
