"""How the pixels of an image file become 8-bit RGB, before the image is resized."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Grey with more than eight bits: converting these to RGB clips their values silently."""

_UPRIGHT = ", upright"
_RANGE = re.compile(r", values (\S+) to (\S+)")


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an image file becomes 8-bit RGB.

    Transparency is dropped, grey becomes three equal channels, palettes and CMYK are converted, and
    only the first frame of an animation is read, as by ``Image.open(file).convert("RGB")``.

    Attributes:
        is_upright: turn the image as the orientation in its EXIF data says.
        value_range: values that become 0 and 255 in grey images with more than 8 bits; values
            between them are scaled linearly and rounded, others clipped. ``None`` refuses these
            images, since nothing in the file says which of its values is white.

    Raises:
        InputError: the range is empty or not finite.
    """

    is_upright: bool = False
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        low, high = self.value_range or (0.0, 1.0)
        if not (low < high and np.isfinite([low, high]).all()):
            raise InputError(f"value range {low:g},{high:g}: expected LOW,HIGH with LOW below HIGH")

    @property
    def words(self) -> str:
        """What differs from the default, to be appended to a rule in a plan.

        >>> Decoding(is_upright=True, value_range=(0, 4095)).words
        ', upright, values 0.0 to 4095.0'
        """
        turned = _UPRIGHT if self.is_upright else ""
        if self.value_range is None:
            return turned
        low, high = map(float, self.value_range)
        return f"{turned}, values {low!r} to {high!r}"

    def rgb(self, image: Image.Image) -> Image.Image:
        """An opened image file in mode RGB.

        Raises:
            ValueError: it has more than eight bits per channel, and the range of values is unknown
                or a value is not finite.
        """
        if self.is_upright:
            from PIL import ImageOps  # here because a query of stored rows decodes no image

            image = ImageOps.exif_transpose(image)
        if image.mode in _WIDE_MODES:
            image = self._narrowed(image)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # PIL warns if a transparent palette becomes RGB
        return image if image.mode == "RGB" else image.convert("RGB")

    def _narrowed(self, image: Image.Image) -> Image.Image:
        """A grey image of any depth with eight bits."""
        from PIL import Image

        if self.value_range is None:
            raise ValueError(
                f"mode {image.mode} has more than 8 bits a channel: give its values of black and "
                "white with --value-range, such as 0,65535"
            )
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("has values that are not finite, expected numbers")
        low, high = self.value_range
        scaled = np.rint((values - low) * (255 / (high - low)))
        return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))


PLAIN = Decoding()
"""The default, as PIL decodes: images are not turned, and grey of more than 8 bits is refused."""


def decoding_of(rule: str) -> Decoding:
    """The inverse of `Decoding.words`, from a rule that may end in them.

    >>> decoding_of("bilinear-antialias ->32x32 (stretched), upright")
    Decoding(is_upright=True, value_range=None)
    """
    values = _RANGE.search(rule)
    low_high = (float(values[1]), float(values[2])) if values else None
    return Decoding(_UPRIGHT in rule, low_high)
