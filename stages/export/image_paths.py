"""Paths and URLs of images, from the folder or URL that holds them and their sample ids."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from stages.errors import InputError
from store.disk import spelled_out

_N_TRIED = 100


def image_path(images: str, sample_id: str) -> str:
    """Path or URL of an image.

    Sample ids are percent-encoded in the URLs of a web server, but not in those of a bucket. Those
    of a manifest may be absolute paths, which need no folder.

    >>> image_path("https://host/photos", "cat/no 1.jpg")
    'https://host/photos/cat/no%201.jpg'
    >>> image_path("/data/local-files/?d=", "cat/1.jpg")
    '/data/local-files/?d=cat/1.jpg'
    """
    if not _is_url(images):
        return str(spelled_out(images).absolute() / sample_id)
    is_encoded = images.startswith(("http://", "https://")) or "://" not in images
    separator = "" if images.endswith(("/", "=")) else "/"
    return f"{images}{separator}{quote(sample_id) if is_encoded else sample_id}"


def check_images(images: str, sample_ids: Sequence[str], name: str) -> None:
    """Raise ``InputError`` if a folder does not hold the images of a set; URLs are not checked.

    Args:
        images: folder, or URL.
        sample_ids: the first samples of the set; one file must exist, since others may be failed
            rows.
        name: name of the set.
    """
    if _is_url(images):
        return
    root = spelled_out(images)
    if not root.is_dir():
        raise InputError(
            f"--images {images}: no such folder, expected the folder of the images or the "
            "beginning of their URLs"
        )
    if not any((root / sample_id).is_file() for sample_id in sample_ids[:_N_TRIED]):
        raise InputError(
            f"--images {images}: has no file {sample_ids[0]}, the first sample of {name}: name the "
            "folder that was extracted (images of arrays, and those of --corrupt, have no files)"
        )


def _is_url(images: str) -> bool:
    """Whether images are URLs, possibly without a host, as Label Studio's local files are."""
    return "://" in images or "?" in images
