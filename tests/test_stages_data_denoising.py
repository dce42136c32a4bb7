"""Filters give what their library gives, and NLM what its definition gives, in a slow loop."""

from itertools import product

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.restoration import denoise_tv_chambolle

from stages.data.denoising import FILTERS, denoising_of
from stages.errors import InputError

Image = NDArray[np.uint8]


def noisy(*shape: int) -> Image:
    """Two halves of different brightness, with noise."""
    steps = np.where(np.arange(shape[1]) < shape[1] // 2, 60, 170)[:, None, None]
    noise = np.random.default_rng(0).normal(0, 15, (*shape, 3))
    return np.clip(steps + noise, 0, 255).astype(np.uint8)


def slow_nlm(values: Image, h: float, template: int, search: int) -> NDArray[np.float64]:
    """Non-local means of ``[H, W, C]``, one pixel and one weight at a time (Buades et al. 2011).

    The distance is that of OpenCV: the mean over the window and the channels, without a correction
    for the noise.
    """
    reach, half = search // 2, template // 2
    border = reach + half
    padded = cv2.copyMakeBorder(values, *[border] * 4, cv2.BORDER_REFLECT_101).astype(float)
    padded = padded.reshape(*padded.shape[:2], -1)

    def window(row: int, column: int) -> NDArray[np.float64]:
        return padded[row - half : row + half + 1, column - half : column + half + 1]

    found = np.empty((*values.shape[:2], padded.shape[2]))
    for row, column in product(*map(range, values.shape[:2])):
        here, total, weights = (row + border, column + border), 0.0, 0.0
        for down, right in product(range(-reach, reach + 1), repeat=2):
            there = (here[0] + down, here[1] + right)
            weight = np.exp(-((window(*here) - window(*there)) ** 2).mean() / h**2)
            total, weights = total + weight * padded[there], weights + weight
        found[row, column] = total / weights
    return found


@pytest.mark.parametrize("colours", ["colour", "grey"])
def test_nlm_is_its_definition_on_lightness_and_colour(colours: str) -> None:
    image = noisy(1, 9, 8)[0]
    if colours == "grey":
        image = np.repeat(image[..., :1], 3, axis=2)
    lab = cv2.cvtColor(image, cv2.COLOR_LRGB2Lab)
    parts = [slow_nlm(lab[..., :1], 12, 3, 5), slow_nlm(lab[..., 1:], 6, 3, 5)]
    expected = cv2.cvtColor(np.rint(np.dstack(parts)).astype(np.uint8), cv2.COLOR_Lab2LRGB)
    found = denoising_of("nlm:12,6,3,5").of(image[None])[0]
    assert (
        np.abs(found.astype(int) - expected).max() <= 4
    )  # OpenCV rounds weights; one level of Lab
    assert np.abs(found.astype(int) - image).max() > 10
    if colours == "grey":
        assert np.ptp(found.astype(int), axis=2).max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (5, 9), (1, 1)])
def test_every_filter_is_that_of_its_library(size: tuple[int, int]) -> None:
    images = noisy(2, *size)
    bgr = np.ascontiguousarray(images[1][..., ::-1])
    expected = {
        "nlm": cv2.fastNlMeansDenoisingColored(bgr, None, 10, 10, 7, 21)[..., ::-1],
        "nlm:3": cv2.fastNlMeansDenoisingColored(bgr, None, 3, 3, 7, 21)[..., ::-1],
        "median:5": cv2.medianBlur(images[1], 5),
        "gaussian": cv2.GaussianBlur(images[1], (0, 0), 1.0),
        "bilateral:7,40": cv2.bilateralFilter(images[1], 7, 40, 3),
        "tv": np.rint(255 * denoise_tv_chambolle(images[1] / 255, 0.1, channel_axis=-1)),
    }
    assert {word.partition(":")[0] for word in expected} == FILTERS.keys()
    for word, image in expected.items():
        np.testing.assert_array_equal(denoising_of(word).of(images)[1], image, err_msg=word)


def test_the_default_of_nlm_is_that_of_the_tutorial() -> None:
    assert denoising_of("nlm") == denoising_of("nlm:10,10,7,21")
    assert (denoising_of("nlm").label, denoising_of("nlm:3").label) == ("nlm", "nlm-3-3-7-21")
    for name in FILTERS:
        assert denoising_of(denoising_of(name).word) == denoising_of(name)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("wiener", "no filter 'wiener': expected one of nlm, median,"),
        ("nlm:", "expected a number above 0 and up to 1,000 as h "),
        ("nlm:10,x", "expected a number above 0 and up to 1,000 as h_color "),
        ("nlm:10,10,6", r"an odd number of pixels up to 99 as template \(nlm:H,H_COLOR,.*'6'"),
        ("median:101", "expected an odd number of pixels up to 99 as window"),
        ("gaussian:nan", "expected a number above 0"),
        ("gaussian:1,2", "expected at most 1 numbers, gaussian:SIGMA; found 2"),
    ],
)
def test_a_wrong_word_says_what_is_expected(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        denoising_of(word)
