"""The function and constants of each corruption, at each of its severities."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.corruptions import blur, cure, digital, noise, rotation, weather
from stages.data.corruptions.draws import generators_of
from stages.data.corruptions.names import ROTATION, Collection
from stages.data.corruptions.pixels import SIDE, Images

BLOCK_ROWS = 128
"""Images processed at once: few enough for their floats to fit into a core's cache."""


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
    {"cifar10c": CIFAR10C, "cure": CURE_LIKE, "rotations": ROTATIONS}
)


def corrupt(
    images: Images,
    name: str,
    severity: int,
    rows: NDArray[np.integer],
    seed: int,
    *,
    collection: Collection = "cifar10c",
) -> Images:
    """Corrupt images, ``uint8 [n, 32, 32, 3]``, and return a new array.

    Image ``i`` only depends on ``default_rng([seed, crc32(name), severity, rows[i]])``, so neither
    the split into calls nor the order of the images changes a byte.

    Args:
        images: ``uint8 [n, 32, 32, 3]`` RGB.
        name: one of ``names_of(collection)``.
        severity: 1 to the number of levels.
        rows: ``[n]``, the position of each image in its data set.
        seed: zero or more.
        collection: collection that defines the levels.

    Raises:
        ValueError: an unknown name or severity, or arrays of another shape or type.
    """
    known = COLLECTIONS[collection]
    if name not in known:
        raise ValueError(f"corruption {name!r} is unknown; {collection} has {', '.join(known)}")
    corruption, out = known[name], np.empty_like(images)
    n_levels = len(corruption.levels)
    if not 1 <= severity <= n_levels:
        raise ValueError(f"severity of {name} must be 1 to {n_levels}, got {severity}")
    if images.dtype != np.uint8 or images.shape != (len(rows), SIDE, SIDE, 3):
        raise ValueError(
            f"{name} takes uint8 images of shape ({len(rows)}, {SIDE}, {SIDE}, 3), one for each "
            f"row, got {images.dtype} {images.shape}"
        )
    level = corruption.levels[severity - 1]
    for start in range(0, len(images), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        if corruption.is_random:
            generators = generators_of(name, severity, rows[block], seed)
            out[block] = corruption.function(images[block], generators, *level)
        else:
            out[block] = corruption.function(images[block], *level)
    return out
