"""The storage at a location: files below a folder, or objects below a URL."""

from store.storage import LocalStorage, Storage


def storage_at(location: str) -> Storage:
    """The storage at a folder or URL; raises ``FormatError`` for an unsuitable URL."""
    if "://" not in location:
        return LocalStorage(location)
    from store.objects import ObjectStorage  # fsspec takes a while to import

    return ObjectStorage(location)
