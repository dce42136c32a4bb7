"""ImageNet-C's constants at 224 pixels, against the package imagecorruptions and slow versions.

The package differs from ImageNet-C's own code in two corruptions: its elastic_transform has other
constants and no affine map, and its frost enlarges the photographs and uses a sixth one. Those two
are compared with slow versions here.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import skimage.filters
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from stages.data.corruptions.draws import generators_of
from stages.data.corruptions.frost import frost_photographs
from stages.data.corruptions.levels import IMAGENETC
from stages.data.corruptions.names import CORRUPTIONS
from stages.data.corruptions.severities import corrupt
from stages.data.resize import Resize

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("imagecorruptions") is None, reason="no package imagecorruptions"
)
SEED = 3
TOLERANCE = {
    "brightness": 0,
    "contrast": 0,
    "defocus_blur": 0,
    "fog": 1,  # the package computes in float32
    "gaussian_blur": 0,
    "gaussian_noise": 0,
    "jpeg_compression": 0,
    "motion_blur": 1,  # ImageMagick rounds, the package truncates
    "pixelate": 0,
    "saturate": 0,
    "shot_noise": 0,
    "snow": 2,  # its flakes are bytes before they are smeared, those of the package are not
    "spatter": 1,  # float32
    "speckle_noise": 0,
    "zoom_blur": 1,  # float32
}
"""Largest difference in grey levels from the package."""


@pytest.fixture(scope="module")
def photograph() -> NDArray[np.uint8]:
    image = Image.fromarray(skimage.data.coffee())
    return Resize((224, 224), 256).pixels(image)


@pytest.fixture(scope="module")
def package() -> Iterator[ModuleType]:
    """The package without numba, which compiles one of its loops."""
    numba = ModuleType("numba")
    numba.njit = lambda: lambda function: function  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setitem(sys.modules, "numba", numba)
        yield importlib.import_module("imagecorruptions.corruptions")


@pytest.fixture
def numbers_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Generator]:
    """Let numpy's global functions draw from the generator of an image, as ours do."""

    def draw(name: str, severity: int) -> Generator:
        (generator,) = generators_of(name, severity, np.array([0]), SEED)

        def normal(loc: float = 0, scale: float = 1, size: Any = None) -> Any:
            return loc + scale * generator.standard_normal(size)

        def uniform(low: float, high: float, size: Any = None) -> Any:
            return low + (high - low) * generator.random(size)

        monkeypatch.setattr(np.random, "normal", normal)
        monkeypatch.setattr(np.random, "uniform", uniform)
        monkeypatch.setattr(np.random, "poisson", generator.poisson)
        return generator

    return draw


def ours(image: NDArray[np.uint8], name: str, severity: int) -> NDArray[np.int64]:
    rows = np.array([0])
    found = corrupt(image[None], name, severity, rows, SEED, collection="imagenetc")[0]
    return found.astype(int)


@pytest.mark.parametrize("name", TOLERANCE)
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_corruption_equals_that_of_imagecorruptions(
    photograph: NDArray[np.uint8],
    package: ModuleType,
    numbers_of: Callable[[str, int], Generator],
    name: str,
    severity: int,
) -> None:
    found = ours(photograph, name, severity)
    numbers_of(name, severity)
    theirs = getattr(package, name)(Image.fromarray(photograph), severity)
    assert np.abs(found - np.asarray(theirs).astype(np.uint8)).max() <= TOLERANCE[name]


@pytest.mark.parametrize("severity", [1, 4, 5])
def test_glass_blur_equals_a_loop_over_pixels(
    photograph: NDArray[np.uint8],
    package: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    severity: int,
) -> None:
    image = np.ascontiguousarray(photograph[80:144, 60:110])  # 64x50
    (generator,) = generators_of("glass_blur", severity, np.array([0]), SEED)
    _, n_passes, reach = (*IMAGENETC["glass_blur"].levels[severity - 1],)
    shape = (n_passes, 2, 64 - 2 * reach, 50 - 2 * reach)
    down, right = (reach - 1 - generator.integers(0, 2 * reach, shape)).swapaxes(0, 1)
    # The loop visits pixels from the last to the first, and wants (right, down).
    steps = iter(np.stack([right, down], -1)[:, ::-1, ::-1].reshape(-1, 2))
    monkeypatch.setattr(np.random, "seed", lambda _: None)
    monkeypatch.setattr(np.random, "randint", lambda *_, size: next(steps))
    slow = package.glass_blur(Image.fromarray(image), severity, seed=1).astype(np.uint8)
    np.testing.assert_array_equal(ours(image, "glass_blur", severity), slow)


@pytest.mark.parametrize("severity", [1, 2, 5])
def test_elastic_transform_equals_map_coordinates(
    photograph: NDArray[np.uint8], severity: int
) -> None:
    image = np.ascontiguousarray(photograph[80:144, 60:110])  # 64x50, with a centre of (25, 32)
    (generator,) = generators_of("elastic_transform", severity, np.array([0]), SEED)
    amplitude, sigma, jitter = IMAGENETC["elastic_transform"].levels[severity - 1]
    corners = np.float32([[41, 48], [41, 16], [9, 16]])
    moved = corners + np.float32(generator.random((3, 2)) * 2 * jitter - jitter)
    x = cv2.warpAffine(
        np.float32(image / 255.0),
        cv2.getAffineTransform(corners, moved),
        (50, 64),
        borderMode=cv2.BORDER_REFLECT_101,
    )
    noise = generator.random((2, 64, 50)) * 2 - 1
    dy, dx = (
        amplitude * skimage.filters.gaussian(each, sigma, mode="reflect", truncate=3)
        for each in noise
    )
    y, x_at = np.mgrid[:64, :50]
    channels = [
        ndimage.map_coordinates(x[..., c], (y + dy, x_at + dx), order=1, mode="reflect")
        for c in range(3)
    ]
    slow = np.uint8(np.clip(np.dstack(channels), 0, 1) * 255)
    assert np.abs(ours(image, "elastic_transform", severity) - slow).max() <= 1


def test_frost_is_a_crop_of_a_photograph_at_its_own_size() -> None:
    black = np.zeros((224, 224, 3), np.uint8)
    found = ours(black, "frost", 1).astype(np.uint8)
    assert any(
        cv2.matchTemplate(np.uint8(0.4 * each), found, cv2.TM_SQDIFF).min() < found.size
        for each in frost_photographs(1, (224, 224))
    )


def test_photographs_that_are_smaller_than_the_image_are_enlarged() -> None:
    assert min(min(each.shape[:2]) for each in frost_photographs(0.2, (32, 32))) < 300
    assert all(
        each.shape[0] > 300 and each.shape[1] > 250 for each in frost_photographs(0.2, (300, 250))
    )


def test_salt_and_pepper_are_as_frequent_as_in_imagenet_c() -> None:
    grey = np.full((224, 224, 3), 100, np.uint8)
    for severity, amount in enumerate((0.03, 0.06, 0.09, 0.17, 0.27), start=1):
        found = ours(grey, "impulse_noise", severity)
        assert [(found == 0).mean(), (found == 255).mean()] == pytest.approx(
            [amount / 2, amount / 2], abs=0.003
        )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_of_any_shape_are_corrupted_independently(name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 57, 3), np.uint8)
    rows = np.array([5, 2, 9])
    whole = corrupt(images, name, 5, rows, SEED, collection="imagenetc")
    alone = corrupt(images[1:2], name, 5, rows[1:2], SEED, collection="imagenetc")
    np.testing.assert_array_equal(alone, whole[1:2])
    assert (whole != images).any()
