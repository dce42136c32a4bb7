"""Filters that remove noise from 8-bit images: those of OpenCV and scikit-image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError

Image = NDArray[np.uint8]
Apply = Callable[..., NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of a library.

    Attributes:
        defaults: its parameters in the order in which they are written.
        windows: those of them that are side lengths in pixels, odd and up to `MAX_WINDOW`.
        apply: maps an image ``[H, W, 3]`` and the parameters to the filtered image, uint8.
    """

    defaults: Mapping[str, float]
    windows: tuple[str, ...]
    apply: Apply


@dataclass(frozen=True, slots=True)
class Denoising:
    """A filter and its parameters; `denoising_of` checks them.

    Attributes:
        name: a key of `FILTERS`.
        values: all parameters of the filter, in its order.
    """

    name: str
    values: tuple[float, ...]

    @property
    def word(self) -> str:
        """The filter with all parameters, which `denoising_of` reads; recorded in plans."""
        return f"{self.name}:{','.join(f'{value:.10g}' for value in self.values)}"

    @property
    def label(self) -> str:
        """Suffix of the name of a data set: ``nlm``, or ``nlm-3-3-7-21`` for other parameters."""
        if self.values == tuple(FILTERS[self.name].defaults.values()):
            return self.name
        return "-".join([self.name, *(f"{value:.10g}" for value in self.values)])

    def of(self, images: Image) -> Image:
        """Filtered images, ``uint8 [n, H, W, 3]``; each by itself."""
        apply = FILTERS[self.name].apply
        _use_one_thread()
        filtered = np.empty_like(images)
        for row, image in enumerate(images):
            filtered[row] = apply(image, *self.values)
        return filtered


@cache
def _use_one_thread() -> None:
    """Keep OpenCV to one thread: images are filtered in the threads that read them."""
    import cv2

    cv2.setNumThreads(1)


def _nlm(image: Image, h: float, h_color: float, template: float, search: float) -> Image:
    import cv2

    # OpenCV expects BGR. It filters the lightness and both colours of CIE Lab, in 8 bits.
    found: Image = cv2.fastNlMeansDenoisingColored(
        np.ascontiguousarray(image[..., ::-1]), None, h, h_color, int(template), int(search)
    )[..., ::-1]
    return found


def _median(image: Image, window: float) -> Image:
    import cv2

    found: Image = cv2.medianBlur(image, int(window))
    return found


def _gaussian(image: Image, sigma: float) -> Image:
    import cv2

    found: Image = cv2.GaussianBlur(image, (0, 0), sigma)
    return found


def _bilateral(image: Image, window: float, sigma_color: float, sigma_space: float) -> Image:
    import cv2

    found: Image = cv2.bilateralFilter(image, int(window), sigma_color, sigma_space)
    return found


def _tv(image: Image, weight: float) -> Image:
    from skimage.restoration import denoise_tv_chambolle

    smooth = denoise_tv_chambolle(image / 255, weight=weight, channel_axis=-1)
    found: Image = np.rint(255 * smooth).clip(0, 255).astype(np.uint8)
    return found


FILTERS: Mapping[str, Filter] = {
    "nlm": Filter(
        {"h": 10, "h_color": 10, "template": 7, "search": 21}, ("template", "search"), _nlm
    ),
    "median": Filter({"window": 3}, ("window",), _median),
    "gaussian": Filter({"sigma": 1}, (), _gaussian),
    "bilateral": Filter(
        {"window": 5, "sigma_color": 50, "sigma_space": 3}, ("window",), _bilateral
    ),
    "tv": Filter({"weight": 0.1}, (), _tv),
}
"""Name -> filter: ``fastNlMeansDenoisingColored``, ``medianBlur``, ``GaussianBlur`` and
``bilateralFilter`` of OpenCV, and ``denoise_tv_chambolle`` of scikit-image on pixels in [0, 1]."""

MAX_WINDOW, MAX_VALUE = 99, 1_000.0
"""Limits of the parameters; larger ones only cost time or memory."""


def denoising_of(word: str) -> Denoising:
    """The filter that a word names, with its parameters; those that are left out are the default.

    For ``nlm``, one number sets both ``h`` and ``h_color``.

    >>> denoising_of("nlm").word, denoising_of("nlm:3").word, denoising_of("tv:0.2").label
    ('nlm:10,10,7,21', 'nlm:3,3,7,21', 'tv-0.2')

    Raises:
        InputError: no such filter, or a parameter is out of range.
    """
    name, colon, text = word.partition(":")
    if name not in FILTERS:
        raise InputError(f"no filter {name!r}: expected one of {', '.join(FILTERS)}")
    defaults = FILTERS[name].defaults
    given = text.split(",") if colon else []
    if name == "nlm" and len(given) == 1:
        given *= 2
    if len(given) > len(defaults):
        raise InputError(
            f"{word}: expected at most {len(defaults)} numbers, {_written(name)}; found "
            f"{len(given)}"
        )
    values = [*defaults.values()]
    for at, (parameter, number) in enumerate(zip(defaults, given, strict=False)):
        values[at] = _number(word, name, parameter, number)
    return Denoising(name, tuple(map(float, values)))


def _number(word: str, name: str, parameter: str, text: str) -> float:
    is_window = parameter in FILTERS[name].windows
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0 < value <= (MAX_WINDOW if is_window else MAX_VALUE) and not (is_window and value % 2 != 1):
        return value
    wanted = (
        f"an odd number of pixels up to {MAX_WINDOW}"
        if is_window
        else f"a number above 0 and up to {MAX_VALUE:,.0f}"
    )
    raise InputError(f"{word}: expected {wanted} as {parameter} ({_written(name)}), found {text!r}")


def _written(name: str) -> str:
    """How a filter is written, such as ``tv:WEIGHT``."""
    return f"{name}:{','.join(FILTERS[name].defaults).upper()}"
