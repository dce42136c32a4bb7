"""The sizes of images as stored, before a source resizes them to one size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from stages.data.corrupted_folders import CorruptedFolderReader
from stages.data.folder import FolderReader
from stages.data.regular import require_regular
from stages.data.resize import Shape, native_size, shape_after
from stages.data.source import ImageSource

SAMPLE = 1_000
"""Maximum number of files whose headers are read, evenly spaced over the rows."""

Sizes = Counter[tuple[int, int]]
"""``(H, W)`` -> number of images."""


def stored_sizes(source: ImageSource) -> Sizes:
    """Sizes of a source's images, before they are corrupted; of a ``SAMPLE`` if sizes vary.

    Empty if no size is known.
    """
    n_images = source.corruption["n_images"] if source.corruption else source.n_rows
    if (native := native_size(source.resize, source.image_size)) is not None:
        return Counter({native: n_images})
    reader = getattr(source, "reader", None)
    while (within := getattr(reader, "reader", None)) is not None:  # a wrapper, e.g. without labels
        reader = within
    if not isinstance(reader, FolderReader | CorruptedFolderReader):
        return Counter()
    rows = np.unique(np.linspace(0, n_images - 1, SAMPLE).astype(int)).tolist()
    return sizes_of([reader.root / reader.file_of(row) for row in rows])


def sizes_of(files: Sequence[Path]) -> Sizes:
    """Sizes of image files from their headers; unreadable files are skipped."""
    sizes: Sizes = Counter()
    for file in files:
        with suppress(Exception):  # PIL raises nearly anything on a broken file
            require_regular(file)
            with Image.open(file) as image:
                sizes[image.size[::-1]] += 1
    return sizes


def in_words(sizes: Sizes) -> str:
    """The most common size, and how many others there are.

    >>> in_words(Counter({(375, 500): 3, (32, 32): 1, (20, 30): 1}))
    '375x500 and 2 other sizes'
    """
    ((height, width), _), *others = sizes.most_common()
    more = f" and {len(others)} other size{'s' * (len(others) > 1)}" if others else ""
    return f"{height}x{width}{more}"


def shape_of(source: ImageSource) -> Shape:
    """What resizing does to the shape of a source's images; it is kept if all are square."""
    shape = shape_after(source.resize)
    sizes = stored_sizes(source) if shape != "kept" else Counter()
    return "kept" if sizes and all(height == width for height, width in sizes) else shape
