"""The names of the corruptions, without the libraries that apply them."""

from typing import Literal

Collection = Literal["cifar10c", "imagenetc", "cure", "rotations"]
"""Collection that defines the levels: CIFAR-10-C, ImageNet-C, CURE-like, or angles of rotation."""

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
    """The collection whose constants suit images of ``(H, W)``, unless another one is chosen.

    >>> collection_for((32, 32)), collection_for((224, 224))
    ('cifar10c', 'imagenetc')
    """
    return "cifar10c" if size == (32, 32) else "imagenetc"
