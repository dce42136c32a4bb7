"""Measures of faithfulness, compared with slow loops and with pytorch-grad-cam."""

import numpy as np
import pytest
import torch
from torch import nn

from stages.explanation.faithfulness import (
    area,
    blurred,
    claimed_scores,
    drop_and_increase,
    measured,
    pixel_ranks,
    random_maps,
    replaced_scores,
)
from stages.sensing.model import normalised
from stages.sensing.torchvision_ops import import_torchvision

N_ROWS, SIDE, N_CLASSES, N_STEPS = 5, 9, 4, 7
MEAN, STD = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 60.0, 50.0])


class Net(nn.Module):
    """A network of images in [0, 255] whose input is normalised, as in a sensing model."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
        )

    def forward(self, images):
        return self.layers(normalised(images, MEAN, 1 / STD))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    net = Net()
    for weights in net.parameters():
        weights.data *= 3  # confident enough that scores differ
    return net.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(0, 256, (N_ROWS, SIDE, SIDE, 3)).astype(np.float32))


@pytest.fixture(scope="module")
def maps():
    values = np.random.default_rng(2).random((N_ROWS, SIDE, SIDE)).astype(np.float32)
    return np.where(values < 0.4, 0, values)  # ties at zero


@pytest.fixture(scope="module")
def judge(net):
    return lambda images: net(images).softmax(dim=1)[:, 1]


SEEDS = np.arange(N_ROWS) + 10


def test_the_score_of_each_method_is_that_of_its_question():
    logits = torch.randn(6, N_CLASSES, generator=torch.Generator().manual_seed(0)).double()
    explained, asked = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 2, 3, 0, 2, 3])
    found = {
        method: claimed_scores(method, logits, explained, asked).tolist()
        for method in ("grad-cam", "counterfactual-cam", "contrast-cam")
    }

    for row, (p, q) in enumerate(zip(explained.tolist(), asked.tolist(), strict=True)):
        exponents = np.exp(logits[row].numpy())
        probability = exponents / exponents.sum()
        assert found["grad-cam"][row] == pytest.approx(probability[p])
        assert found["counterfactual-cam"][row] == pytest.approx(1 - probability[p])
        pair = probability[p] / (probability[p] + probability[q])
        assert found["contrast-cam"][row] == pytest.approx(pair)


def test_a_map_that_claims_nothing_about_a_score_is_refused():
    with pytest.raises(ValueError, match="voice"):
        claimed_scores("voice", torch.zeros(1, 2), torch.zeros(1).long(), torch.zeros(1).long())


def test_pixels_are_ranked_from_the_highest_value(maps):
    ranks = pixel_ranks(maps, SEEDS)

    for values, places in zip(maps, ranks, strict=True):
        in_order = values.ravel()[np.argsort(places.ravel())]
        assert sorted(places.ravel()) == list(range(SIDE * SIDE))
        assert (np.diff(in_order) <= 0).all()


def test_equal_values_are_ranked_at_random_and_by_their_own_seed(maps):
    nothing = np.zeros((2, SIDE, SIDE))
    ranks = pixel_ranks(nothing, np.array([4, 5]))

    assert not np.array_equal(ranks[0].ravel(), np.arange(SIDE * SIDE))
    assert not np.array_equal(ranks[0], ranks[1])
    assert np.array_equal(pixel_ranks(nothing[:1], np.array([5]))[0], ranks[1])


def test_scores_equal_those_of_a_loop_over_images_and_pixels(judge, images, maps):
    ranks = pixel_ranks(maps, SEEDS)
    plain = MEAN.expand_as(images)

    found = replaced_scores(judge, images, plain, ranks, N_STEPS)

    for row in range(N_ROWS):
        by_value = sorted(np.ndindex(SIDE, SIDE), key=lambda place: ranks[row][place])
        for step in range(N_STEPS + 1):
            image = images[row].clone()
            for y, x in by_value[: round(step * SIDE * SIDE / N_STEPS)]:
                image[y, x] = MEAN
            assert found[row, step] == pytest.approx(float(judge(image[None])), abs=1e-6)


def test_the_area_is_that_of_trapezia():
    scores = np.array([[1.0, 0.5, 0.5, 0.0], [0.2, 0.2, 0.2, 0.2]])

    assert area(scores).tolist() == pytest.approx([(0.75 + 0.5 + 0.25) / 3, 0.2])


def test_drop_and_increase_equal_those_of_pytorch_grad_cam(net, judge, images, maps):
    import_torchvision()
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    targets = [ClassifierOutputSoftmaxTarget(1)] * N_ROWS
    pixels = normalised(images, MEAN, 1 / STD)
    expected_drop = DropInConfidence()(pixels, maps, targets, net.layers)  # not yet relative
    expected_increase = IncreaseInConfidence()(pixels, maps, targets, net.layers)

    found = measured(judge, images, MEAN, maps, SEEDS, N_STEPS)

    assert 0 < expected_increase.mean() < 1
    assert found["increase"].tolist() == expected_increase.tolist()
    assert found["drop"] == pytest.approx(expected_drop / found["score"], abs=1e-5)


def test_a_score_of_zero_cannot_drop():
    drop, increase = drop_and_increase(np.array([0.0, 0.5, 0.5]), np.array([0.2, 0.1, 0.5]))

    assert drop.tolist() == pytest.approx([0, 0.8, 0])
    assert increase.tolist() == [1, 0, 0]


def test_the_measures_of_a_row_do_not_depend_on_the_others(judge, images, maps):
    together = measured(judge, images, MEAN, maps, SEEDS, N_STEPS)
    alone = measured(judge, images[2:3], MEAN, maps[2:3], SEEDS[2:3], N_STEPS)

    for name, values in together.items():
        assert values[2] == pytest.approx(alone[name][0], abs=1e-6)


def test_a_map_of_the_only_place_that_counts_is_more_faithful_than_noise():
    """The score is the brightness of one corner."""

    def judge(images):
        return images[:, :3, :3].mean(dim=(1, 2, 3)) / 255

    images = torch.full((1, 12, 12, 3), 250.0)
    true = np.zeros((1, 12, 12), np.float32)
    true[:, :3, :3] = 1
    noise = random_maps(np.array([0]), (12, 12))
    found, control = (
        measured(judge, images, torch.full((3,), 5.0), each, np.array([0]), 12)
        for each in (true, noise)
    )

    assert found["deletion"] < 0.1 < 0.3 < control["deletion"]
    assert found["drop"] < 0.01 < 0.3 < control["drop"]


def test_a_blurred_image_keeps_its_mean_and_loses_its_contrast():
    noise = torch.from_numpy(np.random.default_rng(0).random((2, 32, 32, 3), np.float32))
    found = blurred(noise)

    assert found.shape == noise.shape
    assert abs(float(found.mean() / noise.mean()) - 1) < 0.02
    assert float(found.std() / noise.std()) < 0.3


def test_blur_does_not_mix_images_or_channels():
    images = torch.zeros(2, 16, 16, 3)
    images[0, ..., 1] = 200

    assert torch.allclose(blurred(images), images, atol=1e-3)
