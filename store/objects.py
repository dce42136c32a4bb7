"""Values as objects in a bucket, ``s3://bucket/prefix``, or in any other store fsspec can open.

The object store must provide: reads that see the last write, puts that can be refused if the key
exists, and copies that give a whole object a second key or fail. S3, Google Cloud Storage and Azure
do. Listings may lag behind, by less than the expiry time of a lease.
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

from store.errors import FormatError, NotFoundError, StoreError, SweptError, WriteError, first_line
from store.storage import STAGING, leads_out

T = TypeVar("T")

WAITS_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between the attempts of a request; each is shortened at random."""

LOG_EVERY_S = 5.0
"""Minimum seconds between writes of a log: an object cannot grow, so all of it is rewritten."""

N_REQUESTS = 8
"""Maximum number of parallel requests for the files of a shard."""

_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_LASTING = (*_ABSENT, FileExistsError, PermissionError)
"""Errors that are not retried."""

_BUGS = (AttributeError, LookupError, TypeError)
"""Programming errors, ours or a library's, which are not errors of the store."""

_TRANSIENT = {
    "HTTPClientError",
    "ClientConnectionError",
    "ClientPayloadError",
    "IncompleteReadError",
}
"""Names of transient errors of botocore and aiohttp that are not subclasses of ``OSError``."""


@dataclass(frozen=True, slots=True)
class ObjectStorage:
    """Keys are objects below a URL. Values are staged below ``.staging`` and published by a copy.

    An empty object counts as missing. A key is withdrawn by copying an empty object to it, which a
    sweep can prevent; a delete request could arrive late and remove what a successor has written.

    Only the URL is held. Every process finds its own credentials in its environment or in the
    configuration of the cloud's tools, so none ends up in a plan, receipt, journal or message.
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
        """Read an object; raises ``NotFoundError``, or ``OSError`` if the store is unreachable."""
        try:
            data = self._query(key, lambda: self._get(key))
        except _ABSENT:
            data = b""
        if not data:
            raise NotFoundError(f"{self.url}: there is no {key}")
        return data

    def write(self, key: str, data: bytes) -> None:
        """Put an object, replacing an existing one; raises ``WriteError``."""
        self._modify(key, lambda: self._files.pipe_file(self._path(key), data))

    def create(self, key: str, data: bytes) -> bool:
        """Put an object unless the key exists; of two concurrent attempts, one fails."""

        def put() -> bool:
            try:
                self._files.pipe_file(self._path(key), data, mode="create")
            except Exception:
                # Stores report an existing key in many ways; and if the response to an attempt
                # was lost, the existing object may be our own.
                if not self._files.exists(self._path(key)):
                    raise
                return self._get(key) == data
            return True

        return self._modify(key, put)

    def stage(self, key: str, data: bytes) -> str:
        """Put an object into the staging area; raises ``WriteError``."""
        return self.stage_all({key: data})[key]

    def stage_all(self, values: Mapping[str, bytes]) -> dict[str, str]:
        """Put objects into the staging area, in parallel; if one fails, all are removed."""
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
        """Copy staged objects to their keys, in parallel; raises ``SweptError``, ``WriteError``.

        The store copies in one step: copying an object that was swept fails, however late the
        request arrives.
        """
        _each(lambda key: self._modify(key, lambda: self._copy(names[key], key)), names)
        _each(self.drop, names.values())

    def publish_new(self, staged: str, key: str) -> bool:
        """Copy a staged object to its key unless it exists; raises ``SweptError``, ``WriteError``.

        A driver that takes over sweeps before it publishes, so two drivers cannot both find the key
        free and copy. S3 is asked to refuse that as well.
        """
        is_s3 = self.url.startswith(("s3:", "s3a:"))

        def copy() -> bool:
            size = self._length(key)
            if size:
                return self._get(key) == self._get(f"{STAGING}/{staged}")  # a response was lost
            is_refusable = is_s3 and size is None  # an empty object is to be replaced
            self._copy(staged, key, **({"IfNoneMatch": "*"} if is_refusable else {}))
            return True

        return self._modify(key, copy)

    def staged(self) -> list[str]:
        """Names of the staged objects, sorted."""
        return [PurePosixPath(key).name for key in self._listed(STAGING, least=0)]

    def drop(self, staged: str) -> None:
        """Remove a staged object; if that fails, the next sweep removes it. It may be missing."""
        with suppress(WriteError):
            self.remove(f"{STAGING}/{staged}")

    def sweep(self) -> None:
        """Remove all staged objects; raises ``WriteError``."""
        _each(lambda name: self.remove(f"{STAGING}/{name}"), self.staged())

    def remove(self, key: str) -> None:
        """Remove an object; it may be missing."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._files.rm_file(self._path(key))

        self._modify(key, remove)

    def withdraw(self, keys: Sequence[str], check: Callable[[], None]) -> None:
        """Copy a staged empty object to the keys; raises ``SweptError``, ``WriteError``."""
        empty = self.stage("empty", b"")
        try:
            check()
            for key in keys:
                if self.size(key) is not None:
                    self._modify(key, partial(self._copy, empty, key))
        finally:
            self.drop(empty)

    def sync(self, prefix: str = "") -> None:
        """Do nothing: objects are durable once put."""

    def size(self, key: str) -> int | None:
        """Size of an object in bytes, or ``None`` if it does not exist."""
        return self._query(key, lambda: self._length(key)) or None

    def sizes(self) -> dict[str, int]:
        """Key -> size in bytes of every object, from listings alone."""
        return {key: n for key, n in self._listed("").items() if not key.startswith(f"{STAGING}/")}

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Keys of all objects below ``prefix``, sorted, without the staged ones."""
        return (key for key in self._listed(prefix) if not key.startswith(f"{STAGING}/"))

    def folders(self, prefix: str = "") -> list[str]:
        """Names directly below ``prefix`` that have objects below them, sorted."""
        try:
            found = self._query(prefix, lambda: self._files.ls(self._path(prefix), detail=True))
        except _ABSENT:
            return []
        names = {PurePosixPath(f["name"]).name for f in found if f["type"] == "directory"}
        return sorted(names - {STAGING})

    def log(self, key: str) -> "ObjectLog":
        """A log whose object is rewritten from time to time."""
        return ObjectLog(self, key)

    @property
    def _files(self) -> Any:  # Any: fsspec has no types
        return _file_system(self.url.partition("://")[0], os.getpid())

    def _path(self, key: str) -> str:
        if leads_out(key):
            raise FormatError(f"{self.url}: {key!r} is not a key: it leads out of the store")
        return f"{self.url}/{key}".rstrip("/")

    def _get(self, key: str) -> bytes:
        data: bytes = self._files.cat_file(self._path(key))
        return data

    def _listed(self, prefix: str, least: int = 1) -> dict[str, int]:
        """Keys, sorted, and sizes of the objects with at least ``least`` bytes."""
        root = self._files._strip_protocol(self.url)
        found = self._query(prefix, lambda: self._files.find(self._path(prefix), detail=True))
        sizes = {path.removeprefix(f"{root}/"): facts["size"] for path, facts in found.items()}
        return {key: int(sizes[key]) for key in sorted(sizes) if sizes[key] >= least}

    def _length(self, key: str) -> int | None:
        """Size of an object: 0 if it was withdrawn, ``None`` if it never existed."""
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
                f"{self.url}: {staged} was removed before it was published: another driver "
                "has taken over, or repaired the set"
            ) from error

    def _query(self, key: str, request: Callable[[], T]) -> T:
        """Run a read request; raises ``OSError`` with the location, missing keys as they are."""
        try:
            return _with_retries(request)
        except (StoreError, *_ABSENT, *_BUGS):
            raise
        except Exception as error:
            raise OSError(errno.EIO, first_line(error), f"{self.url}/{key}") from error

    def _modify(self, key: str, request: Callable[[], T]) -> T:
        """Run a write request; failures are raised as ``WriteError`` with the location."""
        try:
            return _with_retries(request)
        except (StoreError, *_BUGS):
            raise
        except Exception as error:
            number = getattr(error, "errno", None) or errno.EIO
            why = first_line(error)
            raise WriteError(number, f"cannot write {self.url}/{key}: {why}") from error


@dataclass(slots=True)
class ObjectLog:
    """The lines so far, and when they were last written."""

    storage: ObjectStorage
    key: str
    lines: list[str] = field(default_factory=list)
    written: float = -math.inf

    def exists(self) -> bool:
        """Whether there is at least one line."""
        return bool(self.lines)

    def add(self, line: str) -> None:
        """Add a line, and write all lines unless that was done recently; raises ``WriteError``."""
        self.lines.append(line)
        if time.monotonic() - self.written >= LOG_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write all lines; raises ``WriteError``."""
        self.storage.write(self.key, "".join(f"{line}\n" for line in self.lines).encode())
        self.written = time.monotonic()


@cache
def _file_system(scheme: str, _of_process: int) -> Any:
    """One file system per process: threads share its connections, forked processes must not."""
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        hint = "pip install s3fs" if scheme == "s3" else "see fsspec's documentation"
        raise FormatError(f"{scheme}:// cannot be opened: {error} ({hint})") from error
    except ValueError as error:
        raise FormatError(f"{scheme}:// cannot be opened: {error}") from error


def _with_retries(request: Callable[[], T]) -> T:
    """Retry with increasing delays while the store throttles, is unreachable or disconnects."""
    for wait in WAITS_S:
        try:
            return request()
        except Exception as error:
            if not _is_transient(error):
                raise
        time.sleep(wait * random.uniform(0.5, 1.0))
    return request()


def _is_transient(error: Exception) -> bool:
    if isinstance(error, (StoreError, *_LASTING)):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & _TRANSIENT)


def _each(do: Callable[[str], Any], names: Iterable[str]) -> None:
    """Call ``do`` for every name, in parallel; raises the first error once all have ended."""
    names = list(names)
    if len(names) == 1:
        do(names[0])
    elif names:
        with ThreadPoolExecutor(min(len(names), N_REQUESTS)) as pool:
            for _ in list(pool.map(do, names)):
                pass
