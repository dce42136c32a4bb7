"""Files at a path, or at a URL that fsspec opens, such as ``s3://bucket/pets/train-000000.tar``.

A place is a path or a URL, as text. Every process finds its own credentials in its environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stages.data.regular import require_regular, size_of_regular
from stages.errors import InputError


def is_url(place: str) -> bool:
    """Whether a place is a URL."""
    return "://" in place


def check_url(url: str) -> None:
    """Refuse a URL with a user, options or several schemes; the message does not show it.

    Raises:
        InputError: the URL may hold a password, or is not ``scheme://bucket/...``.
    """
    scheme, _, place = url.partition("://")
    is_plain = re.fullmatch("[a-z][a-z0-9.+-]*", scheme) and not re.search("[?#]", place)
    if not is_plain or "@" in place.split("/")[0] or ".." in place.split("/"):
        raise InputError(
            "that URL cannot hold a data set: expected scheme://bucket/..., found one with a user, "
            "options, '..' or several schemes; credentials and options come from the environment"
        )


def files_at(place: str, suffix: str) -> tuple[str, ...]:
    """The file itself, or those with this suffix in a folder or else in its subfolders, sorted."""
    if place.lower().endswith(suffix):
        return (place,) if size_of(place) >= 0 else ()
    for pattern in (f"*{suffix}", f"*/*{suffix}"):
        found = [each for each in _glob(place, pattern) if not _is_hidden(each, place)]
        if found:
            return tuple(sorted(found))
    return ()


def size_of(place: str) -> int:
    """Size of a file in bytes; -1 if it does not exist or is not a regular file."""
    if not is_url(place):
        return size_of_regular(Path(place))
    with reached(place):
        fs, path = _filesystem(place)
        return int(fs.size(path) or 0) if fs.isfile(path) else -1


def version_of(place: str) -> str:
    """Text that changes if a file is rewritten."""
    if not is_url(place):
        facts = Path(place).stat()
        return f"{facts.st_ino} {facts.st_mtime_ns} {facts.st_size}"
    with reached(place):
        fs, path = _filesystem(place)
        facts = fs.info(path)
        return " ".join(str(facts.get(key)) for key in ("ETag", "LastModified", "created", "size"))


@contextmanager
def open_file(place: str, *, reads_ahead: bool = True) -> Iterator[IO[bytes]]:
    """Open a file for reading.

    Without ``reads_ahead``, each read from a URL is a request for exactly these bytes.

    Raises:
        OSError: it is not a regular file.
        InputError: the URL cannot be read.
    """
    if is_url(place):
        fs, path = _filesystem(place)
        options = {} if reads_ahead else {"cache_type": "none"}
        with reached(place), fs.open(path, "rb", **options) as file:
            yield file
    else:
        require_regular(place)
        with Path(place).open("rb") as file:
            yield file


def ranges(place: str, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
    """Bytes ``[start, stop)`` of a file; fewer at its end."""
    if is_url(place):
        with reached(place):
            fs, path = _filesystem(place)
            return list(fs.cat_ranges([path] * len(starts), list(starts), list(stops)))
    with open_file(place) as file:
        return [_range(file, start, stop) for start, stop in zip(starts, stops, strict=True)]


@contextmanager
def reached(place: str) -> Iterator[None]:
    """Convert any error of a file system at a URL to an ``InputError`` that names the URL."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # each library has its own
        if not is_url(place):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{place}: cannot be read ({reason})") from error


def _range(file: IO[bytes], start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _glob(place: str, pattern: str) -> list[str]:
    if not is_url(place):
        return [str(each) for each in Path(place).glob(pattern) if each.is_file()]
    with reached(place):
        fs, path = _filesystem(place)
        return [str(fs.unstrip_protocol(each)) for each in fs.glob(f"{path}/{pattern}")]


def _is_hidden(place: str, folder: str) -> bool:
    below = PurePosixPath(place).parts[len(PurePosixPath(folder).parts) :]
    return any(part.startswith(".") for part in below)


def _filesystem(url: str) -> tuple[Any, str]:  # Any: fsspec has no types
    import fsspec  # only if a data set lies at a URL

    check_url(url)
    with reached(url):
        fs, path = fsspec.core.url_to_fs(url)
    return fs, str(path).rstrip("/")
