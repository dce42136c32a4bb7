"""Intervals by the Poisson bootstrap over images: one weight an image, the same in every cell.

A resample gives every source image a weight of Poisson(1), as drawing with replacement does when
there are many (Hanley & MacGibbon 2006; Chamandy et al. 2012). The weights of an image come from
the seed and the image alone, so rows may be resampled shard by shard, and the sums added: image i
weighs the same in fog/3 and in snow/1, and for every predictor, which pairs them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from stages.metrics.sums import CalibrationSums, JudgedRows

CONFIDENCE_LEVEL = 0.95

MIN_RESAMPLES = 100
"""Below this no interval is given: the ends of 20 are two single resamples, and mislead."""

BLOCK_IMAGES = 1024
"""Images whose weights are drawn together, and rows that are resampled at once."""

_BLOCKS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Resampling:
    """How often to resample, and from which seed; under `MIN_RESAMPLES` there are no intervals."""

    n_resamples: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_resamples < 0 or self.seed < 0:
            raise ValueError(
                f"bootstrap: expected resamples and a seed of 0 or more, found "
                f"{self.n_resamples} and {self.seed}"
            )

    def weights(self, images: NDArray[np.int64]) -> NDArray[np.uint8]:
        """How often each image is in each resample, shape ``(len(images), n_resamples)``."""
        weights = np.empty((len(images), self.n_resamples), np.uint8)
        blocks = images // BLOCK_IMAGES
        for block in np.unique(blocks):
            rows = np.flatnonzero(blocks == block)
            drawn = _block_weights(self.n_resamples, self.seed, int(block))
            weights[rows] = drawn[images[rows] % BLOCK_IMAGES]
        return weights


@lru_cache(maxsize=_BLOCKS_KEPT)  # CIFAR-10-C has the same ten blocks in each of its 95 cells
def _block_weights(n_resamples: int, seed: int, block: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([seed, block])
    # Poisson(1) reaches 256 with a probability of 1e-507.
    return rng.poisson(1.0, (BLOCK_IMAGES, n_resamples)).astype(np.uint8)


def resample(judged: JudgedRows, weights: NDArray[np.uint8]) -> CalibrationSums:
    """The sums of the weighted rows of each resample.

    A matrix product in float64: exact where the columns are counts.

    Args:
        judged: rows under a predictor.
        weights: of those rows, shape ``(n, n_resamples)``.

    Returns:
        Sums with an axis of resamples, ``columns`` of shape ``(n_resamples, 3 * n_bins + 6)``.
    """
    columns = torch.from_numpy(judged.columns)
    totals = torch.zeros(weights.shape[1], columns.shape[1], dtype=torch.float64)
    for start in range(0, len(weights), BLOCK_IMAGES):
        rows = slice(start, start + BLOCK_IMAGES)
        totals += torch.from_numpy(weights[rows]).to(torch.float64).T @ columns[rows]
    return CalibrationSums(judged.n_classes, totals.numpy())


def interval(value: float, resampled: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of a value: the spread of the resampled ones, laid around it.

    Resampling adds noise to every confidence bin, which lifts each resampled calibration error; so
    the percentiles are those of the deviations from the resamples' own mean. For what is linear in
    the rows, such as accuracy, that is the percentile interval. NaN where fewer than
    `MIN_RESAMPLES` of them are finite.
    """
    finite = resampled[np.isfinite(resampled)]
    if finite.size < MIN_RESAMPLES:
        return float("nan"), float("nan")
    tail = 50 * (1 - CONFIDENCE_LEVEL)
    low, high = value + np.percentile(finite - finite.mean(), [tail, 100 - tail])
    return float(low), float(high)
