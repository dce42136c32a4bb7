"""The measures of image quality: each compares a distorted image with its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.quality.autoencoder import Autoencoder
from stages.quality.patches import Floats, whitened_patches
from stages.quality.unique import POWER, UNIQUES

_LUMA = np.array([0.299, 0.587, 0.114])

SSIM_SIDE, VIF_SIDE = 11, 41
MS_SSIM_SIDE = 176
"""Smallest sides: SSIM's window; VIF's four scales; eleven pixels at the fifth scale of MS-SSIM."""


@dataclass(frozen=True, eq=False)
class View:
    """An image as the measures read it; what they derive from it is computed once.

    Attributes:
        image: ``uint8 [H, W, 3]`` RGB.
    """

    image: NDArray[np.uint8]

    @cached_property
    def luma(self) -> Floats:
        """``0.299 R + 0.587 G + 0.114 B``, shape ``(H, W)``, from 0 to 255."""
        luma: Floats = self.image @ _LUMA
        return luma

    @cached_property
    def patches(self) -> Floats:
        """Whitened patches of the image at half size, shape ``(192, n)``."""
        return whitened_patches(self.image)


Compare = Callable[[View, View, Autoencoder | None], float]
"""The score of a distorted image, the second, against its reference; higher is better."""


@dataclass(frozen=True)
class Measure:
    """A measure of image quality.

    Attributes:
        title: its name in tables and figures.
        definition: one line, printed with every result.
        compare: computes the score; raises ``ValueError`` if it is undefined for the images.
        needs_model: whether it needs an autoencoder.
    """

    title: str
    definition: str
    compare: Compare
    needs_model: bool = False


def psnr(reference: View, distorted: View, _: Autoencoder | None) -> float:
    """Peak signal-to-noise ratio of the luma in dB; infinite for equal images."""
    error = float(np.mean((reference.luma - distorted.luma) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error else float("inf")


def ssim(reference: View, distorted: View, _: Autoencoder | None) -> float:
    """Structural similarity of the luma."""
    from skimage.metrics import structural_similarity

    _require_side(reference, SSIM_SIDE)
    found = structural_similarity(
        reference.luma,
        distorted.luma,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(found)


def ms_ssim(reference: View, distorted: View, _: Autoencoder | None) -> float:
    """Multi-scale structural similarity of the luma."""
    _require_side(reference, MS_SSIM_SIDE)
    images = (_tensor(distorted), _tensor(reference))
    return float(
        _torchmetrics().multiscale_structural_similarity_index_measure(*images, data_range=255.0)
    )


def vif(reference: View, distorted: View, _: Autoencoder | None) -> float:
    """Visual information fidelity of the luma, in the pixel domain."""
    _require_side(reference, VIF_SIDE)
    return float(
        _torchmetrics().visual_information_fidelity(_tensor(distorted), _tensor(reference))
    )


def _by_patches(name: str) -> Compare:
    def compare(reference: View, distorted: View, model: Autoencoder | None) -> float:
        assert model is not None  # `require_model`
        found = UNIQUES[name](model, reference.patches, distorted.patches)
        if np.isnan(found):
            raise ValueError(
                "its features are constant, expected images with some structure and weights of a "
                "trained autoencoder"
            )
        return float(found**POWER)

    return compare


MEASURES: Mapping[str, Measure] = {
    "psnr": Measure(
        "PSNR", "10 log10(255^2 / MSE) of the luma 0.299 R + 0.587 G + 0.114 B, in dB", psnr
    ),
    "ssim": Measure(
        "SSIM",
        "structural similarity (Wang et al. 2004) of the luma at full size: Gaussian window of 11 "
        "pixels, sigma 1.5, K1 0.01, K2 0.03; images are not downsampled first (scikit-image)",
        ssim,
    ),
    "ms-ssim": Measure(
        "MS-SSIM",
        "multi-scale SSIM (Wang et al. 2003) of the luma: five scales, halved by 2x2 means, with "
        "the published exponents (torchmetrics)",
        ms_ssim,
    ),
    "vif": Measure(
        "VIF",
        "visual information fidelity (Sheikh & Bovik 2006) of the luma in the pixel domain, four "
        "scales, noise variance 2 (torchmetrics)",
        vif,
    ),
    "unique": Measure(
        "UNIQUE",
        "|Spearman|^10 of the suppressed activations of both images' whitened patches",
        _by_patches("unique"),
        needs_model=True,
    ),
    "paper_w1": Measure(
        "Introspective-UNIQUE",
        "|Spearman|^10 of both images' whitened patches projected on the gradient of the "
        "reconstruction loss of the reference to the encoder's weights",
        _by_patches("paper_w1"),
        needs_model=True,
    ),
    "surprisal_w2": Measure(
        "Introspective-UNIQUE (surprisal)",
        "|Spearman|^10 of magnitudes and angles of the complex logit of projections on the "
        "gradient to the decoder's weights, sharp units doubled",
        _by_patches("surprisal_w2"),
        needs_model=True,
    ),
    "plain_w2": Measure(
        "Introspective-UNIQUE (plain W2)",
        "|Spearman|^10 of projections on the gradient to the decoder's weights",
        _by_patches("plain_w2"),
        needs_model=True,
    ),
}
"""By the name of the measure, which is also the column of its scores, with _ for -."""

INTROSPECTIVE = "introspective-unique"
READINGS = ("paper_w1", "surprisal_w2", "plain_w2")
CHOICES = (*(name for name in MEASURES if name not in READINGS), INTROSPECTIVE)
"""What a user can ask for; the introspective measure has several readings."""


def columns_of(measures: Sequence[str], readings: Sequence[str]) -> tuple[str, ...]:
    """Names in `MEASURES` of the chosen measures, with the introspective one in its readings.

    >>> columns_of(["psnr", "introspective-unique"], ["paper_w1", "surprisal_w2"])
    ('psnr', 'paper_w1', 'surprisal_w2')
    """
    found = [name for each in measures for name in (readings if each == INTROSPECTIVE else [each])]
    return tuple(dict.fromkeys(found))


def column_of(name: str) -> str:
    """The column of a measure's scores.

    >>> column_of("ms-ssim")
    'ms_ssim'
    """
    return name.replace("-", "_")


def require_libraries(names: Sequence[str]) -> None:
    """Raise ``InputError`` if the library of a measure is not installed."""
    from importlib.util import find_spec

    if {"ms-ssim", "vif"} & set(names) and find_spec("torchmetrics") is None:
        raise InputError(
            "ms-ssim and vif need torchmetrics, which is not installed: pip install "
            "'.[quality]', or leave these measures out"
        )


def _require_side(view: View, least: int) -> None:
    height, width = view.image.shape[:2]
    if min(height, width) < least:
        raise ValueError(f"{height}x{width} pixels, expected at least {least}x{least}")


def _tensor(view: View) -> Any:  # Any: a tensor; torch is imported where it is used
    import torch

    return torch.from_numpy(view.luma)[None, None]


def _torchmetrics() -> Any:  # Any: a module
    from stages.sensing.torchvision_ops import define_missing_operators

    define_missing_operators()
    from torchmetrics.functional import image

    return image
