"""Blurs: Gaussian, defocus, frosted glass, motion and zoom."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from stages.data.corruptions.draws import Generators
from stages.data.corruptions.pixels import Images, bytes_from_unit, unit_from_bytes

CACHED_MATRICES = 2
"""Few are kept, because rows are ordered by severity and each severity has its own matrix: at
224x224 pixels, that of zoom blur takes up to 40 MB."""


def gaussian_blur(images: Images, sigma: float) -> Images:
    """Convolve with a Gaussian of ``sigma`` pixels, cut off at 4 sigma, repeating edge pixels."""
    return bytes_from_unit(_smoothed(unit_from_bytes(images), sigma))


def glass_blur(
    images: Images, generators: Generators, sigma: float, n_passes: int, reach: int = 1
) -> Images:
    """Blur, replace every pixel by a neighbour ``n_passes`` times, and blur again.

    The neighbour lies between ``reach`` pixels before and ``reach - 1`` pixels after the pixel, on
    both axes. The first ``reach + 1`` and the last ``reach - 1`` rows and columns are kept.
    """
    shuffled = bytes_from_unit(_smoothed(unit_from_bytes(images), sigma))
    height, width = images.shape[1:3]
    shape = (n_passes, 2, height - 2 * reach, width - 2 * reach)
    for image, generator in zip(shuffled, generators, strict=True):
        for down, right in reach - 1 - generator.integers(0, 2 * reach, shape):
            sources = shuffle_sources(down, right, (height, width), reach)
            image[...] = image.reshape(-1, 3)[sources]
    return bytes_from_unit(_smoothed(unit_from_bytes(shuffled), sigma))


def shuffle_sources(
    down: NDArray[np.integer], right: NDArray[np.integer], size: tuple[int, int], reach: int
) -> NDArray[np.intp]:
    """The pixel, as a flat index, from which each pixel gets its value in a pass of glass blur.

    The released data was meant to swap two pixels, but both sides of its assignment are views of
    one array: the pixel takes its neighbour's value and the neighbour keeps its own. Pixels are
    visited from the last to the first. So a neighbour that comes later in the image already has a
    new value, and its own source is the source.

    Args:
        down: rows from each pixel to its neighbour, ``[H - 2 reach, W - 2 reach]``.
        right: columns, likewise.
        size: ``(H, W)``.
        reach: largest distance.
    """
    height, width = size
    sources = np.arange(height * width)
    rows, columns = (slice(reach + 1, side - reach + 1) for side in size)
    sources.reshape(size)[rows, columns] += down * width + right
    (late,) = np.nonzero(sources > np.arange(len(sources)))
    found = sources.copy()
    while len(late):
        before = found[late]
        found[late] = sources[before]
        late = late[found[late] > before]
    return found.reshape(size)


def defocus_blur(images: Images, radius: float, alias_sigma: float) -> Images:
    """Convolve with a disk of ``radius`` pixels, softened at the rim by a 3x3 Gaussian."""
    kernel = disk_kernel(radius, alias_sigma)
    x = unit_from_bytes(images)
    for image in x:
        image[...] = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return bytes_from_unit(x)


def motion_blur(images: Images, generators: Generators, radius: int, sigma: float) -> Images:
    """Smear each image in one direction at an angle between -45 and 45 degrees."""
    angles = [generator.uniform(-45, 45) for generator in generators]
    return np.stack(
        [smeared(image, radius, sigma, a) for image, a in zip(images, angles, strict=True)]
    )


def zoom_blur(images: Images, stop: float, step: float = 0.01) -> Images:
    """Average the image with itself zoomed by 1, ``1 + step``, ``1 + 2 step``, ... below ``stop``.

    Zooming is linear in the pixels, so the whole average is one sparse matrix.
    """
    matrix = _zoom_blur_matrix(stop, step, images.shape[1:3])
    average = applied(matrix, unit_from_bytes(images))
    # float32 absorbs the rounding of the weights' sum; otherwise flat areas would be truncated to
    # the next lower level.
    return bytes_from_unit(average.astype(np.float32))


def smeared(image: NDArray[np.uint8], radius: int, sigma: float, angle_deg: float) -> Images:
    """One image, ``[H, W]`` or ``[H, W, 3]``, after ImageMagick's one-sided motion blur.

    Tap ``i`` of ``2 * radius + 1`` reads the pixel nearest to ``i * (cos, sin)(angle)`` with weight
    ``exp(-i^2 / (2 sigma^2))``, normalised; edge pixels are repeated; the result is rounded. The
    taps are written into a small 2-D kernel, so that neither wand nor ImageMagick is needed.
    """
    kernel, anchor = motion_kernel(radius, sigma, angle_deg)
    out: Images = cv2.filter2D(image, -1, kernel, anchor=anchor, borderType=cv2.BORDER_REPLICATE)
    return out


def motion_kernel(
    radius: int, sigma: float, angle_deg: float
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """The taps of ``smeared`` as a correlation kernel, and the anchor (x, y) of tap 0 in it."""
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    # Taps below a ten-thousandth of a grey level only make the kernel large.
    taps = taps[weights > 1e-7]
    weights = weights[taps] / weights.sum()
    angle = np.deg2rad(angle_deg)
    dx = np.ceil(taps * np.cos(angle) - 0.5).astype(int)
    dy = np.ceil(taps * np.sin(angle) - 0.5).astype(int)
    kernel = np.zeros((np.ptp(dy) + 1, np.ptp(dx) + 1), np.float32)
    np.add.at(kernel, (dy - dy.min(), dx - dx.min()), weights)
    return kernel, (int(-dx.min()), int(-dy.min()))


def disk_kernel(radius: float, alias_sigma: float) -> NDArray[np.float32]:
    """A disk on the pixel grid, softened at its rim by 3x3 pixels, or by 5x5 above a radius of 8.

    Its side is at most ``2 int(radius) + 3``. The softening reaches one pixel beyond small disks;
    it is cut off, as in the released data, at disks of 8 pixels and more.
    """
    half = max(8, int(radius))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    softening = (3, 3) if radius <= 8 else (5, 5)
    kernel = cv2.GaussianBlur(disk / disk.sum(), softening, alias_sigma)
    margin = max(0, half - int(radius) - 1)
    return np.ascontiguousarray(
        kernel[margin : len(kernel) - margin, margin : len(kernel) - margin]
    )


@lru_cache
def zoom_matrix(factor: float, side: int) -> NDArray[np.float64]:
    """Zoom about the centre, for one axis: ``[side, side]``, output row from input rows.

    The central ``ceil(side / factor)`` pixels are stretched bilinearly and trimmed to ``side``.
    """
    n_kept = int(np.ceil(side / factor))
    top = (side - n_kept) // 2
    stretched = ndimage.zoom(np.eye(side)[top : top + n_kept], (factor, 1), order=1)
    trim = (len(stretched) - side) // 2
    return np.asarray(stretched[trim : trim + side])


def applied(matrix: sparse.csr_array, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a linear map of the pixels, ``[H * W, H * W]``, to ``[n, H, W, c]``.

    A sparse product sums in the same order for any ``n``; a dense one (BLAS) may not.
    """
    n, height, width, n_channels = x.shape
    n_pixels = height * width
    columns = np.ascontiguousarray(x.reshape(n, n_pixels, n_channels).transpose(1, 0, 2))
    mapped = matrix @ columns.reshape(n_pixels, n * n_channels)
    rows = mapped.reshape(n_pixels, n, n_channels).transpose(1, 0, 2)
    return np.ascontiguousarray(rows).reshape(x.shape)


@lru_cache(maxsize=CACHED_MATRICES)
def both_axes(factor: float, size: tuple[int, int]) -> sparse.csr_array:
    """``zoom_matrix`` for rows and columns of the flattened image, ``[H * W, H * W]``."""
    rows, columns = (sparse.csr_array(zoom_matrix(factor, side)) for side in size)
    return sparse.csr_array(sparse.kron(rows, columns))


@lru_cache(maxsize=CACHED_MATRICES)
def _zoom_blur_matrix(stop: float, step: float, size: tuple[int, int]) -> sparse.csr_array:
    # The released data counts its factors with arange, which reaches ``stop`` itself at 1.06.
    factors = np.arange(1, stop, step)
    total = sparse.csr_array(sparse.eye_array(size[0] * size[1]))
    for factor in factors:
        total = total + both_axes(float(factor), size)
    return sparse.csr_array(total / (len(factors) + 1))


def _smoothed(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    smooth = ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest", truncate=4.0)
    return np.asarray(smooth)
