"""The function and constants of each corruption, at each of its severities."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from stages.data.corruptions import blur, cure, digital, noise, rotation, weather
from stages.data.corruptions.names import ROTATION, Collection
from stages.data.corruptions.pixels import SIDE, Images


@dataclass(frozen=True, slots=True)
class Corruption:
    """A function of a block of images and its constants at severities 1, 2, ..."""

    # ``...``: the functions share no signature beyond (images, generators where random, *level).
    function: Callable[..., Images]
    levels: tuple[tuple[Any, ...], ...]  # Any: floats, counts and flags
    is_random: bool = True


def _plain(function: Callable[..., Images], *levels: Any) -> Corruption:  # Any: as above
    """A corruption without random numbers; levels are single constants or tuples."""
    return Corruption(function, _as_tuples(levels), is_random=False)


def _random(function: Callable[..., Images], *levels: Any) -> Corruption:  # Any: as above
    """A corruption with random numbers."""
    return Corruption(function, _as_tuples(levels))


def _as_tuples(levels: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    return tuple(level if isinstance(level, tuple) else (level,) for level in levels)


# Hendrycks & Dietterich's constants for 32 pixels (hendrycks/robustness, make_cifar_c.py).
# Lengths given there as fractions of the image's side are given here in pixels.
CIFAR10C: Mapping[str, Corruption] = MappingProxyType(
    {
        "brightness": _plain(digital.brightness, 0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": _plain(digital.contrast, 0.75, 0.5, 0.4, 0.3, 0.15),
        "defocus_blur": _plain(
            blur.defocus_blur, (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)
        ),
        "elastic_transform": _random(
            digital.elastic_transform,
            (0, 0, 32 * 0.08),
            (32 * 0.05, 32 * 0.2, 32 * 0.07),
            (32 * 0.08, 32 * 0.06, 32 * 0.06),
            (32 * 0.1, 32 * 0.04, 32 * 0.05),
            (32 * 0.1, 32 * 0.03, 32 * 0.03),
        ),
        "fog": _random(weather.fog, (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "frost": _random(weather.frost, (1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        "gaussian_blur": _plain(blur.gaussian_blur, 0.4, 0.6, 0.7, 0.8, 1),
        "gaussian_noise": _random(noise.gaussian_noise, 0.04, 0.06, 0.08, 0.09, 0.1),
        "glass_blur": _random(blur.glass_blur, (0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)),
        "impulse_noise": _random(noise.impulse_noise, 0.01, 0.02, 0.03, 0.05, 0.07),
        "jpeg_compression": _plain(digital.jpeg_compression, 80, 65, 58, 50, 40),
        "motion_blur": _random(blur.motion_blur, (6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "pixelate": _plain(digital.pixelate, 0.95, 0.9, 0.85, 0.75, 0.65),
        "saturate": _plain(digital.saturate, (0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        "shot_noise": _random(noise.shot_noise, 500, 250, 100, 75, 50),
        "snow": _random(
            weather.snow,
            (0.1, 0.2, 1, 0.6, (8, 3), 0.95),
            (0.1, 0.2, 1, 0.5, (10, 4), 0.9),
            (0.15, 0.3, 1.75, 0.55, (10, 4), 0.9),
            (0.25, 0.3, 2.25, 0.6, (12, 6), 0.85),
            (0.3, 0.3, 1.25, 0.65, (14, 12), 0.8),
        ),
        "spatter": _random(
            weather.spatter,
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        "speckle_noise": _random(noise.speckle_noise, 0.06, 0.1, 0.12, 0.16, 0.2),
        "zoom_blur": _plain(blur.zoom_blur, 1.06, 1.11, 1.16, 1.21, 1.26),
    }
)

# Their constants for 64 pixels (make_tinyimagenet_c.py).
TINYIMAGENETC: Mapping[str, Corruption] = MappingProxyType(
    {
        "brightness": _plain(digital.brightness, 0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": _plain(digital.contrast, 0.4, 0.3, 0.2, 0.1, 0.05),
        "defocus_blur": _plain(
            blur.defocus_blur, (0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)
        ),
        "elastic_transform": _random(
            digital.elastic_transform,
            (0, 0, 64 * 0.08),
            (64 * 0.05, 64 * 0.3, 64 * 0.06),
            (64 * 0.1, 64 * 0.08, 64 * 0.06),
            (64 * 0.1, 64 * 0.03, 64 * 0.03),
            (64 * 0.16, 64 * 0.03, 64 * 0.02),
        ),
        "fog": _random(weather.fog, (0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        "frost": _random(
            weather.frost,
            (1, 0.3, 0.3),
            (0.9, 0.4, 0.3),
            (0.8, 0.45, 0.3),
            (0.75, 0.5, 0.3),
            (0.7, 0.55, 0.3),
        ),
        "gaussian_blur": _plain(blur.gaussian_blur, 0.5, 0.75, 1, 1.25, 1.5),
        "gaussian_noise": _random(noise.gaussian_noise, 0.04, 0.08, 0.12, 0.15, 0.18),
        "glass_blur": _random(
            blur.glass_blur, (0.1, 1, 1), (0.5, 1, 1), (0.6, 2, 1), (0.7, 1, 2), (0.9, 2, 2)
        ),
        "impulse_noise": _random(noise.impulse_noise, 0.01, 0.02, 0.05, 0.08, 0.14),
        "jpeg_compression": _plain(digital.jpeg_compression, 65, 58, 50, 40, 25),
        "motion_blur": _random(blur.motion_blur, (10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        "pixelate": _plain(digital.pixelate, 0.9, 0.8, 0.7, 0.6, 0.5),
        "saturate": _plain(digital.saturate, (0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        "shot_noise": _random(noise.shot_noise, 250, 100, 50, 30, 15),
        "snow": _random(
            weather.snow,
            (0.1, 0.2, 1, 0.6, (8, 3), 0.8),
            (0.1, 0.2, 1, 0.5, (10, 4), 0.8),
            (0.15, 0.3, 1.75, 0.55, (10, 4), 0.7),
            (0.25, 0.3, 2.25, 0.6, (12, 6), 0.65),
            (0.3, 0.3, 1.25, 0.65, (14, 12), 0.6),
        ),
        "spatter": _random(
            weather.spatter,
            (0.62, 0.1, 0.7, 0.7, 0.6, False),
            (0.65, 0.1, 0.8, 0.7, 0.6, False),
            (0.65, 0.3, 1, 0.69, 0.6, False),
            (0.65, 0.1, 0.7, 0.68, 0.6, True),
            (0.65, 0.1, 0.5, 0.67, 0.6, True),
        ),
        "speckle_noise": _random(noise.speckle_noise, 0.15, 0.2, 0.25, 0.3, 0.35),
        "zoom_blur": _plain(blur.zoom_blur, 1.06, 1.11, 1.16, 1.21, 1.26),
    }
)

# Their constants for 224 pixels (make_imagenet_c.py); lengths are in pixels whatever the size.
# 244 for elastic_transform is a slip of theirs that the released data contains.
IMAGENETC: Mapping[str, Corruption] = MappingProxyType(
    {
        "brightness": _plain(digital.brightness, 0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": _plain(digital.contrast, 0.4, 0.3, 0.2, 0.1, 0.05),
        "defocus_blur": _plain(
            blur.defocus_blur, (3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)
        ),
        "elastic_transform": _random(
            digital.elastic_transform,
            (244 * 2, 244 * 0.7, 244 * 0.1),
            (244 * 2, 244 * 0.08, 244 * 0.2),
            (244 * 0.05, 244 * 0.01, 244 * 0.02),
            (244 * 0.07, 244 * 0.01, 244 * 0.02),
            (244 * 0.12, 244 * 0.01, 244 * 0.02),
        ),
        "fog": _random(weather.fog, (1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "frost": _random(
            weather.frost, (1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)
        ),
        "gaussian_blur": _plain(blur.gaussian_blur, 1, 2, 3, 4, 6),
        "gaussian_noise": _random(noise.gaussian_noise, 0.08, 0.12, 0.18, 0.26, 0.38),
        "glass_blur": _random(
            blur.glass_blur, (0.7, 2, 1), (0.9, 1, 2), (1, 3, 2), (1.1, 2, 3), (1.5, 2, 4)
        ),
        "impulse_noise": _random(noise.impulse_noise, 0.03, 0.06, 0.09, 0.17, 0.27),
        "jpeg_compression": _plain(digital.jpeg_compression, 25, 18, 15, 10, 7),
        "motion_blur": _random(blur.motion_blur, (10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "pixelate": _plain(digital.pixelate, 0.6, 0.5, 0.4, 0.3, 0.25),
        "saturate": _plain(digital.saturate, (0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        "shot_noise": _random(noise.shot_noise, 60, 25, 12, 5, 3),
        "snow": _random(
            weather.snow,
            (0.1, 0.3, 3, 0.5, (10, 4), 0.8),
            (0.2, 0.3, 2, 0.5, (12, 4), 0.7),
            (0.55, 0.3, 4, 0.9, (12, 8), 0.7),
            (0.55, 0.3, 4.5, 0.85, (12, 8), 0.65),
            (0.55, 0.3, 2.5, 0.85, (12, 12), 0.55),
        ),
        "spatter": _random(
            weather.spatter,
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
        "speckle_noise": _random(noise.speckle_noise, 0.15, 0.2, 0.35, 0.45, 0.6),
        "zoom_blur": _plain(
            blur.zoom_blur, (1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)
        ),
    }
)

# CURE-like: CURE-OR's extremes, evenly spaced; its blur of 8 to 60 pixels is scaled from images of
# 648 pixels to 32. CURE-OR has no Gaussian noise or motion blur: CIFAR-10-C's are used.
CURE_LIKE: Mapping[str, Corruption] = MappingProxyType(
    {
        "gaussian_blur": _plain(blur.gaussian_blur, *np.linspace(8, 60, 5) * SIDE / 648),
        "gaussian_noise": CIFAR10C["gaussian_noise"],
        "motion_blur": CIFAR10C["motion_blur"],
        "overexposure": _plain(cure.exposure, 1.4, 2.55, 3.7, 4.85, 6.0),
        "salt_pepper": _random(noise.salt_pepper, 0.2, 0.375, 0.55, 0.725, 0.9),
        "underexposure": _plain(cure.exposure, 0.4, 0.32, 0.24, 0.16, 0.08),
    }
)

# 12, 24, ..., 180 degrees.
ROTATIONS: Mapping[str, Corruption] = MappingProxyType(
    {ROTATION: _plain(rotation.rotation, *range(12, 181, 12))}
)

COLLECTIONS: Mapping[Collection, Mapping[str, Corruption]] = MappingProxyType(
    {
        "cifar10c": CIFAR10C,
        "tinyimagenetc": TINYIMAGENETC,
        "imagenetc": IMAGENETC,
        "cure": CURE_LIKE,
        "rotations": ROTATIONS,
    }
)
