"""Sensor and transmission noise."""

import numpy as np
from numpy.typing import NDArray

from stages.data.corruptions.draws import Generators, normals, uniforms
from stages.data.corruptions.pixels import Images, bytes_from_unit, unit_from_bytes


def gaussian_noise(images: Images, generators: Generators, sigma: float) -> Images:
    """Add normal noise with standard deviation ``sigma``, as a fraction of the full range."""
    noise = normals(generators, images.shape[1:])
    return bytes_from_unit(unit_from_bytes(images) + sigma * noise)


def speckle_noise(images: Images, generators: Generators, sigma: float) -> Images:
    """Add normal noise proportional to the brightness: ``x + x * N(0, sigma)``."""
    x = unit_from_bytes(images)
    return bytes_from_unit(x + x * (sigma * normals(generators, images.shape[1:])))


def shot_noise(images: Images, generators: Generators, photons: float) -> Images:
    """Photon noise, ``Poisson(x * photons) / photons``; fewer photons give more noise."""
    rates = unit_from_bytes(images) * photons
    counts = np.stack(
        [generator.poisson(rate) for generator, rate in zip(generators, rates, strict=True)]
    )
    return bytes_from_unit(counts / photons)


def impulse_noise(images: Images, generators: Generators, amount: float) -> Images:
    """Set a fraction ``amount`` of the values to 0 or 255, independently in each channel."""
    return _salted_and_peppered(images, uniforms(generators, images.shape[1:]), amount)


def salt_pepper(images: Images, generators: Generators, amount: float) -> Images:
    """Set a fraction ``amount`` of the pixels to black or white, all channels together."""
    return _salted_and_peppered(images, uniforms(generators, (*images.shape[1:3], 1)), amount)


def _salted_and_peppered(images: Images, u: NDArray[np.float64], amount: float) -> Images:
    """Pepper where ``u`` is below ``amount / 2``, salt where it is above ``1 - amount / 2``."""
    peppered = np.where(u < amount / 2, np.uint8(0), images)
    return np.where(u >= 1 - amount / 2, np.uint8(255), peppered)
