"""Randomised layers, and how similar maps are, compared with scipy and scikit-image."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

from stages.explanation.sanity import (
    cascade,
    layers_with_weights,
    randomised,
    rank_correlations,
    structural_similarities,
)

RNG = np.random.default_rng(0)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 5, 3)),
        nn.Flatten(), nn.Linear(5, 2),
    )  # fmt: skip


def weights_of(net):
    return {name: values.flatten() for name, values in net.named_parameters()}


def test_the_last_layers_are_permuted_and_the_first_ones_kept():
    net = network()
    changed = weights_of(randomised(net, 2, seed=0))

    assert layers_with_weights(net) == ["0", "1", "3.0", "5"]
    for name, before in weights_of(net).items():
        is_last = name.startswith(("3.0", "5"))
        assert torch.equal(before.sort().values, changed[name].sort().values)
        assert is_last != torch.equal(before, changed[name]) or len(before) == 2


def test_the_cascade_keeps_what_it_has_randomised():
    net = network()
    one, all_layers = (weights_of(randomised(net, n, seed=5)) for n in (1, 4))

    assert torch.equal(one["5.weight"], all_layers["5.weight"])


def test_randomising_does_not_change_the_network_itself():
    net = network()
    before = {name: values.clone() for name, values in weights_of(net).items()}
    randomised(net, 4, seed=0)

    assert all(torch.equal(values, before[name]) for name, values in weights_of(net).items())


@pytest.mark.parametrize(("n", "expected"), [(1, [1]), (3, [1, 2, 3]), (62, [1, 16, 31, 47, 62])])
def test_the_cascade_goes_from_the_last_layer_to_all(n, expected):
    assert cascade(n) == expected


@pytest.mark.parametrize("shape", [(4, 4), (7, 3), (1, 5)])
def test_rank_correlations_are_those_of_scipy(shape):
    maps, others = np.round(RNG.random((2, 6, *shape)), 1)  # with ties
    expected = [spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(maps, others, strict=True)]

    assert rank_correlations(maps, others) == pytest.approx(expected, nan_ok=True)


def test_a_constant_map_has_no_rank_correlation():
    maps = RNG.random((2, 4, 4))
    others = np.stack([np.zeros((4, 4)), maps[1]])

    assert rank_correlations(maps, others) == pytest.approx([np.nan, 1.0], nan_ok=True)


def test_structural_similarities_are_those_of_scikit_image():
    maps, others = RNG.random((2, 3, 16, 12))
    expected = [
        structural_similarity(a, b, data_range=1) for a, b in zip(maps, others, strict=True)
    ]

    assert structural_similarities(maps, others).tolist() == expected
    assert structural_similarities(maps, maps) == pytest.approx(1)


@pytest.mark.parametrize(("side", "is_defined"), [(8, True), (4, True), (3, True), (2, False)])
def test_small_images_have_smaller_windows(side, is_defined):
    maps = RNG.random((1, side, side))

    assert np.isfinite(structural_similarities(maps, maps)).all() == is_defined
