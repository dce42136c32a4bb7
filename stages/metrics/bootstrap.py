"""Confidence intervals by the Poisson bootstrap over images, with one weight per image.

A resample gives every source image a weight of Poisson(1), which approximates drawing many images
with replacement (Hanley & MacGibbon 2006; Chamandy et al. 2012). The weights of an image depend
only on the seed and the image, so rows can be resampled shard by shard and the sums added. Image i
has the same weight in fog/3 and in snow/1, and for every predictor, so all comparisons are paired.
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
"""Fewest resamples for an interval: with 20, the ends would be two single resamples."""

BLOCK_IMAGES = 1024
"""Number of images whose weights are drawn together, and of rows that are resampled at once."""

_BLOCKS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Resampling:
    """Number of resamples and their seed; below `MIN_RESAMPLES` there are no intervals."""

    n_resamples: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_resamples < 0 or self.seed < 0:
            raise ValueError(
                f"bootstrap: expected resamples and a seed of 0 or more, found "
                f"{self.n_resamples} and {self.seed}"
            )

    def weights(self, images: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Number of times each image is drawn, shape ``(len(images), n_resamples)``."""
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
    """Sums over the weighted rows of each resample.

    A matrix product in float64, which is exact for columns that are counts.

    Args:
        judged: rows under a predictor.
        weights: weights of those rows, shape ``(n, n_resamples)``.

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
    """95 % interval of a value from its resamples.

    Resampling adds noise to every confidence bin, which raises each resampled calibration error.
    Therefore the percentiles are those of the deviations from the mean of the resamples, added to
    the value. For metrics that are linear in the rows, such as accuracy, this is the percentile
    interval. NaN if fewer than `MIN_RESAMPLES` resamples are finite.
    """
    finite = resampled[np.isfinite(resampled)]
    if finite.size < MIN_RESAMPLES:
        return float("nan"), float("nan")
    tail = 50 * (1 - CONFIDENCE_LEVEL)
    low, high = value + np.percentile(finite - finite.mean(), [tail, 100 - tail])
    return float(low), float(high)
