"""Bytes under keys: the seam for object stores, above that for file systems.

A key is a relative path with forward slashes. ``LocalStorage`` keeps each key in a file,
``store.objects.ObjectStorage`` in an object; nothing else of the project knows which.
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


def leads_out(key: str) -> bool:
    """Whether a key, as whoever has made a store may have written it, names a place outside."""
    path = PurePosixPath(key)
    return path.is_absolute() or ".." in path.parts or "\0" in key


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

    def publish_all(self, names: Mapping[str, str]) -> None:
        """Publish staged values by their keys, in any order; where one fails, some may be there."""

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

    def sizes(self) -> dict[str, int]:
        """Key -> length in bytes, of every value that has a key."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key below ``prefix``, sorted; staged values have none yet."""

    def folders(self, prefix: str = "") -> list[str]:
        """The names right below ``prefix`` that have keys below them, sorted."""

    def log(self, key: str) -> "Log":
        """A value that one writer lets grow line by line."""


class Log(Protocol):
    """A text that grows by lines. Nothing depends on it: a kill may take the last lines."""

    def exists(self) -> bool:
        """Whether it was begun."""

    def add(self, line: str) -> None:
        """Add a line; raises ``WriteError``."""

    def flush(self) -> None:
        """Let others see all of it; raises ``WriteError``."""


def storage_at(location: str) -> Storage:
    """The storage at a folder or a URL; raises ``FormatError`` for a URL that can be none."""
    if "://" not in location:
        return LocalStorage(location)
    from store.objects import ObjectStorage

    return ObjectStorage(location)


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
        return LocalStorage(str(Path(self.root, self._key(prefix))), self.disk)

    def read(self, key: str) -> bytes:
        """The content of the file; raises ``NotFoundError``."""
        try:
            return self.disk.read(self._path(key))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.EISDIR):  # a link is none
                raise
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
                self._make_folders(Path(self._folder(STAGING)))
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
        place = Path(self._path(key))
        with _told(str(place)):
            self._make_folders(place.parent)
            with self._unless_swept(staged):
                self.disk.rename(self._path(STAGING, staged), str(place))
            self.disk.sync_folder(str(place.parent))

    def publish_all(self, names: Mapping[str, str]) -> None:
        """Rename staged files into their places; raises ``SweptError``, ``WriteError``."""
        for key, staged in names.items():
            self.publish(staged, key)

    def publish_new(self, staged: str, key: str) -> bool:
        """Link a staged file to its place unless that is taken; ``SweptError``, ``WriteError``."""
        place = Path(self._path(key))
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
        top = self._folder(STAGING)
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
            self._make_folders(Path(self._folder(STAGING)))
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

    def sizes(self) -> dict[str, int]:
        """Key -> length in bytes; a driver may rename files meanwhile."""
        return {key: n for key in self.keys() if (n := self.size(key)) is not None}

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every file below ``prefix`` but the staged ones, as a sorted list of keys."""
        paths = self.disk.files(self._folder(prefix))
        keys = (Path(path).relative_to(self.root).as_posix() for path in paths)
        return iter(sorted(key for key in keys if not key.startswith(f"{STAGING}/")))

    def folders(self, prefix: str = "") -> list[str]:
        """The names of the folders right below ``prefix``, sorted."""
        return sorted(name for name in self.disk.folders(self._folder(prefix)) if name != STAGING)

    def log(self, key: str) -> "FileLog":
        """A file that grows line by line."""
        return FileLog(Path(self._path(key)))

    def _key(self, *parts: str) -> PurePosixPath:
        """A key as a path; raises ``FormatError`` where it leads out of the root."""
        key = "/".join(parts)
        if leads_out(key):
            raise FormatError(f"{self.root}: {key!r} leads out of that folder: it is no key")
        return PurePosixPath(key)

    def _path(self, *parts: str) -> str:
        """The path of a key; raises ``FormatError`` where that, or a link above it, leads out."""
        key = self._key(*parts)
        for folder in list(key.parents)[:-1]:
            self._refuse_link(folder)
        return str(Path(self.root, key))

    def _folder(self, prefix: str) -> str:
        """The path of a folder that is to be listed; raises ``FormatError`` likewise."""
        path = self._path(prefix)
        if prefix:  # the root itself may lie elsewhere
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


@dataclass(frozen=True, slots=True)
class FileLog:
    """A file of lines, not synced."""

    path: Path

    def exists(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def add(self, line: str) -> None:
        """Append a line; raises ``WriteError``."""
        with _told(str(self.path)):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def flush(self) -> None:
        """Others see every line already."""


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
