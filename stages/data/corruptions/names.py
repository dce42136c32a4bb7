"""The names of the corruptions, without the libraries that apply them."""

from typing import Literal

Collection = Literal["cifar10c", "cure", "rotations"]
"""Collection that defines the levels: CIFAR-10-C, CURE-like, or the angles of rotation."""

N_SEVERITIES = 5
"""Number of severities of CIFAR-10-C, and of any set that does not state another."""

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
"""All 19 corruptions of CIFAR-10-C, sorted."""

CURE = (
    "gaussian_blur",
    "gaussian_noise",
    "motion_blur",
    "overexposure",
    "salt_pepper",
    "underexposure",
)
"""The six distortions of CIFAR-10-CURE (Introspective Learning, appendix C.2.3), sorted."""


ROTATION = "rotation"
"""The only corruption of CIFAR-10-Rotations."""

N_ANGLES = 15


def names_of(collection: Collection) -> tuple[str, ...]:
    """All names of a collection, sorted."""
    return {"cifar10c": CORRUPTIONS, "cure": CURE, "rotations": (ROTATION,)}[collection]


def n_severities_of(collection: Collection) -> int:
    """Number of levels of each corruption in a collection."""
    return N_ANGLES if collection == "rotations" else N_SEVERITIES
