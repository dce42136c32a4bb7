"""Digital processing: colour, contrast, compression, resampling, warping."""

from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from stages.data.corruptions.draws import Generators, uniforms
from stages.data.corruptions.hsv import hsv_from_unit, unit_from_hsv
from stages.data.corruptions.pixels import Images, bytes_from_unit, unit_from_bytes


def brightness(images: Images, shift: float) -> Images:
    """Add ``shift`` to the value channel of HSV."""
    hue, saturation, value = hsv_from_unit(unit_from_bytes(images))
    return bytes_from_unit(unit_from_hsv(hue, saturation, np.clip(value + shift, 0, 1)))


def saturate(images: Images, factor: float, shift: float) -> Images:
    """Map the saturation channel of HSV to ``factor * s + shift``; severities 1 and 2 are paler.

    Grey pixels have hue 0, so a ``shift`` above zero tints them red.
    """
    hue, saturation, value = hsv_from_unit(unit_from_bytes(images))
    saturation = np.clip(saturation * factor + shift, 0, 1)
    return bytes_from_unit(unit_from_hsv(hue, saturation, value))


def contrast(images: Images, factor: float) -> Images:
    """Pull every channel to its mean over the image: ``(x - mean) * factor + mean``."""
    # The sum of bytes is exact, so the mean does not depend on the other images in the block.
    totals = images.sum(axis=(1, 2), keepdims=True, dtype=np.int64)
    means = totals / (255.0 * images.shape[1] * images.shape[2])
    return bytes_from_unit((unit_from_bytes(images) - means) * factor + means)


def jpeg_compression(images: Images, quality: int) -> Images:
    """Encode as JPEG with that quality and decode again."""
    return np.stack([_through_jpeg(image, quality) for image in images])


def pixelate(images: Images, scale: float) -> Images:
    """Shrink to ``int(side * scale)`` pixels and enlarge again, averaging over boxes both times."""
    height, width = images.shape[1:3]
    small = (int(width * scale), int(height * scale))
    box = Image.Resampling.BOX
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize(small, box).resize((width, height), box))
            for image in images
        ]
    )


def elastic_transform(
    images: Images, generators: Generators, amplitude: float, sigma: float, jitter: float
) -> Images:
    """Move three points by up to ``jitter`` pixels (affine), then every pixel by a smooth field.

    The field is uniform noise in ``[-1, 1]``, smoothed by ``sigma`` pixels and multiplied by
    ``amplitude``. Source: Simard, Steinkraus & Platt, 2003, after a random affine map.
    """
    x = unit_from_bytes(images).astype(np.float32)
    jitters = uniforms(generators, (3, 2), -jitter, jitter).astype(np.float32)
    warped = np.stack([_affine(image, j) for image, j in zip(x, jitters, strict=True)])
    noise = uniforms(generators, (2, *images.shape[1:3]), -1, 1)
    field = amplitude * ndimage.gaussian_filter(
        noise, (0, 0, sigma, sigma), mode="reflect", truncate=3.0
    )
    return bytes_from_unit(displaced(warped, field[:, 0], field[:, 1]))


def displaced(
    x: NDArray[np.float32], dy: NDArray[np.float64], dx: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Sample each pixel ``(dy, dx)`` away, bilinearly; the image is mirrored beyond its edges.

    Args:
        x: ``[n, H, W, c]``.
        dy: ``[n, H, W]`` in pixels.
        dx: like ``dy``.
    """
    height, width = x.shape[1:3]
    y0, wy = _split(np.arange(height)[:, None] + dy)
    x0, wx = _split(np.arange(width)[None, :] + dx)
    image = np.arange(len(x))[:, None, None] * height
    flat = x.reshape(-1, x.shape[-1])
    top = (image + _mirrored(y0, height)) * width
    bottom = (image + _mirrored(y0 + 1, height)) * width
    left, right = _mirrored(x0, width), _mirrored(x0 + 1, width)
    # ``a + (b - a) * w`` keeps flat areas exact; ``a * (1 - w) + b * w`` would not.
    upper: NDArray[np.float32] = flat[top + left]
    lower = flat[bottom + left]
    upper += (flat[top + right] - upper) * wx
    lower += (flat[bottom + right] - lower) * wx
    upper += (lower - upper) * wy
    return upper


def _split(position: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The pixel before a position, and the distance of the position from it, ``[..., 1]``."""
    before = np.floor(position)
    return before.astype(np.intp), (position - before).astype(np.float32)[..., None]


def _mirrored(index: NDArray[np.intp], side: int) -> NDArray[np.intp]:
    """Mirror pixel indices outside ``[0, side)`` at the border of the edge pixels."""
    within = index % (2 * side)
    return np.minimum(within, 2 * side - 1 - within)


def _affine(image: NDArray[np.float32], jitter: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image warped so that three corners of its centre square move by ``jitter`` (x, y)."""
    height, width = image.shape[:2]
    middle, reach = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = (middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, corners + jitter)
    out: NDArray[np.float32] = cv2.warpAffine(
        image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101
    )
    return out


def _through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
