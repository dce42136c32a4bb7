"""The names of the corruptions, without the libraries that apply them."""

from typing import Literal

Collection = Literal["cifar10c", "cure"]
"""Which five levels a name stands for: CIFAR-10-C's or the CURE-like ones."""

N_SEVERITIES = 5

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
"""All 19 of CIFAR-10-C, alphabetical."""

CURE = (
    "gaussian_blur",
    "gaussian_noise",
    "motion_blur",
    "overexposure",
    "salt_pepper",
    "underexposure",
)
"""The six distortions of CIFAR-10-CURE (Introspective Learning, appendix C.2.3), alphabetical."""


def names_of(collection: Collection) -> tuple[str, ...]:
    """All names of a collection, alphabetical."""
    return CORRUPTIONS if collection == "cifar10c" else CURE
