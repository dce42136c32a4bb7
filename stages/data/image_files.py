"""Decode many image files at once: paths, or the bytes of files that lie within larger ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.cpus import n_cpus
from pipeline.terminal import printable_line
from stages.data.regular import require_regular, size_of_regular
from stages.data.resize import Resize

_ROWS_PER_TASK = 64
_MAX_THREADS = 4
# Smaller files are limited by the interpreter's lock: 32x32 JPEGs were read at 15,600 per second
# on one thread and at 8,000 on two (two shared cores, Pillow 13.0).
_THREADED_BYTES = 16 * 2**10


def decoded(
    names: Sequence[str], files: Sequence[str | bytes], resizing: Resize
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Images ``uint8 [n, H, W, 3]``, and the reason of each row that cannot be decoded.

    Args:
        names: what a reason calls each file.
        files: paths, or contents of files.
        resizing: how files become images; rows that cannot be decoded are zeros.
    """
    images = np.zeros((len(files), *resizing.size, 3), dtype=np.uint8)
    starts = range(0, len(files), _ROWS_PER_TASK)
    spans = [range(low, min(low + _ROWS_PER_TASK, len(files))) for low in starts]

    def decode_span(span: range) -> dict[int, str]:
        return _decode(span, names, files, images, resizing)

    if files and _size(files[0]) >= _THREADED_BYTES:
        with ThreadPoolExecutor(min(_MAX_THREADS, n_cpus())) as pool:
            failures = list(pool.map(decode_span, spans))
    else:
        failures = [decode_span(span) for span in spans]
    return images, {row: why for each in failures for row, why in each.items()}


def _size(file: str | bytes) -> int:
    return size_of_regular(Path(file)) if isinstance(file, str) else len(file)


def _decode(
    span: range,
    names: Sequence[str],
    files: Sequence[str | bytes],
    images: NDArray[np.uint8],
    resizing: Resize,
) -> dict[int, str]:
    failed = {}
    for row in span:
        try:
            with _opened(files[row]) as image:
                images[row] = resizing.pixels(image)
        except Exception as error:  # PIL raises nearly anything on a broken file
            images[row] = 0
            reason = re.sub(" <_io.BytesIO [^>]*>", "", str(error))  # an address in memory
            failed[row] = f"{printable_line(names[row])}: {' '.join(reason.split()) or repr(error)}"
    return failed


def _opened(file: str | bytes) -> Image.Image:
    if isinstance(file, bytes):
        return Image.open(BytesIO(file))
    require_regular(file)
    return Image.open(file)
