"""Random views of images for contrastive learning: crops, flips and changes of colour, in batches.

The distribution is that of torchvision's ``RandomResizedCrop`` (to the size of the image),
``RandomHorizontalFlip``, ``ColorJitter(0.4, 0.4, 0.4, 0.1)`` with probability 0.8 and
``RandomGrayscale(0.2)``, as in main.py of leftthomas/SimCLR. Pixels are floats throughout, where
torchvision rounds to whole levels after each step.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CROP_SCALE = (0.08, 1.0)
"""Range of the area of a crop, as a fraction of the image."""

CROP_RATIO = (3 / 4, 4 / 3)
"""Range of the aspect ratio (width / height) of a crop."""

N_TRIES = 10
"""Crops that are drawn until one fits into the image; else it is the largest central one."""

STRENGTHS = (0.4, 0.4, 0.4, 0.1)
"""How far brightness, contrast and saturation are from 1, and the hue from 0 (in turns)."""

P_COLOUR, P_GREY = 0.8, 0.2

_KEY = zlib.crc32(b"views")
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class ViewDraws:
    """The random numbers of one view of ``n`` images.

    Attributes:
        crop: ``[n, 4]`` float32: top, left, height and width of the crop in pixels.
        flip: ``[n]`` bool.
        order: ``[n, 4]`` int64, the order in which the four colour changes are applied.
        strength: ``[n, 4]`` float32, factors of brightness, contrast and saturation, turn of hue.
        is_coloured: ``[n]`` bool, whether colours are changed.
        is_grey: ``[n]`` bool, whether the result is made grey.
    """

    crop: Tensor
    flip: Tensor
    order: Tensor
    strength: Tensor
    is_coloured: Tensor
    is_grey: Tensor

    def to(self, device: torch.device) -> Self:
        """A copy on ``device``."""
        tensors = (getattr(self, field.name) for field in dataclasses.fields(self))
        return type(self)(*(each.to(device) for each in tensors))


def view_draws(n: int, size: tuple[int, int], key: Sequence[int]) -> ViewDraws:
    """Draw the random numbers of a view of ``n`` images of ``size`` (height, width).

    They are determined by the key: numbers that are 0 or more, others for each batch and view.
    """
    generator = np.random.default_rng([*key, _KEY])
    spread = np.array(STRENGTHS)
    strength = np.array([1, 1, 1, 0]) + generator.uniform(-spread, spread, (n, 4))
    return ViewDraws(
        crop=_tensor(_crops(n, size, generator)),
        flip=torch.from_numpy(generator.random(n) < 0.5),
        order=torch.from_numpy(generator.random((n, 4)).argsort(axis=1)),
        strength=_tensor(strength),
        is_coloured=torch.from_numpy(generator.random(n) < P_COLOUR),
        is_grey=torch.from_numpy(generator.random(n) < P_GREY),
    )


def random_views(images: Tensor, draws: ViewDraws) -> Tensor:
    """A view of each image.

    Args:
        images: ``[n, H, W, 3]`` uint8.
        draws: of the same images, on their device.

    Returns:
        ``[n, H, W, 3]`` float32 in 0..255.
    """
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    planes = _cropped(planes / 255, draws.crop, draws.flip)
    _recolour(planes, draws)
    grey = _grey(planes)
    planes = torch.where(draws.is_grey[:, None, None, None], grey, planes)
    return planes.mul_(255).permute(0, 2, 3, 1)


def _crops(n: int, size: tuple[int, int], generator: np.random.Generator) -> NDArray[np.float64]:
    """Crops ``[n, 4]``: top, left, height, width; whole pixels."""
    image_height, image_width = size
    area = image_height * image_width * generator.uniform(*CROP_SCALE, (n, N_TRIES))
    least, most = (float(np.log(each)) for each in CROP_RATIO)
    ratio = np.exp(generator.uniform(least, most, (n, N_TRIES)))
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (widths > 0) & (widths <= image_width) & (heights > 0) & (heights <= image_height)
    first = (np.arange(n), fits.argmax(axis=1))
    found = np.asarray(fits.any(axis=1))
    height, width = _largest(size)
    heights = np.where(found, heights[first], height)
    widths = np.where(found, widths[first], width)
    rooms = np.stack([image_height - heights, image_width - widths], axis=1)
    places = np.floor(generator.random((n, 2)) * (rooms + 1))
    corners = np.where(found[:, None], places, rooms // 2)
    return np.column_stack([corners, heights, widths])


def _largest(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the largest crop whose ratio is in the range."""
    height, width = size
    least, most = CROP_RATIO
    return min(height, round(width / least)), min(width, round(height * most))


def _cropped(planes: Tensor, crop: Tensor, flip: Tensor) -> Tensor:
    """Crops, flipped or not, resized to the size of the image by bilinear interpolation."""
    *_, height, width = planes.shape
    rows = _weights(crop[:, 0], crop[:, 2], height)
    columns = _weights(crop[:, 1], crop[:, 3], width)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    n = len(planes)
    # Two products of matrices for each image: [H, H] [H, 3 W], then [3 H, W] [W, W].
    by_rows = planes.transpose(1, 2).reshape(n, height, 3 * width)
    resized = torch.bmm(rows, by_rows).view(n, height, 3, width).transpose(1, 2)
    resized = torch.bmm(resized.reshape(n, 3 * height, width), columns.transpose(1, 2))
    return resized.view(n, 3, height, width)


def _weights(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Weights ``[n, size, size]`` of input pixels for each output pixel along one axis.

    A crop is never larger than the result, so that its pixels are at least as far apart as those of
    the result, and interpolation with antialiasing is the same. Pixels outside the crop do not
    count.
    """
    at = torch.arange(size, device=start.device, dtype=torch.float32)
    inside = (at + 0.5) * (length[:, None] / size) - 0.5
    place = start[:, None] + torch.minimum(inside.clamp(min=0), length[:, None] - 1)
    return (1 - (place[:, :, None] - at).abs()).clamp_(min=0)


def _recolour(planes: Tensor, draws: ViewDraws) -> None:
    """Change brightness, contrast, saturation and hue, in place, in the order of each image."""
    changes = (_brightness, _contrast, _saturation, _hue)
    for step in range(len(changes)):
        for index, change in enumerate(changes):
            rows = torch.nonzero((draws.order[:, step] == index) & draws.is_coloured).flatten()
            strength = draws.strength[rows, index][:, None, None, None]
            planes[rows] = change(planes[rows], strength)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x).mean((1, 2, 3), keepdim=True), x, factor).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x), x, factor).clamp_(0, 1)


def _hue(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue, with value and chroma unchanged.

    A channel is ``V - C clamp(min(k, 4 - k), 0, 1)`` with ``k = 5, 3, 1 + 6 hue (mod 6)`` for red,
    green and blue: the usual closed form of the conversion from HSV.
    """
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    divisor = torch.where(chroma == 0, 1, chroma)
    sector = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sector = torch.where(value == red, (green - blue) / divisor, sector) + 6 * turn[:, 0]
    k = torch.remainder(torch.stack([sector + n for n in (5, 3, 1)], dim=1), 6)
    share = torch.minimum(k, 4 - k).clamp_(0, 1)
    return value[:, None] - chroma[:, None] * share


def _grey(x: Tensor) -> Tensor:
    """Luma, ``[n, 1, H, W]``."""
    red, green, blue = (weight * x[:, channel] for channel, weight in enumerate(_LUMA))
    return (red + green + blue)[:, None]


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
