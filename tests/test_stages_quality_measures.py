"""PSNR, SSIM, MS-SSIM and VIF: definitions, against slow versions, and what they refuse."""

import numpy as np
import pytest
from quality_pairs import noisy, photograph

from stages.quality.iqa import _CHOICES
from stages.quality.measures import CHOICES, MEASURES, View, columns_of
from stages.quality.scoring import compared

IMAGE = photograph(0, (180, 190))


def score(name: str, reference: np.ndarray, distorted: np.ndarray) -> float:
    return MEASURES[name].compare(View(reference), View(distorted), None)


def test_psnr_is_worked_by_hand() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert score("psnr", black, grey) == pytest.approx(20 * np.log10(5))
    assert score("psnr", grey, grey) == float("inf")


def slow_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """The mean over all windows of 11 pixels that lie within the image."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            a, b = (each[top : top + 11, left : left + 11] for each in (first, second))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (
                (window * (a - mean_a) ** 2).sum(),
                (window * (b - mean_b) ** 2).sum(),
            )
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * both + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return float(np.mean(values))


def test_ssim_is_that_of_a_loop_over_windows() -> None:
    image = IMAGE[:24, :30]
    views = View(image), View(noisy(image, 3))
    expected = slow_ssim(*(each.luma for each in views))
    assert MEASURES["ssim"].compare(*views, None) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["psnr", "ssim", "ms-ssim", "vif"])
def test_more_noise_has_a_lower_score(name: str) -> None:
    values = [score(name, IMAGE, noisy(IMAGE, level)) for level in (1, 6)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", ["ssim", "ms-ssim", "vif"])
def test_equal_images_have_the_score_one(name: str) -> None:
    assert score(name, IMAGE, IMAGE) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("name", "least"), [("ssim", 11), ("ms-ssim", 176), ("vif", 41)])
def test_the_smallest_size_is_as_stated(name: str, least: int) -> None:
    image = IMAGE[:least, :least]
    assert np.isfinite(score(name, image, noisy(image, 1)))
    small = IMAGE[: least - 1, :least]
    with pytest.raises(ValueError, match=f"expected at least {least}x{least}"):
        score(name, small, small)


def test_a_measure_that_is_undefined_leaves_the_others() -> None:
    small = IMAGE[:30, :30]
    scores, reasons = compared(["psnr", "ms-ssim", "ssim"], View(small), View(small + 1), None)
    assert np.isfinite(scores).tolist() == [True, False, True]
    assert reasons == ["ms-ssim: 30x30 pixels, expected at least 176x176"]


def test_the_measures_of_the_option_are_those_that_exist() -> None:
    assert _CHOICES == CHOICES
    readings = ["paper_w1", "surprisal_w2", "plain_w2"]
    assert set(columns_of(CHOICES, readings)) == set(MEASURES)
