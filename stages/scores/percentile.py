"""An exact percentile of more numbers than fit into memory, in two passes per rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HALF = 2**16


def percentile(read: Callable[[], Iterable[NDArray[np.floating[Any]]]], percent: float) -> float:
    """The percentile of the elements of all blocks in float32, as `numpy.percentile` defines it.

    The numbers are sorted by their bits: the first pass counts them by the upper 16, the second by
    the lower 16 among those that share the upper ones with the wanted rank. So memory does not grow
    with the numbers, and the result is exact.

    Args:
        read: starts a pass over the blocks; they contain no NaN, and at least one number.
        percent: 0 to 100.
    """
    upper = np.zeros(_HALF, np.int64)
    for block in read():
        upper += np.bincount(_keys(block) >> 16, minlength=_HALF)
    place = percent / 100 * (int(upper.sum()) - 1)
    low = _ranked(read, upper, floor(place))
    if place == floor(place):
        return low
    high = _ranked(read, upper, floor(place) + 1)
    return low + (high - low) * (place - floor(place))


def _ranked(
    read: Callable[[], Iterable[NDArray[np.floating[Any]]]], upper: NDArray[np.int64], rank: int
) -> float:
    """The number with ``rank`` smaller ones before it in ascending order."""
    ends = upper.cumsum()
    half = int(np.searchsorted(ends, rank, side="right"))
    lower = np.zeros(_HALF, np.int64)
    for block in read():
        keys = _keys(block)
        lower += np.bincount(keys[keys >> 16 == half] & (_HALF - 1), minlength=_HALF)
    rest = rank - int(ends[half] - upper[half])
    key = np.uint32(half * _HALF + int(np.searchsorted(lower.cumsum(), rest, side="right")))
    bits = key ^ np.uint32(0x80000000) if key >> 31 else ~key
    value: float = np.uint32(bits).view(np.float32).item()
    return value


def _keys(block: NDArray[np.floating[Any]]) -> NDArray[np.uint32]:
    """Whole numbers in the order of the numbers, whose bits are in another order if negative."""
    bits = np.ascontiguousarray(block, np.float32).ravel().view(np.uint32)
    keys: NDArray[np.uint32] = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return keys
