"""The file system calls that the store makes, as a protocol that tests can simulate."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    """Files and folders by path. Every failure is an ``OSError`` with its error number.

    Only regular files count as files: links, pipes and devices do not, whatever they lead to.
    """

    @property
    def durable_folders(self) -> set[str]:
        """Folders whose entries this process has synced; entries may be dropped."""

    def unused_name(self) -> str:
        """A file name that no other process will generate."""

    def read(self, path: str) -> bytes:
        """Read a file."""

    def put(self, path: str, data: bytes) -> None:
        """Write a file and sync its content. Its name is durable once the folder is synced."""

    def rename(self, path: str, target: str) -> None:
        """Rename a file, replacing the target if it exists."""

    def link(self, path: str, target: str) -> None:
        """Create a hard link; raises ``FileExistsError`` if the target exists."""

    def unlink(self, path: str) -> None:
        """Remove a file name; raises ``FileNotFoundError`` if it does not exist."""

    def make_folder(self, path: str) -> None:
        """Create a folder in an existing one; raises ``FileExistsError`` if it exists."""

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder; raises ``OSError`` if it is not empty."""

    def sync_folder(self, path: str) -> None:
        """Make the entries of a folder durable."""

    def size(self, path: str) -> int | None:
        """Size of a file in bytes, or ``None`` if it does not exist."""

    def is_folder(self, path: str) -> bool:
        """Whether the folder exists."""

    def is_link(self, path: str) -> bool:
        """Whether the path is a symbolic link."""

    def files(self, top: str) -> list[str]:
        """Paths of all files below a folder; empty if the folder does not exist."""

    def folders(self, top: str) -> list[str]:
        """Names of the folders directly below a folder; empty if the folder does not exist."""


def spelled_out(path: str | Path) -> Path:
    """Expand ``~`` to the home folder; unchanged if there is no such home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's own way raises RuntimeError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside a file; what is written there replaces the file at the end.

    If the block raises, the file stays as it was. If the path is a link, its target is replaced.
    """
    target = path.resolve()
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


class LocalDisk:
    """The file systems of this machine. Use the single instance, ``LOCAL_DISK``."""

    def __init__(self) -> None:
        self.durable_folders: set[str] = set()

    def __reduce__(self) -> str:
        return "LOCAL_DISK"

    def unused_name(self) -> str:
        """A file name that no other process will generate."""
        return secrets.token_hex(8)

    def read(self, path: str) -> bytes:
        """Read a file."""
        # Without O_NONBLOCK, opening a pipe would block until another process writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
            return file.read()

    def put(self, path: str, data: bytes) -> None:
        """Write a file and sync its content. Its name is durable once the folder is synced."""
        with Path(path).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def rename(self, path: str, target: str) -> None:
        """Rename a file, replacing the target if it exists."""
        Path(path).replace(target)

    def link(self, path: str, target: str) -> None:
        """Create a hard link; raises ``FileExistsError`` if the target exists."""
        os.link(path, target)

    def unlink(self, path: str) -> None:
        """Remove a file name; raises ``FileNotFoundError`` if it does not exist."""
        Path(path).unlink()

    def make_folder(self, path: str) -> None:
        """Create a folder in an existing one; raises ``FileExistsError`` if it exists."""
        Path(path).mkdir()

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder; raises ``OSError`` if it is not empty."""
        Path(path).rmdir()

    def sync_folder(self, path: str) -> None:
        """Make the entries of a folder durable."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def size(self, path: str) -> int | None:
        """Size of a file in bytes, or ``None`` if it does not exist."""
        try:
            facts = Path(path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return facts.st_size if stat.S_ISREG(facts.st_mode) else None

    def is_folder(self, path: str) -> bool:
        """Whether the folder exists."""
        return Path(path).is_dir()

    def is_link(self, path: str) -> bool:
        """Whether the path is a symbolic link."""
        return Path(path).is_symlink()

    def files(self, top: str) -> list[str]:
        """Paths of all files below a folder; empty if the folder does not exist."""
        return [
            str(Path(folder, name))
            for folder, _, names in os.walk(top, onerror=_raise_unless_absent)
            for name in names
        ]

    def folders(self, top: str) -> list[str]:
        """Names of the folders directly below a folder; empty if the folder does not exist."""
        place = Path(top)
        return [path.name for path in place.iterdir() if path.is_dir()] if place.is_dir() else []


LOCAL_DISK = LocalDisk()


def _raise_unless_absent(error: OSError) -> None:
    """A folder that cannot be listed must not look empty: finished work would be recomputed."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
