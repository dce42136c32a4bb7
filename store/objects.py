"""Values as objects of a bucket, ``s3://bucket/prefix``, or of whatever else fsspec opens by URL.

What the protocol needs of such a store: a read sees the last write, a put can be refused where the
key is taken, and a copy gives a whole object a second key or fails. S3, Google Cloud Storage and
Azure have these. Listings may lag behind, by less than a lease takes to expire.
"""

import errno
import math
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import PurePosixPath
from typing import Any, TypeVar

import fsspec

from store.errors import FormatError, NotFoundError, StoreError, SweptError, WriteError
from store.storage import STAGING, leads_out

T = TypeVar("T")

WAITS_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Between the tries of a request that may do better; each is shortened by chance."""

LOG_EVERY_S = 5.0
"""Objects cannot grow: a log is written anew so often at most."""

N_REQUESTS = 8
"""At once, where a shard has many files."""

_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_LASTING = (*_ABSENT, FileExistsError, PermissionError)
"""Errors that another try does not mend."""

_BUGS = (AttributeError, LookupError, TypeError)
"""Ours or a library's, and no matter of the store's."""

_PASSING = {"HTTPClientError", "ClientConnectionError", "ClientPayloadError", "IncompleteReadError"}
"""Names of errors of botocore and aiohttp that are no ``OSError`` and may pass all the same."""


@dataclass(frozen=True, slots=True)
class ObjectStorage:
    """Keys are objects below a URL. What is staged lies below ``.staging``; a copy publishes it.

    An empty object counts as none: so a key is withdrawn by a copy too, which a sweep stops; a
    removal could come late, and take away what a successor has put there.

    Only the URL is held: every process finds its own credentials, in its environment or where the
    cloud's tools keep them, so that none is ever in a plan, a receipt, a journal or a message.
    """

    url: str

    def __post_init__(self) -> None:
        scheme, _, place = self.url.partition("://")
        is_plain = re.fullmatch("[a-z][a-z0-9.+-]*", scheme) and not re.search("[?#]", place)
        if not is_plain or "@" in place.split("/")[0]:
            raise FormatError(  # without the URL: it may hold a password
                "that URL cannot hold a store: expected scheme://bucket/prefix, found one with a "
                "user, options or many schemes; credentials and options come from the environment"
            )
        if "" in place.split("/") or ".." in place.split("/"):
            raise FormatError(f"{self.url} cannot hold a store: expected scheme://bucket/prefix")

    @property
    def location(self) -> str:
        """The URL."""
        return self.url

    def child(self, prefix: str) -> "ObjectStorage":
        """The storage below ``prefix``."""
        return ObjectStorage(f"{self.url}/{prefix}")

    def read(self, key: str) -> bytes:
        """The object; raises ``NotFoundError``, and ``OSError`` where the store does not answer."""
        try:
            data = self._asked(key, lambda: self._get(key))
        except _ABSENT:
            data = b""
        if not data:
            raise NotFoundError(f"{self.url}: there is no {key}")
        return data

    def write(self, key: str, data: bytes) -> None:
        """Put the object in place of whatever was there; raises ``WriteError``."""
        self._changed(key, lambda: self._files.pipe_file(self._path(key), data))

    def create(self, key: str, data: bytes) -> bool:
        """Put the object unless there is one; of two that try at once one is refused."""

        def put() -> bool:
            try:
                self._files.pipe_file(self._path(key), data, mode="create")
            except Exception:
                # Stores say that a key is taken in many ways; and where the answer to a try got
                # lost, it may be by ourselves.
                if not self._files.exists(self._path(key)):
                    raise
                return self._get(key) == data
            return True

        return self._changed(key, put)

    def stage(self, key: str, data: bytes) -> str:
        """Put the object where nobody looks; raises ``WriteError``."""
        return self.stage_all({key: data})[key]

    def stage_all(self, values: Mapping[str, bytes]) -> dict[str, str]:
        """Put the objects where nobody looks, some at once; where one fails none stays."""
        names = {key: f"{PurePosixPath(key).name}.{secrets.token_hex(8)}" for key in values}
        try:
            _each(lambda key: self.write(f"{STAGING}/{names[key]}", values[key]), values)
        except BaseException:
            _each(self.drop, names.values())
            raise
        return names

    def publish(self, staged: str, key: str) -> None:
        """Copy a staged object to its key; raises ``SweptError``, ``WriteError``."""
        self.publish_all({key: staged})

    def publish_all(self, names: Mapping[str, str]) -> None:
        """Copy staged objects to their keys, some at once; raises ``SweptError``, ``WriteError``.

        A copy takes place in the store, in one step: that of an object which was swept fails,
        however late the request comes.
        """
        _each(lambda key: self._changed(key, lambda: self._copy(names[key], key)), names)
        _each(self.drop, names.values())

    def publish_new(self, staged: str, key: str) -> bool:
        """Copy a staged object to its key unless that is taken; ``SweptError``, ``WriteError``.

        Who sweeps puts nothing into place before: so no two can find the key free and copy. S3 is
        asked to refuse that as well.
        """
        is_s3 = self.url.startswith(("s3:", "s3a:"))

        def copy() -> bool:
            there = self._length(key)
            if there:
                return self._get(key) == self._get(f"{STAGING}/{staged}")  # an answer got lost
            is_refusable = is_s3 and there is None  # not where an empty one is to be replaced
            self._copy(staged, key, **({"IfNoneMatch": "*"} if is_refusable else {}))
            return True

        return self._changed(key, copy)

    def staged(self) -> list[str]:
        """The names of what is staged, sorted."""
        return [PurePosixPath(key).name for key in self._listed(STAGING, least=0)]

    def drop(self, staged: str) -> None:
        """Remove a staged object; it may be gone, and if it stays it waits for the next sweep."""
        with suppress(WriteError):
            self.remove(f"{STAGING}/{staged}")

    def sweep(self) -> None:
        """Remove all that is staged; raises ``WriteError``."""
        _each(lambda name: self.remove(f"{STAGING}/{name}"), self.staged())

    def remove(self, key: str) -> None:
        """Remove the object; it may be absent."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._files.rm_file(self._path(key))

        self._changed(key, remove)

    def withdraw(self, keys: Sequence[str], check: Callable[[], None]) -> None:
        """Copy a staged empty object to the keys; raises ``SweptError``, ``WriteError``."""
        empty = self.stage("empty", b"")
        try:
            check()
            for key in keys:
                if self.size(key) is not None:
                    self._changed(key, partial(self._copy, empty, key))
        finally:
            self.drop(empty)

    def sync(self, prefix: str = "") -> None:
        """What was put is durable."""

    def size(self, key: str) -> int | None:
        """Size of the object in bytes, ``None`` where there is none."""
        return self._asked(key, lambda: self._length(key)) or None

    def sizes(self) -> dict[str, int]:
        """Key -> length in bytes, from listings alone."""
        return {key: n for key, n in self._listed("").items() if not key.startswith(f"{STAGING}/")}

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every object below ``prefix`` but the staged ones, as a sorted list of keys."""
        return (key for key in self._listed(prefix) if not key.startswith(f"{STAGING}/"))

    def folders(self, prefix: str = "") -> list[str]:
        """The names right below ``prefix`` that have objects below them, sorted."""
        try:
            found = self._asked(prefix, lambda: self._files.ls(self._path(prefix), detail=True))
        except _ABSENT:
            return []
        names = {PurePosixPath(f["name"]).name for f in found if f["type"] == "directory"}
        return sorted(names - {STAGING})

    def log(self, key: str) -> "ObjectLog":
        """An object that is written anew, at times, with more lines."""
        return ObjectLog(self, key)

    @property
    def _files(self) -> Any:  # Any: fsspec has no types
        return _file_system(self.url.partition("://")[0], os.getpid())

    def _path(self, key: str) -> str:
        if leads_out(key):
            raise FormatError(f"{self.url}: {key!r} leads out of that place: it is no key")
        return f"{self.url}/{key}".rstrip("/")

    def _get(self, key: str) -> bytes:
        data: bytes = self._files.cat_file(self._path(key))
        return data

    def _listed(self, prefix: str, least: int = 1) -> dict[str, int]:
        """Sorted keys and their lengths, of objects with at least so many bytes."""
        root = self._files._strip_protocol(self.url)
        found = self._asked(prefix, lambda: self._files.find(self._path(prefix), detail=True))
        sizes = {path.removeprefix(f"{root}/"): facts["size"] for path, facts in found.items()}
        return {key: int(sizes[key]) for key in sorted(sizes) if sizes[key] >= least}

    def _length(self, key: str) -> int | None:
        """Bytes of an object, 0 of one that was withdrawn, ``None`` where there never was one."""
        try:
            facts = self._files.info(self._path(key))
        except _ABSENT:
            return None
        return int(facts["size"]) if facts["type"] == "file" else None

    def _copy(self, staged: str, key: str, **condition: str) -> None:
        try:
            self._files.cp_file(self._path(f"{STAGING}/{staged}"), self._path(key), **condition)
        except FileNotFoundError as error:
            raise SweptError(
                f"{self.url}: {staged} was swept away before it was published: another driver "
                "has taken over, or repaired the set"
            ) from error

    def _asked(self, key: str, request: Callable[[], T]) -> T:
        """What a request gives; ``FileNotFoundError`` or its kin, ``OSError`` with the place."""
        try:
            return _tried(request)
        except (StoreError, *_ABSENT, *_BUGS):
            raise
        except Exception as error:
            raise OSError(errno.EIO, _line(error), f"{self.url}/{key}") from error

    def _changed(self, key: str, request: Callable[[], T]) -> T:
        """What a request gives; whatever goes wrong is a ``WriteError`` with the place."""
        try:
            return _tried(request)
        except (StoreError, *_BUGS):
            raise
        except Exception as error:
            number = getattr(error, "errno", None) or errno.EIO
            raise WriteError(number, f"cannot write {self.url}/{key}: {_line(error)}") from error


@dataclass(slots=True)
class ObjectLog:
    """The lines so far, and when they were written last."""

    storage: ObjectStorage
    key: str
    lines: list[str] = field(default_factory=list)
    written: float = -math.inf

    def exists(self) -> bool:
        """Whether there is a line."""
        return bool(self.lines)

    def add(self, line: str) -> None:
        """Keep a line, and write all of them unless that was done just now; ``WriteError``."""
        self.lines.append(line)
        if time.monotonic() - self.written >= LOG_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write all lines; raises ``WriteError``."""
        self.storage.write(self.key, "".join(f"{line}\n" for line in self.lines).encode())
        self.written = time.monotonic()


@cache
def _file_system(scheme: str, _of_process: int) -> Any:
    """One for all threads of a process, which share its connections; not for those forked off."""
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        hint = "pip install s3fs" if scheme == "s3" else "see fsspec's documentation"
        raise FormatError(f"{scheme}:// cannot be opened: {error} ({hint})") from error
    except ValueError as error:
        raise FormatError(f"{scheme}:// cannot be opened: {error}") from error


def _tried(request: Callable[[], T]) -> T:
    """Ask again, ever later, while the store is throttling, unreachable or cuts connections."""
    for wait in WAITS_S:
        try:
            return request()
        except Exception as error:
            if not _may_pass(error):
                raise
        time.sleep(wait * random.uniform(0.5, 1.0))
    return request()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, (StoreError, *_LASTING)):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & _PASSING)


def _each(do: Callable[[str], Any], names: Iterable[str]) -> None:
    """Do it for every name, some at once; raises the first error when all have ended."""
    names = list(names)
    if len(names) == 1:
        do(names[0])
    elif names:
        with ThreadPoolExecutor(min(len(names), N_REQUESTS)) as pool:
            for _ in list(pool.map(do, names)):
                pass


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
