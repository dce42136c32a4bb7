"""The names of the corruptions, without the libraries that apply them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Collection = Literal["cifar10c", "tinyimagenetc", "imagenetc", "cure", "rotations"]
"""Collection that defines the levels: those of CIFAR-10-C, Tiny-ImageNet-C or ImageNet-C, CURE-like
ones, or angles of rotation."""

SIDES: Mapping[Collection, int] = MappingProxyType(
    {"cifar10c": 32, "tinyimagenetc": 64, "imagenetc": 224, "cure": 32, "rotations": 32}
)
"""Height and width in pixels for which the constants were chosen. ImageNet-C's are also used for
all sizes that are not listed."""

VERSION = 1
"""Raised when the bytes of any corruption change."""

N_SEVERITIES = 5
"""Number of severities of CIFAR-10-C and ImageNet-C, and of any set that does not state another."""

CORRUPTIONS = (
    "brightness",
    "contrast",
    "defocus_blur",
    "elastic_transform",
    "fog",
    "frost",
    "gaussian_blur",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "saturate",
    "shot_noise",
    "snow",
    "spatter",
    "speckle_noise",
    "zoom_blur",
)
"""All 19 corruptions of CIFAR-10-C and ImageNet-C, sorted."""

CURE = (
    "gaussian_blur",
    "gaussian_noise",
    "motion_blur",
    "overexposure",
    "salt_pepper",
    "underexposure",
)
"""The six distortions of CIFAR-10-CURE (Introspective Learning, appendix C.2.3), sorted."""

C_BAR = (
    "blue_noise_sample",
    "brownish_noise",
    "caustic_refraction",
    "checkerboard_cutout",
    "circular_motion_blur",
    "cocentric_sine_waves",
    "inverse_sparkles",
    "lines",
    "perlin_noise",
    "pinch_and_twirl",
    "plasma_noise",
    "ripple",
    "single_frequency_greyscale",
    "sparkles",
    "transverse_chromatic_abberation",
)
"""Corruptions of CIFAR-10-C-bar and ImageNet-C-bar (Mintun et al. 2021), which are only read."""

ROTATION = "rotation"
"""The only corruption of CIFAR-10-Rotations."""

N_ANGLES = 15


def names_of(collection: Collection) -> tuple[str, ...]:
    """All names of a collection, sorted."""
    return {"cure": CURE, "rotations": (ROTATION,)}.get(collection, CORRUPTIONS)


def n_severities_of(collection: Collection) -> int:
    """Number of levels of each corruption in a collection."""
    return N_ANGLES if collection == "rotations" else N_SEVERITIES


def collection_for(size: tuple[int, int]) -> Collection:
    """The collection of 19 corruptions whose constants are used for images of ``(H, W)``.

    >>> [collection_for((side, side)) for side in (32, 64, 224, 300)]
    ['cifar10c', 'tinyimagenetc', 'imagenetc', 'imagenetc']
    """
    of_size: Mapping[tuple[int, int], Collection] = {
        (32, 32): "cifar10c",
        (64, 64): "tinyimagenetc",
    }
    return of_size.get(size, "imagenetc")


def constants_in_words(size: tuple[int, int]) -> str:
    """Whose constants are used for images of ``(H, W)``, and for which size they were chosen.

    >>> constants_in_words((300, 300))
    'ImageNet-C (224x224)'
    """
    titles = {"cifar10c": "CIFAR-10-C", "tinyimagenetc": "Tiny-ImageNet-C"}
    collection = collection_for(size)
    side = SIDES[collection]
    return f"{titles.get(collection, 'ImageNet-C')} ({side}x{side})"
