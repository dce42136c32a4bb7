"""The names of the corruptions, without the libraries that apply them."""

from typing import Literal

Collection = Literal["cifar10c", "cure", "rotations"]
"""Which levels a name stands for: CIFAR-10-C's, the CURE-like ones or the angles of rotation."""

N_SEVERITIES = 5
"""Of CIFAR-10-C, and of any set that does not say otherwise."""

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


ROTATION = "rotation"
"""The only one of CIFAR-10-Rotations."""

N_ANGLES = 15


def names_of(collection: Collection) -> tuple[str, ...]:
    """All names of a collection, alphabetical."""
    return {"cifar10c": CORRUPTIONS, "cure": CURE, "rotations": (ROTATION,)}[collection]


def n_severities_of(collection: Collection) -> int:
    """How many levels each of its corruptions has."""
    return N_ANGLES if collection == "rotations" else N_SEVERITIES
