"""Bytes under keys: the seam for object stores, above that for file systems.

A key is a relative path with forward slashes. ``LocalStorage`` keeps each key in a file; a class
for object stores needs the same methods, and nothing else of the project changes.
"""

import errno
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from store.disk import LOCAL_DISK, Disk
from store.errors import NotFoundError, StoreError, SweptError, WriteError

STAGING = ".staging"
"""Where values wait to be published; a kill leaves some there, and nothing reads them."""

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EROFS: "the file system is read-only: choose another place with --store",
    errno.EACCES: "no permission to write there: choose another place with --store",
    errno.EPERM: "no permission to write there: choose another place with --store",
    errno.ENOTDIR: "a part of that path is a file: choose another place with --store",
}


def checksum(data: bytes) -> str:
    """SHA-256 of a file's content, the form in which receipts and cards keep it.

    Not a CRC-32C: a Zarr chunk ends with its own, and the CRC-32C of all such files is one and the
    same number, so that a chunk in another's place would pass.
    """
    return hashlib.sha256(data).hexdigest()


class Storage(Protocol):
    """Whole values under keys. A write is seen whole or not at all, and is durable on return.

    A write has two halves. ``stage`` keeps the value where nobody looks, ``publish`` gives it its
    key. Between them lies the fence: ``sweep`` drops whatever is staged, and who had staged it can
    publish no more.
    """

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

    def stage(self, key: str, data: bytes) -> str:
        """Keep a value that is to have this key; gives the name to publish it by."""

    def stage_all(self, values: Mapping[str, bytes]) -> dict[str, str]:
        """Stage values by their keys, or none of them; gives the names by key."""

    def publish(self, staged: str, key: str) -> None:
        """Put a staged value in place of whatever was there; raises ``SweptError``."""

    def publish_new(self, staged: str, key: str) -> bool:
        """Put a staged value only if the key is free; says whether it was; ``SweptError``.

        The staged value stays; ``drop`` it.
        """

    def staged(self) -> list[str]:
        """The names of what is staged, sorted."""

    def drop(self, staged: str) -> None:
        """Forget a staged value; it may be gone."""

    def sweep(self) -> None:
        """Drop all that is staged; for who has just taken the lease."""

    def remove(self, key: str) -> None:
        """Forget the key; it may be absent. A power cut may bring it back, until ``sync``."""

    def withdraw(self, keys: Sequence[str], check: Callable[[], None]) -> None:
        """Forget the keys, durably; they may be absent. Raises ``SweptError``.

        The fence for what is taken away: ``check`` is asked, and may raise, once a ``sweep`` would
        stop whatever of this comes after it.
        """

    def sync(self, prefix: str = "") -> None:
        """Make durable which keys there are right below ``prefix``, whoever wrote them."""

    def size(self, key: str) -> int | None:
        """Length of the value in bytes, ``None`` where there is none."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key below ``prefix``, sorted; staged values have none yet."""

    def folders(self, prefix: str = "") -> list[str]:
        """The names right below ``prefix`` that have keys below them, sorted."""


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """Keys are files below a folder: staged and synced, then renamed, the folder synced."""

    root: str
    disk: Disk = LOCAL_DISK

    @property
    def location(self) -> str:
        """The folder."""
        return self.root

    def child(self, prefix: str) -> "LocalStorage":
        """The storage below ``prefix``."""
        return LocalStorage(self._path(prefix), self.disk)

    def read(self, key: str) -> bytes:
        """The content of the file; raises ``NotFoundError``."""
        try:
            return self.disk.read(self._path(key))
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.root}: there is no {key}") from error

    def write(self, key: str, data: bytes) -> None:
        """Replace the file as a whole; raises ``WriteError`` with the way out."""
        staged = self.stage(key, data)
        try:
            self.publish(staged, key)
        except BaseException:
            self.drop(staged)
            raise

    def create(self, key: str, data: bytes) -> bool:
        """Write the file unless it exists; two that try at once never both succeed."""
        staged = self.stage(key, data)
        try:
            return self.publish_new(staged, key)
        finally:
            self.drop(staged)

    def stage(self, key: str, data: bytes) -> str:
        """Write a synced file where nobody looks; raises ``WriteError``, and leaves nothing then.

        It is named after its key, for people who find it there.
        """
        staged = f"{Path(key).name}.{self.disk.unused_name()}"
        try:
            with _told(self._path(key)):
                self._make_folders(Path(self.root, STAGING))
                self.disk.put(self._path(STAGING, staged), data)
        except WriteError:
            self.drop(staged)
            raise
        return staged

    def stage_all(self, values: Mapping[str, bytes]) -> dict[str, str]:
        """Write a synced file for each value; where one fails, above all on a full disk, none."""
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
        """Rename a staged file into its place; raises ``SweptError``, ``WriteError``."""
        place = Path(self.root, key)
        with _told(str(place)):
            self._make_folders(place.parent)
            with self._unless_swept(staged):
                self.disk.rename(self._path(STAGING, staged), str(place))
            self.disk.sync_folder(str(place.parent))

    def publish_new(self, staged: str, key: str) -> bool:
        """Link a staged file to its place unless that is taken; ``SweptError``, ``WriteError``."""
        place = Path(self.root, key)
        with _told(str(place)):
            self._make_folders(place.parent)
            try:
                with self._unless_swept(staged):  # unlike a rename, a link refuses an existing name
                    self.disk.link(self._path(STAGING, staged), str(place))
            except FileExistsError:
                return False
            self.disk.sync_folder(str(place.parent))
        return True

    def staged(self) -> list[str]:
        """The names of what is staged, sorted."""
        top = self._path(STAGING)
        return sorted(Path(path).relative_to(top).as_posix() for path in self.disk.files(top))

    def drop(self, staged: str) -> None:
        """Unlink a staged file; it may be gone, and if it cannot be it waits for the next sweep."""
        with suppress(OSError):
            self.disk.unlink(self._path(STAGING, staged))

    def sweep(self) -> None:
        """Unlink all that is staged; raises ``WriteError``."""
        for name in self.staged():
            self.remove(f"{STAGING}/{name}")
        for name in self.disk.folders(self._path(STAGING)):
            self._remove_folder(self._path(STAGING, name))

    def remove(self, key: str) -> None:
        """Unlink the file; it may be absent."""
        with _told(self._path(key)), suppress(FileNotFoundError):
            self.disk.unlink(self._path(key))

    def withdraw(self, keys: Sequence[str], check: Callable[[], None]) -> None:
        """Rename the files into a staged folder, which a sweep removes: then there is no way there.

        Raises ``SweptError``, ``WriteError``.
        """
        aside = self._path(STAGING, self.disk.unused_name())
        with _told(aside):
            self._make_folders(Path(self.root, STAGING))
            self.disk.make_folder(aside)
            try:
                check()
                for key in keys:
                    self._set_aside(key, aside)
            finally:
                with suppress(OSError):  # the next sweep has it
                    self._remove_folder(aside)

    def sync(self, prefix: str = "") -> None:
        """Sync the folder, if it is there; raises ``WriteError``."""
        with _told(self._path(prefix)), suppress(FileNotFoundError):
            self.disk.sync_folder(self._path(prefix))

    def size(self, key: str) -> int | None:
        """Size of the file in bytes, ``None`` where there is none."""
        return self.disk.size(self._path(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every file below ``prefix`` but the staged ones, as a sorted list of keys."""
        paths = self.disk.files(self._path(prefix))
        keys = (Path(path).relative_to(self.root).as_posix() for path in paths)
        return iter(sorted(key for key in keys if not key.startswith(f"{STAGING}/")))

    def folders(self, prefix: str = "") -> list[str]:
        """The names of the folders right below ``prefix``, sorted."""
        return sorted(name for name in self.disk.folders(self._path(prefix)) if name != STAGING)

    def _path(self, *parts: str) -> str:
        return str(Path(self.root, *parts))

    def _set_aside(self, key: str, aside: str) -> None:
        path = self._path(key)
        try:
            self.disk.rename(path, str(Path(aside, Path(key).name)))
        except FileNotFoundError as error:
            if not self.disk.is_folder(aside):
                raise SweptError(
                    f"{self.root}: {key} is not taken away: another driver has taken over"
                ) from error
        self.sync(str(Path(key).parent))

    def _remove_folder(self, path: str) -> None:
        """Remove a staged folder with what is in it, and with what is renamed into it meanwhile."""
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
                f"{self.root}: {staged} was swept away before it was published: another driver "
                "has taken over, or repaired the set"
            ) from error

    def _make_folders(self, folder: Path) -> None:
        """Make a folder durable with its parents: a synced file in one that is not can vanish.

        That a folder is there proves nothing: who made it may have died before it was synced.
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
            # Above our root there may be folders that we cannot open, or that cannot be synced.
            is_above = not folder.parent.is_relative_to(self.root)
            if not is_above or error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL):
                raise
        self.disk.durable_folders.add(path)


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Make a ``WriteError``, with the way out, of whatever the disk says."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise WriteError(error.errno or errno.EIO, f"cannot write {place}: {reason}") from error
