"""The calls of a file system that the store makes, and no others: the seam for a simulated one."""

import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    """Files and folders by path. Whatever goes wrong is an ``OSError`` with its number.

    A file is one with bytes of its own: links, pipes and devices are none, wherever they lead.
    """

    @property
    def durable_folders(self) -> set[str]:
        """Folders whose names this process has synced; it may forget them."""

    def unused_name(self) -> str:
        """A name that no other process will think of."""

    def read(self, path: str) -> bytes:
        """The content of a file."""

    def put(self, path: str, data: bytes) -> None:
        """Write a file, and sync its content. Its name is durable once the folder is synced."""

    def rename(self, path: str, target: str) -> None:
        """Give a file another name, in place of what had that name."""

    def link(self, path: str, target: str) -> None:
        """Give a file a second name; ``FileExistsError`` where that is taken."""

    def unlink(self, path: str) -> None:
        """Take a name away; ``FileNotFoundError`` where there is none."""

    def make_folder(self, path: str) -> None:
        """Make a folder in one that exists; ``FileExistsError`` where there is one."""

    def remove_folder(self, path: str) -> None:
        """Take an empty folder away; ``OSError`` where something is in it."""

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder durable."""

    def size(self, path: str) -> int | None:
        """Bytes of a file, ``None`` where there is none."""

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder."""

    def is_link(self, path: str) -> bool:
        """Whether the name stands for another place."""

    def files(self, top: str) -> list[str]:
        """The paths of all files below a folder, none where there is no folder."""

    def folders(self, top: str) -> list[str]:
        """The names of the folders right below a folder, none where there is none."""


def spelled_out(path: str | Path) -> Path:
    """The path with ``~`` as its home; as it is where there is no such home, to be not found."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's own way raises RuntimeError


class LocalDisk:
    """The file systems of this machine; there is one, ``LOCAL_DISK``, in every process."""

    def __init__(self) -> None:
        self.durable_folders: set[str] = set()

    def __reduce__(self) -> str:
        return "LOCAL_DISK"

    def unused_name(self) -> str:
        """A name that no other process will think of."""
        return secrets.token_hex(8)

    def read(self, path: str) -> bytes:
        """The content of a file."""
        # Without O_NONBLOCK one would wait at a pipe for whoever writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileNotFoundError(errno.ENOENT, "no file with bytes of its own", path)
            return file.read()

    def put(self, path: str, data: bytes) -> None:
        """Write a file, and sync its content. Its name is durable once the folder is synced."""
        with Path(path).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def rename(self, path: str, target: str) -> None:
        """Give a file another name, in place of what had that name."""
        Path(path).replace(target)

    def link(self, path: str, target: str) -> None:
        """Give a file a second name; ``FileExistsError`` where that is taken."""
        os.link(path, target)

    def unlink(self, path: str) -> None:
        """Take a name away; ``FileNotFoundError`` where there is none."""
        Path(path).unlink()

    def make_folder(self, path: str) -> None:
        """Make a folder in one that exists; ``FileExistsError`` where there is one."""
        Path(path).mkdir()

    def remove_folder(self, path: str) -> None:
        """Take an empty folder away; ``OSError`` where something is in it."""
        Path(path).rmdir()

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder durable."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def size(self, path: str) -> int | None:
        """Bytes of a file, ``None`` where there is none."""
        try:
            facts = Path(path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return facts.st_size if stat.S_ISREG(facts.st_mode) else None

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder."""
        return Path(path).is_dir()

    def is_link(self, path: str) -> bool:
        """Whether the name stands for another place."""
        return Path(path).is_symlink()

    def files(self, top: str) -> list[str]:
        """The paths of all files below a folder, none where there is no folder."""
        return [
            str(Path(folder, name))
            for folder, _, names in os.walk(top, onerror=_raise_unless_absent)
            for name in names
        ]

    def folders(self, top: str) -> list[str]:
        """The names of the folders right below a folder, none where there is none."""
        place = Path(top)
        return [path.name for path in place.iterdir() if path.is_dir()] if place.is_dir() else []


LOCAL_DISK = LocalDisk()


def _raise_unless_absent(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one: what is done would be done again."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
