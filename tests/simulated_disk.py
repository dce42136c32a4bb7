"""A disk in memory that loses unsynced data at a power failure, and fails on request.

A file's content survives once the file was synced, its name once its folder was. Every other change
is kept or lost independently, in no order: a file may exist with half of its bytes, or a later
rename without an earlier one. A rename between folders is one change, as in journaling file
systems.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from random import Random


@dataclass(eq=False)
class File:
    """Content of a file; with ``is_synced`` it survives a power failure."""

    data: bytes = b""
    is_synced: bool = False


FOLDER = File(is_synced=True)
"""The entry of a folder."""

Names = dict[str, File]


@dataclass(frozen=True)
class Change:
    """Names added (or removed, if None), durable once one of the folders is synced."""

    folders: frozenset[str]
    names: dict[str, File | None]


@dataclass
class SimulatedDisk:
    """Implements ``store.disk.Disk``.

    ``before`` is called before each step of each operation, ``moved`` when a file got a name by a
    rename or a link.
    """

    rng: Random
    before: Callable[[str, str], None] = lambda operation, path: None
    moved: Callable[[str, str], None] = lambda operation, target: None
    names: Names = field(default_factory=lambda: {"/": FOLDER})
    durable_folders: set[str] = field(default_factory=set)
    n_names: int = 0

    def __post_init__(self) -> None:
        self._durable = dict(self.names)
        self._pending: list[Change] = []

    def unused_name(self) -> str:
        """A numbered name, so that a seed reproduces the same names."""
        self.n_names += 1
        return f"{self.n_names:05d}"

    def read(self, path: str) -> bytes:
        self.before("read", path)
        return self._file(path).data

    def put(self, path: str, data: bytes) -> None:
        self.before("create", path)
        self._require_folder(path)
        file = self.names.get(path)
        if file is None:
            file = File()
            self._change({path: file})
        file.data, file.is_synced = b"", False
        for size in (len(data) // 2, len(data)):
            self.before("write", path)
            file.data = data[:size]
        self.before("sync", path)
        file.is_synced = True

    def rename(self, path: str, target: str) -> None:
        self.before("rename", path)
        file = self._file(path)
        self._require_folder(target)
        self._change({path: None, target: file})
        self.moved("rename", target)

    def link(self, path: str, target: str) -> None:
        self.before("link", path)
        file = self._file(path)
        self._require_folder(target)
        if target in self.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        self._change({target: file})
        self.moved("link", target)

    def unlink(self, path: str) -> None:
        self.before("unlink", path)
        self._file(path)
        self._change({path: None})

    def make_folder(self, path: str) -> None:
        self.before("make folder", path)
        self._require_folder(path)
        if path in self.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._change({path: FOLDER})

    def remove_folder(self, path: str) -> None:
        self.before("remove folder", path)
        if not self.is_folder(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if any(name.startswith(f"{path}/") for name in self.names):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._change({path: None})

    def sync_folder(self, path: str) -> None:
        self.before("sync folder", path)
        if not self.is_folder(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        kept = []
        for change in self._pending:
            if path in change.folders:
                _apply(change, self._durable)
            else:
                kept.append(change)
        self._pending = kept

    def size(self, path: str) -> int | None:
        self.before("size", path)
        file = self.names.get(path)
        return None if file is None or file is FOLDER else len(file.data)

    def is_link(self, path: str) -> bool:
        return False

    def is_folder(self, path: str) -> bool:
        return self.names.get(path) is FOLDER

    def files(self, top: str) -> list[str]:
        self.before("list", top)
        below = [path for path in self.names if path.startswith(f"{top.rstrip('/')}/")]
        return sorted(path for path in below if self.names[path] is not FOLDER)

    def folders(self, top: str) -> list[str]:
        self.before("list", top)
        folders = (PurePosixPath(path) for path, file in self.names.items() if file is FOLDER)
        return sorted(path.name for path in folders if str(path.parent) == top)

    def rot(self, path: str, data: bytes | None) -> None:
        """Change the content of a file, or remove it for good, without any operation."""
        if data is None:
            for names in (self.names, self._durable):
                names.pop(path, None)
            # Pending changes must not restore it.
            self._pending = [change for change in self._pending if path not in change.names]
        else:
            self._file(path).data = data

    def lose_power(self) -> None:
        """Simulate a power failure: keep what is durable, and a random part of the rest."""
        for change in self._pending:
            if self.rng.random() < 0.5:
                _apply(change, self._durable)
        self._pending = []
        self.names = {
            path: file
            for path, file in self._durable.items()
            if all(str(above) in self._durable for above in PurePosixPath(path).parents)
        }
        for file in {id(file): file for file in self.names.values()}.values():
            if not file.is_synced:
                size = self.rng.choice([0, len(file.data) // 3, len(file.data)])
                file.data = self.rng.choice([file.data[:size], bytes(len(file.data))])
                file.is_synced = True
        self._durable = dict(self.names)
        self.durable_folders.clear()

    def _change(self, names: dict[str, File | None]) -> None:
        folders = frozenset(str(PurePosixPath(path).parent) for path in names)
        change = Change(folders, names)
        self._pending.append(change)
        _apply(change, self.names)

    def _file(self, path: str) -> File:
        file = self.names.get(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if file is FOLDER:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return file

    def _require_folder(self, path: str) -> None:
        above = str(PurePosixPath(path).parent)
        if not self.is_folder(above):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), above)


def _apply(change: Change, names: Names) -> None:
    for path, file in change.names.items():
        if file is None:
            names.pop(path, None)
        else:
            names[path] = file
