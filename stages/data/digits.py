"""scikit-learn's handwritten digits: real images that need no download."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from stages.data.fingerprint import array_content
from stages.data.resize import Resize
from stages.data.source import ArrayReader, ReaderSource

N_TEST_PER_CLASS = 50


def digits_source(split: str, resizing: Resize) -> ReaderSource:
    """The 1,797 digits of ``sklearn.datasets.load_digits``, 8x8 grey, in a fixed split.

    Test is the last 50 images of every class (500), train the other 1,297, both in the original
    order. Grey values 0-16 become 0-255 as ``round(v * 255 / 16)``, rounding halves to even.
    """
    load = partial(load_digits, split)
    images, _ = load()
    return ReaderSource(
        name="digits",
        split=split,
        family="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        resizing=resizing,
        native=(8, 8),
        n_rows=len(images),
        reader=ArrayReader(load, partial(_content, split), split),
    )


@lru_cache(maxsize=2)
def load_digits(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images, ``uint8 [n, 8, 8]``, and labels, ``int64 [n]``, of one split."""
    from sklearn import datasets  # slow to import

    bunch = datasets.load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        is_test[np.flatnonzero(labels == digit)[-N_TEST_PER_CLASS:]] = True
    rows = is_test if split == "test" else ~is_test
    images = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)
    return images[rows], labels[rows]


def _content(split: str) -> str:
    return array_content(*load_digits(split))
