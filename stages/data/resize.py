"""Convert images of any size and mode to ``uint8 [H, W, 3]``, by one rule for every source."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stages.data.decoding import PLAIN, Decoding, decoding_of
from stages.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)

Shape = Literal["kept", "stretched", "cropped"]
"""What resizing does to the shape of an image."""

ONE_LAYOUT = (
    "import or train the model again under another name, which then has one rule for all layouts"
)
"""Remedy if images of one data set are stretched and those of another are cropped."""


@dataclass(frozen=True, slots=True)
class Resize:
    """How images of any size become images of one size: resize, then cut out the centre.

    Equivalent to torchvision's ``Resize(resize, interpolation)`` and ``CenterCrop(size)`` on PIL
    images, which average over all pixels under the filter when they shrink.

    Attributes:
        size: ``(H, W)`` of the result, in pixels.
        resize: length of the shorter side before the crop, or ``(H, W)`` to which images are
            stretched. ``None``, for models of older versions, follows the layout of the data set:
            class folders and arrays are stretched to ``size``; of other images, the shorter side is
            resized to the longer side of ``size``.
        interpolation: one of PIL's filters.
        decoding: how image files become 8-bit RGB first; without effect on arrays.

    Raises:
        InputError: the crop is larger than the resized image.
    """

    size: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    decoding: Decoding = PLAIN

    def __post_init__(self) -> None:
        resize = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        if resize and (resize[0] < self.size[0] or resize[1] < self.size[1]):
            raise InputError(
                f"crop {_by(self.size)}: expected at most the resized image, which is {_by(resize)}"
            )

    def in_layout(self, *, stretches: bool) -> Resize:
        """The same with ``resize`` set, for a layout that by itself stretches images or crops."""
        if self.resize is not None:
            return self
        return replace(self, resize=self.size if stretches else max(self.size))

    @property
    def crops(self) -> bool:
        """Whether an image keeps its shape, and its margins may be cut off."""
        return isinstance(self.resize, int)

    def rule(self, native: tuple[int, int] | None) -> str:
        """The rule in words, as recorded in plans; `resize_of` parses it.

        Args:
            native: stored ``(H, W)``; ``None`` if it varies between images.

        >>> Resize((32, 32)).rule((8, 8)), Resize((32, 32)).rule((32, 32))
        ('bilinear-antialias 8x8->32x32', 'none')
        >>> Resize((224, 224), 256, "bicubic").rule(None)
        'bicubic-antialias shorter side ->256, centre 224x224'
        """
        found = self.in_layout(stretches=True)
        name = found.interpolation + "-antialias" * (found.interpolation != "nearest")
        if native is not None and found._resized(native) == found.size:
            return "none" if native == found.size else f"{name} {_by(native)}->{_by(found.size)}"
        return found._rule(name) + (self.decoding.words if native is None else "")

    def _rule(self, name: str) -> str:
        """The rule for images of any size, with the name of the filter."""
        centre = f", centre {_by(self.size)}"
        if isinstance(self.resize, int):
            return f"{name} shorter side ->{self.resize}{centre}"
        assert self.resize is not None  # in_layout sets it
        return f"{name} ->{_by(self.resize)} (stretched){centre * (self.resize != self.size)}"

    def pixels(self, image: Image.Image) -> NDArray[Any]:
        """Pixels of an opened image file, ``uint8 [H, W, 3]``.

        Raises:
            ValueError: the file has more than eight bits per channel; see `Decoding`.
        """
        return np.asarray(self._applied(self.decoding.rgb(image)))

    def arrays(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A writable copy of arrays of images as ``uint8 [n, H, W, 3]``.

        Args:
            images: ``uint8 [n, h, w]``, ``[n, h, w, 1]`` or ``[n, h, w, 3]``; may be
                memory-mapped. Grey becomes three equal channels.
        """
        if images.ndim == 4 and images.shape[3] == 1:
            images = images[..., 0]
        found = self.in_layout(stretches=True)
        height, width = images.shape[1:3]
        if (height, width) != found.size or found._resized((height, width)) != found.size:
            images = found._each(images)
        if images.ndim == 3:
            return np.repeat(images[..., np.newaxis], 3, axis=3)
        return np.array(images, dtype=np.uint8, copy=True, order="C", subok=False)

    def _each(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        from PIL import Image  # here because a query of stored rows decodes no image

        resized = np.empty((len(images), *self.size, *images.shape[3:]), dtype=np.uint8)
        for row, image in enumerate(images):
            resized[row] = np.asarray(self._applied(Image.fromarray(np.ascontiguousarray(image))))
        return resized

    def _applied(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        found = self.in_layout(stretches=True)
        height, width = found._resized((image.height, image.width))
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling[found.interpolation.upper()])
        if (height, width) == found.size:
            return image
        top, left = (
            round((length - kept) / 2)
            for length, kept in zip((height, width), found.size, strict=True)
        )
        return image.crop((left, top, left + found.size[1], top + found.size[0]))

    def _resized(self, native: tuple[int, int]) -> tuple[int, int]:
        """``(H, W)`` of an image before the crop; the longer side is rounded down."""
        if not isinstance(self.resize, int):
            return self.resize or self.size
        shorter, longer = min(native), max(native)
        other = self.resize * longer // shorter
        return (self.resize, other) if native[0] <= native[1] else (other, self.resize)


def resizing_to(image_size: int | Resize) -> Resize:
    """A height and width in pixels as a `Resize`; raises ``InputError`` below 1."""
    if isinstance(image_size, Resize):
        return image_size
    if image_size < 1:
        raise InputError(f"image size is {image_size}, expected at least 1 pixel")
    return Resize((image_size, image_size))


def resize_of(rule: str, size: tuple[int, int]) -> Resize:
    """The inverse of `Resize.rule` for images of any stored size.

    Args:
        rule: as in a plan.
        size: ``(H, W)`` of the result.

    >>> cropped = Resize((224, 224), 256, "bicubic")
    >>> resize_of(cropped.rule(None), (224, 224)) == cropped
    True
    """
    word, decoding = rule.partition(" ")[0].removesuffix("-antialias"), decoding_of(rule)
    found: Interpolation = next((each for each in INTERPOLATIONS if each == word), "bilinear")
    if side := re.search(r"shorter side ->(\d+)", rule):
        return Resize(size, int(side[1]), found, decoding)
    if stretched := re.search(r"->(\d+)x(\d+) \(stretched\)", rule):
        return Resize(size, (int(stretched[1]), int(stretched[2])), found, decoding)
    return Resize(size, size, found)


def shape_after(rule: str) -> Shape:
    """What a resize rule, as written in a plan, does to the shape of images.

    >>> shape_after(Resize((32, 32)).rule((28, 28))), shape_after(Resize((32, 32)).rule(None))
    ('kept', 'stretched')
    >>> shape_after(Resize((32, 32), 32).rule(None))
    'cropped'
    """
    if "shorter side" in rule:
        return "cropped"
    if native := _native(rule):
        height, width, new_height, new_width = native
        return "kept" if height * new_width == width * new_height else "stretched"
    return "kept" if rule == "none" else "stretched"


def native_size(rule: str, size: tuple[int, int]) -> tuple[int, int] | None:
    """``(H, W)`` of stored images that a rule resizes to ``size``; ``None`` if sizes vary.

    >>> native_size("none", (32, 32)), native_size(Resize((32, 32)).rule((8, 8)), (32, 32))
    ((32, 32), (8, 8))
    """
    if rule == "none":
        return size
    native = _native(rule)
    return native[:2] if native else None


def _native(rule: str) -> tuple[int, int, int, int] | None:
    found = re.fullmatch(r"[a-z-]+ (\d+)x(\d+)->(\d+)x(\d+)", rule)
    if found is None:
        return None
    height, width, new_height, new_width = map(int, found.groups())
    return height, width, new_height, new_width


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
