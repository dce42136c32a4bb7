"""Pictures as files: PNG and JPEG bytes, and the data URIs that embed them in a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from stages.sheets.overlays import Pixels

EXACT_SIDE = 96
"""Pictures up to this size are embedded without loss; the larger ones as JPEG."""
_QUALITY = 88


def png_of(picture: Pixels) -> bytes:
    """The picture as a PNG file."""
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, format="PNG", optimize=True)
    return sink.getvalue()


def jpeg_of(picture: Pixels) -> bytes:
    """The picture as a JPEG file; colours are stored at full resolution."""
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, format="JPEG", quality=_QUALITY, subsampling=0)
    return sink.getvalue()


def data_uri(picture: Pixels) -> str:
    """The picture as the ``src`` of an ``<img>``."""
    if max(picture.shape[:2]) <= EXACT_SIDE:
        return _uri("image/png", png_of(picture))
    return _uri("image/jpeg", jpeg_of(picture))


def shrunk(picture: Pixels, side: int) -> Pixels:
    """The picture with at most ``side`` pixels in its longer side; smaller ones are returned."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smaller = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(smaller, dtype=np.uint8)


def _uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
