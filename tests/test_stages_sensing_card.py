"""A normalisation that is not meant for pixels in [0, 1] is refused."""

import dataclasses

import pytest
from torch import nn

from stages.errors import InputError
from stages.sensing.card import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    ModelCard,
    Normalisation,
    check_normalisation,
)
from stages.sensing.model import describe

IMAGENET_STD = (0.229, 0.224, 0.225)

NOT_OF_UNIT_PIXELS = [
    pytest.param(
        (123.675, 116.28, 103.53),
        IMAGENET_STD,
        "--mean 123.675,116.28,103.53: expected values for pixels in [0, 1], found some above 1; "
        "divided by 255 they are --mean 0.485,0.456,0.406 (divide both --mean and --std)",
        id="mean of 0-255",
    ),
    pytest.param(
        (0.485, 0.456, 0.406),
        (58.395, 57.12, 57.375),
        "--std 58.395,57.12,57.375: expected values for pixels in [0, 1], found some above 1; "
        "divided by 255 they are --std 0.229,0.224,0.225 (divide both --mean and --std)",
        id="std of 0-255",
    ),
    pytest.param(
        (127.5, 127.5, 127.5), (127.5, 127.5, 127.5), "--mean 0.5,0.5,0.5 (", id="both of 0-255"
    ),
    pytest.param(
        (103.939, 116.779, 123.68), (1, 1, 1), "--mean 0.4076,0.458,0.485 (", id="only centred"
    ),
    pytest.param((0.5, 0.5, 1.01), None, "--mean 0.5,0.5,1.01: expected", id="one channel"),
    pytest.param((-0.1, 0.5, 0.5), None, "0 or more and at most 1", id="negative mean"),
    pytest.param(None, (0.2, 0, 0.2), "more than 0 and at most 1", id="std of zero"),
    pytest.param(None, (0.2, -0.2, 0.2), "more than 0 and at most 1", id="negative std"),
    pytest.param(None, (0.2, float("nan"), 0.2), "three finite numbers", id="NaN"),
    pytest.param((float("inf"),) * 3, None, "three finite numbers", id="infinite"),
    pytest.param((0.5, 0.5), None, "three finite numbers", id="two numbers"),
    pytest.param((0.5,) * 4, None, "three finite numbers", id="four numbers"),
]

OF_UNIT_PIXELS = [
    pytest.param((0.485, 0.456, 0.406), IMAGENET_STD, id="ImageNet"),
    pytest.param(CIFAR10_MEAN, CIFAR10_STD, id="CIFAR-10"),
    pytest.param((0.5,) * 3, (0.5,) * 3, id="pixels in [-1, 1]"),
    pytest.param((0, 0, 0), (1 / 255,) * 3, id="pixels in 0-255"),
    pytest.param((0, 0, 0), (1, 1, 1), id="none"),
    pytest.param((1.0,) * 3, (1.0,) * 3, id="the largest"),
    pytest.param(None, None, id="not given"),
]


@pytest.mark.parametrize(("mean", "std", "said"), NOT_OF_UNIT_PIXELS)
def test_a_normalisation_in_other_units_is_refused_with_the_division(
    mean: tuple[float, float, float], std: tuple[float, float, float], said: str
) -> None:
    with pytest.raises(InputError) as refused:
        check_normalisation(mean, std)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("mean", "std"), OF_UNIT_PIXELS)
def test_a_normalisation_of_pixels_in_the_unit_interval_is_taken(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    check_normalisation(mean, std)


def test_a_network_is_not_described_with_a_mean_of_0_to_255() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    facts = {"name": "n", "network_name": "cnn2", "class_names": (), "family": "x"}
    pixels = Normalisation((123, 116, 103), CIFAR10_STD)
    with pytest.raises(InputError, match="--mean 123,116,103: expected values for pixels"):
        describe(
            network,
            image_size=4,
            normalisation=pixels,
            **facts,
        )  # type: ignore[arg-type]  # plain facts


def test_the_card_of_an_older_store_can_still_be_read() -> None:
    card = ModelCard(
        "old", "cnn2", 2, (), 32, CIFAR10_MEAN, CIFAR10_STD, "fc", 4, "x", None, "0" * 64
    )
    old = {**card.to_dict(), "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    read = ModelCard.from_dict(old)
    assert read.mean == (123.675, 116.28, 103.53)
    assert dataclasses.replace(read, M=1.0).std == (58.395, 57.12, 57.375)


@pytest.mark.parametrize("key", ["mean", "std", "M"])
def test_a_card_with_an_infinite_number_is_refused(key: str) -> None:
    card = ModelCard("net", "cnn2", 2, (), 32, CIFAR10_MEAN, CIFAR10_STD, "fc", 4, "x", 1.0, "0")
    edited = {**card.to_dict(), key: "inf" if key == "M" else ["inf", "inf", "inf"]}
    with pytest.raises(InputError, match=rf"model card: {key}.*finite number"):
        ModelCard.from_dict(edited)
