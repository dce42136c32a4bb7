"""Values under keys: the interface to a folder or an object store.

A key is a relative path with forward slashes. ``LocalStorage`` keeps each value in a file,
``store.objects.ObjectStorage`` in an object; the rest of the project does not depend on which.
"""

import errno
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from store.disk import LOCAL_DISK, Disk
from store.errors import FormatError, NotFoundError, StoreError, SweptError, WriteError

STAGING = ".staging"
"""Prefix of staged values, which are never read; a crash may leave some behind."""

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EROFS: "the file system is read-only: choose another location",
    errno.EACCES: "permission denied: choose another location",
    errno.EPERM: "permission denied: choose another location",
    errno.ENOTDIR: "a part of that path is a file: choose another location",
}


def checksum(data: bytes) -> str:
    """SHA-256 of a file's content, as stored in receipts and cards.

    A CRC-32C would not do: a Zarr chunk ends with its own CRC, so the CRC-32C of every chunk file
    is the same number, and a chunk in the wrong place would pass.
    """
    return hashlib.sha256(data).hexdigest()


def leads_out(key: str) -> bool:
    """Whether a key, possibly written by the author of a store, points outside its storage."""
    path = PurePosixPath(key)
    return path.is_absolute() or ".." in path.parts or "\0" in key


class Storage(Protocol):
    """Whole values under keys. A write is atomic, and durable on return.

    A write has two halves: ``stage`` writes the value to a staging area that is never read, and
    ``publish`` gives it its key. ``sweep`` removes everything staged, so a driver that was
    replaced between the two halves can no longer publish.
    """

    @property
    def location(self) -> str:
        """Path or URL, for messages and for libraries that open it themselves."""

    def child(self, prefix: str) -> "Storage":
        """The storage below ``prefix``."""

    def read(self, key: str) -> bytes:
        """Read a value; raises ``NotFoundError``."""

    def write(self, key: str, data: bytes) -> None:
        """Write a value, replacing an existing one."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a value only if the key does not exist; returns whether it was written."""

    def stage(self, key: str, data: bytes) -> str:
        """Stage a value for this key; returns the name by which to publish it."""

    def stage_all(self, values: Mapping[str, bytes]) -> dict[str, str]:
        """Stage all values or none; returns key -> staged name."""

    def publish(self, staged: str, key: str) -> None:
        """Publish a staged value, replacing an existing one; raises ``SweptError``."""

    def publish_all(self, names: Mapping[str, str]) -> None:
        """Publish staged values in any order; if one fails, others may have been published."""

    def publish_new(self, staged: str, key: str) -> bool:
        """Publish a staged value only if the key does not exist; returns whether it was published.

        The staged value remains; ``drop`` it. Raises ``SweptError``.
        """

    def staged(self) -> list[str]:
        """Names of the staged values, sorted."""

    def drop(self, staged: str) -> None:
        """Remove a staged value; it may be missing."""

    def sweep(self) -> None:
        """Remove all staged values; called by a driver that has just taken the lease."""

    def remove(self, key: str) -> None:
        """Remove a key; it may be missing. A power failure may restore it until ``sync``."""

    def withdraw(self, keys: Sequence[str], check: Callable[[], None]) -> None:
        """Remove keys durably; they may be missing. Raises ``SweptError``.

        ``check`` is called, and may raise, at a point from which on a ``sweep`` by another driver
        stops the removal of the remaining keys.
        """

    def sync(self, prefix: str = "") -> None:
        """Make the existence of the keys directly below ``prefix`` durable, whoever wrote them."""

    def size(self, key: str) -> int | None:
        """Size of a value in bytes, or ``None`` if it does not exist."""

    def sizes(self) -> dict[str, int]:
        """Key -> size in bytes of every published value."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Keys of all published values below ``prefix``, sorted."""

    def folders(self, prefix: str = "") -> list[str]:
        """Names directly below ``prefix`` that have keys below them, sorted."""

    def log(self, key: str) -> "Log":
        """A text that one writer extends line by line."""


class Log(Protocol):
    """A text that grows by lines. It is never relied on: a crash may lose the last lines."""

    def exists(self) -> bool:
        """Whether anything was written."""

    def add(self, line: str) -> None:
        """Add a line; raises ``WriteError``."""

    def flush(self) -> None:
        """Make all lines visible to other processes; raises ``WriteError``."""


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """Keys are files below a folder: staged and synced, then renamed, and the folder synced."""

    root: str
    disk: Disk = LOCAL_DISK

    @property
    def location(self) -> str:
        """The folder."""
        return self.root

    def child(self, prefix: str) -> "LocalStorage":
        """The storage below ``prefix``."""
        return LocalStorage(str(Path(self.root, self._key(prefix))), self.disk)

    def read(self, key: str) -> bytes:
        """Read a file; raises ``NotFoundError``."""
        try:
            return self.disk.read(self._path(key))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.EISDIR):  # ELOOP: a link
                raise
            raise NotFoundError(f"{self.root}: there is no {key}") from error

    def write(self, key: str, data: bytes) -> None:
        """Replace a file atomically; raises ``WriteError`` with a remedy."""
        staged = self.stage(key, data)
        try:
            self.publish(staged, key)
        except BaseException:
            self.drop(staged)
            raise

    def create(self, key: str, data: bytes) -> bool:
        """Write a file unless it exists; two concurrent attempts never both succeed."""
        staged = self.stage(key, data)
        try:
            return self.publish_new(staged, key)
        finally:
            self.drop(staged)

    def stage(self, key: str, data: bytes) -> str:
        """Write and sync a file in the staging area; raises ``WriteError`` and then leaves nothing.

        Its name starts with the last part of the key, for people who find it there.
        """
        staged = f"{Path(key).name}.{self.disk.unused_name()}"
        try:
            with _as_write_error(self._path(key)):
                self._make_folders(Path(self._folder(STAGING)))
                self.disk.put(self._path(STAGING, staged), data)
        except WriteError:
            self.drop(staged)
            raise
        return staged

    def stage_all(self, values: Mapping[str, bytes]) -> dict[str, str]:
        """Write and sync a staged file for each value; if one fails, all are removed."""
        staged: dict[str, str] = {}
        try:
            for key, data in values.items():
                staged[key] = self.stage(key, data)
        except BaseException:
            for name in staged.values():
                self.drop(name)
            raise
        return staged

    def publish(self, staged: str, key: str) -> None:
        """Rename a staged file to its key; raises ``SweptError``, ``WriteError``."""
        place = Path(self._path(key))
        with _as_write_error(str(place)):
            self._make_folders(place.parent)
            with self._unless_swept(staged):
                self.disk.rename(self._path(STAGING, staged), str(place))
            self.disk.sync_folder(str(place.parent))

    def publish_all(self, names: Mapping[str, str]) -> None:
        """Rename staged files to their keys; raises ``SweptError``, ``WriteError``."""
        for key, staged in names.items():
            self.publish(staged, key)

    def publish_new(self, staged: str, key: str) -> bool:
        """Link a staged file to its key, unless it exists; ``SweptError``, ``WriteError``."""
        place = Path(self._path(key))
        with _as_write_error(str(place)):
            self._make_folders(place.parent)
            try:
                with self._unless_swept(staged):  # unlike a rename, a link refuses an existing name
                    self.disk.link(self._path(STAGING, staged), str(place))
            except FileExistsError:
                return False
            self.disk.sync_folder(str(place.parent))
        return True

    def staged(self) -> list[str]:
        """Names of the staged files, sorted."""
        top = self._folder(STAGING)
        return sorted(Path(path).relative_to(top).as_posix() for path in self.disk.files(top))

    def drop(self, staged: str) -> None:
        """Remove a staged file; if that fails, the next sweep removes it. It may be missing."""
        with suppress(OSError):
            self.disk.unlink(self._path(STAGING, staged))

    def sweep(self) -> None:
        """Remove all staged files; raises ``WriteError``."""
        for name in self.staged():
            self.remove(f"{STAGING}/{name}")
        for name in self.disk.folders(self._path(STAGING)):
            self._remove_folder(self._path(STAGING, name))

    def remove(self, key: str) -> None:
        """Remove a file; it may be missing."""
        with _as_write_error(self._path(key)), suppress(FileNotFoundError):
            self.disk.unlink(self._path(key))

    def withdraw(self, keys: Sequence[str], check: Callable[[], None]) -> None:
        """Move files into a staged folder, which a sweep removes, so that later moves fail.

        Raises ``SweptError``, ``WriteError``.
        """
        aside = self._path(STAGING, self.disk.unused_name())
        with _as_write_error(aside):
            self._make_folders(Path(self._folder(STAGING)))
            self.disk.make_folder(aside)
            try:
                check()
                for key in keys:
                    self._set_aside(key, aside)
            finally:
                with suppress(OSError):  # the next sweep removes it
                    self._remove_folder(aside)

    def sync(self, prefix: str = "") -> None:
        """Sync the folder if it exists; raises ``WriteError``."""
        with _as_write_error(self._path(prefix)), suppress(FileNotFoundError):
            self.disk.sync_folder(self._path(prefix))

    def size(self, key: str) -> int | None:
        """Size of a file in bytes, or ``None`` if it does not exist."""
        return self.disk.size(self._path(key))

    def sizes(self) -> dict[str, int]:
        """Key -> size in bytes; files that a driver renames in the meantime are skipped."""
        return {key: n for key in self.keys() if (n := self.size(key)) is not None}

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Keys of all files below ``prefix``, sorted, without the staged ones."""
        paths = self.disk.files(self._folder(prefix))
        keys = (Path(path).relative_to(self.root).as_posix() for path in paths)
        return iter(sorted(key for key in keys if not key.startswith(f"{STAGING}/")))

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below ``prefix``, sorted."""
        return sorted(name for name in self.disk.folders(self._folder(prefix)) if name != STAGING)

    def log(self, key: str) -> "FileLog":
        """A file that grows line by line."""
        return FileLog(Path(self._path(key)))

    def _key(self, *parts: str) -> PurePosixPath:
        """A key as a path; raises ``FormatError`` if it leads out of the root."""
        key = "/".join(parts)
        if leads_out(key):
            raise FormatError(f"{self.root}: {key!r} is not a key: it leads out of that folder")
        return PurePosixPath(key)

    def _path(self, *parts: str) -> str:
        """Path of a key; raises ``FormatError`` if it, or a link above it, leads outside."""
        key = self._key(*parts)
        for folder in list(key.parents)[:-1]:
            self._refuse_link(folder)
        return str(Path(self.root, key))

    def _folder(self, prefix: str) -> str:
        """Path of a folder to list; raises ``FormatError`` as ``_path`` does."""
        path = self._path(prefix)
        if prefix:  # the root itself may be a link
            self._refuse_link(PurePosixPath(prefix))
        return path

    def _refuse_link(self, folder: PurePosixPath) -> None:
        if self.disk.is_link(str(Path(self.root, folder))):
            raise FormatError(
                f"{self.root}/{folder} is a link, expected a folder: put the folder itself there"
            )

    def _set_aside(self, key: str, aside: str) -> None:
        path = self._path(key)
        try:
            self.disk.rename(path, str(Path(aside, Path(key).name)))
        except FileNotFoundError as error:
            if not self.disk.is_folder(aside):
                raise SweptError(
                    f"{self.root}: {key} was not removed: another driver has taken over"
                ) from error
        self.sync(str(Path(key).parent))

    def _remove_folder(self, path: str) -> None:
        """Remove a staged folder and its files, including files moved into it in the meantime."""
        while self.disk.is_folder(path):
            for file in self.disk.files(path):
                with suppress(FileNotFoundError):
                    self.disk.unlink(file)
            try:
                self.disk.remove_folder(path)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    @contextmanager
    def _unless_swept(self, staged: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise SweptError(
                f"{self.root}: {staged} was removed before it was published: another driver "
                "has taken over, or repaired the set"
            ) from error

    def _make_folders(self, folder: Path) -> None:
        """Create a folder and make it and its parents durable; otherwise synced files could vanish.

        An existing folder may not be durable: its creator may have crashed before syncing.
        """
        path = str(folder)
        is_known = path in self.disk.durable_folders and self.disk.is_folder(path)
        if is_known or folder.parent == folder:
            return
        self._make_folders(folder.parent)
        with suppress(FileExistsError):
            self.disk.make_folder(path)
        try:
            self.disk.sync_folder(str(folder.parent))
        except OSError as error:
            # Folders above the root may be unreadable, or may not support syncing.
            is_above = not folder.parent.is_relative_to(self.root)
            if not is_above or error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL):
                raise
        self.disk.durable_folders.add(path)


@dataclass(frozen=True, slots=True)
class FileLog:
    """A file of lines; it is not synced."""

    path: Path

    def exists(self) -> bool:
        """Whether the file exists."""
        return self.path.exists()

    def add(self, line: str) -> None:
        """Append a line; raises ``WriteError``."""
        with _as_write_error(str(self.path)):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def flush(self) -> None:
        """Do nothing: other processes can see every line already."""


@contextmanager
def _as_write_error(place: str) -> Iterator[None]:
    """Convert an ``OSError`` to a ``WriteError`` with a remedy."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise WriteError(error.errno or errno.EIO, f"cannot write {place}: {reason}") from error
