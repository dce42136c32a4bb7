"""The sanity check of maps: they must change when the layers of the network are randomised.

A method whose maps stay the same shows the image, for example its edges, and not the network
(Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from skimage.metrics import structural_similarity
from torch import nn

Numbers = NDArray[np.floating[Any]]

WINDOW = 7
"""Side of the windows of SSIM in pixels, that of scikit-image; smaller for smaller images."""


def layers_with_weights(network: nn.Module) -> list[str]:
    """Names of the modules that have parameters of their own, in the order of definition."""
    return [name for name, module in network.named_modules() if module._parameters]


def randomised(network: nn.Module, n_layers: int, seed: int) -> nn.Module:
    """A copy of a network in which the weights of its last layers are permuted at random.

    Permuted weights keep their mean and spread, so that activations keep their scale. A layer gets
    the same permutation for each ``n_layers``: the cascade randomises one layer after the other.

    Args:
        network: not modified.
        n_layers: number of layers, the last ones by definition.
        seed: seed of the permutations.
    """
    changed = copy.deepcopy(network)
    names = layers_with_weights(changed)
    for at, name in list(enumerate(names))[len(names) - n_layers :]:
        generator = torch.Generator().manual_seed(1000 * seed + at)
        for weights in changed.get_submodule(name).parameters(recurse=False):
            order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
            weights.data = weights.data.flatten()[order].reshape(weights.shape)
    return changed


def cascade(n_layers: int) -> list[int]:
    """How many of the last layers are randomised: one, a quarter, half, three quarters, all.

    >>> cascade(21), cascade(2)
    ([1, 6, 11, 16, 21], [1, 2])
    """
    parts = [1, *(math.ceil(n_layers * part / 4) for part in (1, 2, 3, 4))]
    return sorted({min(part, n_layers) for part in parts})


def rank_correlations(maps: Numbers, others: Numbers) -> NDArray[np.float64]:
    """Spearman's rank correlation of each pair of maps ``(n, h, w)``; NaN if one is constant."""
    flat = [rankdata(each.reshape(len(each), -1), axis=1) for each in (maps, others)]
    first, second = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in flat)
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    product = (first * second).sum(axis=1)
    found: NDArray[np.float64] = np.full(len(maps), np.nan)
    np.divide(product, scale, out=found, where=scale > 0)
    return found


def structural_similarities(maps: Numbers, others: Numbers) -> NDArray[np.float64]:
    """SSIM of each pair of maps ``(n, H, W)`` in [0, 1]; NaN for images below 3 x 3 pixels."""
    side = min(WINDOW, *maps.shape[1:])
    window = side - 1 + side % 2
    if window < 3:
        return np.full(len(maps), np.nan)
    pairs = zip(maps, others, strict=True)
    found = [structural_similarity(a, b, win_size=window, data_range=1.0) for a, b in pairs]
    return np.array(found, np.float64)
