"""Blurs: Gaussian, defocus, frosted glass, motion and zoom."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from stages.data.corruptions.draws import Generators
from stages.data.corruptions.pixels import SIDE, Images, bytes_from_unit, unit_from_bytes


def gaussian_blur(images: Images, sigma: float) -> Images:
    """Convolve with a Gaussian of ``sigma`` pixels, cut off at 4 sigma, repeating edge pixels."""
    return bytes_from_unit(_smoothed(unit_from_bytes(images), sigma))


def glass_blur(images: Images, generators: Generators, sigma: float, n_passes: int) -> Images:
    """Blur, replace every pixel by a neighbour ``n_passes`` times, and blur again.

    The released data was meant to swap two pixels, but both sides of its assignment are views of
    one array: the pixel takes its neighbour's value and the neighbour keeps its own. The neighbour
    lies 0 or 1 rows up and 0 or 1 columns to the left, and pixels are visited from the last to the
    first, so that each reads only pixels visited after it: a whole pass is one gather. The first
    two rows and columns are never visited.
    """
    shuffled = bytes_from_unit(_smoothed(unit_from_bytes(images), sigma))
    visited = np.arange(2, SIDE)
    shape = (n_passes, 2, len(visited), len(visited))
    steps = np.stack([generator.integers(0, 2, shape) for generator in generators])
    image = np.arange(len(images))[:, None, None]
    for i in range(n_passes):
        up, left = steps[:, i, 0], steps[:, i, 1]
        shuffled[:, 2:, 2:] = shuffled[image, visited[:, None] - up, visited - left]
    return bytes_from_unit(_smoothed(unit_from_bytes(shuffled), sigma))


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


def zoom_blur(images: Images, stop: float) -> Images:
    """Average the image with itself zoomed by 1, 1.01, 1.02, ... below ``stop``.

    Zooming is linear in the pixels, so the whole average is one sparse matrix.
    """
    average = applied(_zoom_blur_matrix(stop), unit_from_bytes(images))
    # float32 absorbs the rounding of the weights' sum; otherwise flat areas would be truncated to
    # the next lower level.
    return bytes_from_unit(average.astype(np.float32))


def smeared(image: NDArray[np.uint8], radius: int, sigma: float, angle_deg: float) -> Images:
    """One image, ``[32, 32]`` or ``[32, 32, 3]``, after ImageMagick's one-sided motion blur.

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
    """A normalised disk on the pixel grid, softened by 3x3: side ``2 int(radius) + 3``."""
    half = int(radius) + 1  # the softening reaches one pixel beyond the disk
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    kernel: NDArray[np.float32] = cv2.GaussianBlur(
        disk / disk.sum(), (3, 3), alias_sigma, borderType=cv2.BORDER_CONSTANT
    )
    return kernel


@lru_cache
def zoom_matrix(factor: float) -> NDArray[np.float64]:
    """Zoom about the centre, for one axis: ``[32, 32]``, output row from input rows.

    The central ``ceil(32 / factor)`` pixels are stretched bilinearly and trimmed to 32.
    """
    n_kept = int(np.ceil(SIDE / factor))
    top = (SIDE - n_kept) // 2
    stretched = ndimage.zoom(np.eye(SIDE)[top : top + n_kept], (factor, 1), order=1)
    trim = (len(stretched) - SIDE) // 2
    return np.asarray(stretched[trim : trim + SIDE])


def applied(matrix: sparse.csr_array, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a linear map of the pixels, ``[1024, 1024]``, to ``[n, 32, 32, c]``.

    A sparse product sums in the same order for any ``n``; a dense one (BLAS) may not.
    """
    n, _, _, n_channels = x.shape
    columns = np.ascontiguousarray(x.reshape(n, SIDE * SIDE, n_channels).transpose(1, 0, 2))
    mapped = matrix @ columns.reshape(SIDE * SIDE, n * n_channels)
    rows = mapped.reshape(SIDE * SIDE, n, n_channels).transpose(1, 0, 2)
    return np.ascontiguousarray(rows).reshape(x.shape)


@lru_cache
def both_axes(factor: float) -> sparse.csr_array:
    """``zoom_matrix`` for rows and columns of the flattened image, ``[1024, 1024]``."""
    one_axis = sparse.csr_array(zoom_matrix(factor))
    return sparse.csr_array(sparse.kron(one_axis, one_axis))


@lru_cache
def _zoom_blur_matrix(stop: float) -> sparse.csr_array:
    # The released data counts its factors with arange, which reaches ``stop`` itself at 1.06.
    factors = np.arange(1, stop, 0.01)
    total = sparse.csr_array(sparse.eye_array(SIDE * SIDE))
    for factor in factors:
        total = total + both_axes(float(factor))
    return sparse.csr_array(total / (len(factors) + 1))


def _smoothed(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    smooth = ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest", truncate=4.0)
    return np.asarray(smooth)
