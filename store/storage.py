"""Bytes under keys: the one place that touches the disk, and the seam for object stores.

A key is a relative path with forward slashes. ``LocalStorage`` keeps each key in a file; a class
for object stores needs the same methods, and nothing else of the project changes.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from store.errors import NotFoundError, WriteError

TEMPORARY_SUFFIX = ".partial"
"""How a file is called until it is whole; a kill leaves these, and nothing reads them."""

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EROFS: "the file system is read-only: choose another place with --store",
    errno.EACCES: "no permission to write there: choose another place with --store",
    errno.EPERM: "no permission to write there: choose another place with --store",
    errno.EEXIST: "a part of that path is a file: choose another place with --store",
    errno.ENOTDIR: "a part of that path is a file: choose another place with --store",
}


def checksum(data: bytes) -> str:
    """SHA-256 of a file's content, the form in which receipts and cards keep it.

    Not a CRC-32C: a Zarr chunk ends with its own, and the CRC-32C of all such files is one and the
    same number, so that a chunk in another's place would pass.
    """
    return hashlib.sha256(data).hexdigest()


class Storage(Protocol):
    """Whole values under keys. A write is seen whole or not at all, and is durable on return."""

    @property
    def location(self) -> str:
        """The path or URL, for messages and for libraries that open it themselves."""

    def child(self, prefix: str) -> "Storage":
        """The storage below ``prefix``."""

    def read(self, key: str) -> bytes:
        """The value; raises ``NotFoundError``."""

    def write(self, key: str, data: bytes) -> None:
        """Put the value in place of whatever was there."""

    def create(self, key: str, data: bytes) -> bool:
        """Put the value only if the key is free; says whether it was."""

    def remove(self, key: str) -> None:
        """Forget the key; it may be absent."""

    def size(self, key: str) -> int | None:
        """Length of the value in bytes, ``None`` where there is none."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key below ``prefix``, sorted, unfinished writes included."""

    def folders(self, prefix: str = "") -> list[str]:
        """The names right below ``prefix`` that have keys below them, sorted."""


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """Keys are files below a folder: written beside, synced, renamed, folder synced."""

    root: str

    @property
    def location(self) -> str:
        """The folder."""
        return self.root

    def child(self, prefix: str) -> "LocalStorage":
        """The storage below ``prefix``."""
        return LocalStorage(str(Path(self.root, prefix)))

    def read(self, key: str) -> bytes:
        """The content of the file; raises ``NotFoundError``."""
        try:
            return Path(self.root, key).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.root}: there is no {key}") from error

    def write(self, key: str, data: bytes) -> None:
        """Replace the file as a whole; raises ``WriteError`` with the way out."""
        with self._beside(key, data) as (partial, place):
            partial.replace(place)
            _sync_folder(place.parent)

    def create(self, key: str, data: bytes) -> bool:
        """Write the file unless it exists; two that try at once never both succeed."""
        with self._beside(key, data) as (partial, place):
            try:
                os.link(partial, place)  # unlike a rename, a link refuses an existing name
            except FileExistsError:
                return False
            _sync_folder(place.parent)
            return True

    def remove(self, key: str) -> None:
        """Unlink the file; it may be absent."""
        place = Path(self.root, key)
        try:
            place.unlink(missing_ok=True)
        except OSError as error:
            raise _write_error(place, error) from error

    def size(self, key: str) -> int | None:
        """Size of the file in bytes, ``None`` where there is none."""
        try:
            return Path(self.root, key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every file below ``prefix``, as a sorted list of keys."""
        top = Path(self.root, prefix)
        names = (
            str(Path(folder, name).relative_to(self.root).as_posix())
            for folder, _, files in os.walk(top, onerror=_raise_unless_absent)
            for name in files
        )
        return iter(sorted(names))

    def folders(self, prefix: str = "") -> list[str]:
        """The names of the folders right below ``prefix``, sorted."""
        top = Path(self.root, prefix)
        return sorted(path.name for path in top.iterdir() if path.is_dir()) if top.is_dir() else []

    def _beside(self, key: str, data: bytes) -> "_Partial":
        return _Partial(Path(self.root, key), data)


class _Partial:
    """A synced file beside its place, gone at exit unless it was renamed."""

    def __init__(self, place: Path, data: bytes) -> None:
        self.place = place
        self.data = data
        self.partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")

    def __enter__(self) -> tuple[Path, Path]:
        try:
            _make_folders(self.place.parent)
            with self.partial.open("wb") as file:
                file.write(self.data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._clear()
            raise _write_error(self.place, error) from error
        return self.partial, self.place

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._clear()
        if isinstance(error, OSError) and not isinstance(error, WriteError):
            raise _write_error(self.place, error) from error

    def _clear(self) -> None:
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)


def _raise_unless_absent(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one: what is done would be done again."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _make_folders(folder: Path) -> None:
    """Make ``folder`` durable with its parents: a synced file in an unsynced folder can vanish."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(place: Path, error: OSError) -> WriteError:
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return WriteError(error.errno or errno.EIO, f"cannot write {place}: {reason}")
