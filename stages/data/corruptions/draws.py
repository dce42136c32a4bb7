"""Random numbers that depend on the image's row, never on how the work was split."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Generators = Sequence[Generator]
"""One generator per image of a block."""


def generators_of(name: str, severity: int, rows: NDArray[np.integer], seed: int) -> Generators:
    """One generator per row, keyed by (seed, corruption, severity, row).

    The name is used as its CRC-32, so that adding a corruption does not change other numbers.
    """
    key = zlib.crc32(name.encode())
    return [np.random.default_rng([seed, key, severity, row]) for row in rows.tolist()]


def normals(generators: Generators, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Standard normal numbers, ``[n, *shape]``."""
    block = np.empty((len(generators), *shape))
    for generator, out in zip(generators, block, strict=True):
        generator.standard_normal(out=out)
    return block


def uniforms(
    generators: Generators, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0
) -> NDArray[np.float64]:
    """Uniform numbers in ``[low, high)``, ``[n, *shape]``."""
    block = np.empty((len(generators), *shape))
    for generator, out in zip(generators, block, strict=True):
        generator.random(out=out)
    return low + (high - low) * block
