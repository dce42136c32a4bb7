"""Files of data sets of image quality: names in any case, lists, and MATLAB arrays."""

from __future__ import annotations

from math import isfinite, nan
from pathlib import Path
from typing import Any

from stages.data.listing import images_below
from stages.data.regular import refused, require_regular
from stages.errors import DataNotFoundError, InputError

MOST_LIST_BYTES = 64 * 2**20
"""Largest file that is read as a list."""


class Names:
    """Files of a folder by their names in lower case, with paths relative to the data set.

    A name that does not exist is returned as it is listed: its row fails when it is read.
    """

    def __init__(self, root: Path, folder: str, *, is_deep: bool = False) -> None:
        place = require(root, folder)
        self._folder = place.name
        images, _ = images_below(place)
        self._paths = {
            (Path(image).name if is_deep else image).lower(): f"{place.name}/{image}"
            for image in images
        }

    def __getitem__(self, name: str) -> str:
        return self._paths.get(name.lower(), f"{self._folder}/{name}")


def child(folder: Path, name: str) -> Path | None:
    """The entry of a folder with this name, in any case; the exact name is preferred."""
    with refused(folder):
        found = [path for path in folder.iterdir() if path.name.lower() == name.lower()]
    return min(found, key=lambda path: path.name != name, default=None)


def require(folder: Path, name: str) -> Path:
    """The entry of a folder with this name; raises ``DataNotFoundError``."""
    found = child(folder, name)
    if found is None:
        raise DataNotFoundError(f"{folder}: expected {name}, found no file or folder of this name")
    return found


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    check_list(path)
    with refused(path):
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def number(value: Any, where: str) -> float:  # Any: a cell of a table
    """A finite number; raises ``InputError``."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = nan
    if not isfinite(found):
        raise InputError(f"{where} has the score {value!r}, expected a finite number")
    return found


def mat_arrays(path: Path, names: tuple[str, ...], more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arrays of a MATLAB file: those of ``names`` must exist. Any: numpy arrays of any type."""
    from scipy import io

    check_list(path)
    try:
        found: dict[str, Any] = io.loadmat(path, variable_names=(*names, *more))
    except Exception as error:  # scipy raises nearly anything on a broken file
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: expected a MATLAB file with {', '.join(names)} ({why})"
        ) from error
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{path}: expected {', '.join(names)}, found no {missing[0]}")
    return found


def check_list(path: Path) -> None:
    """Raise ``InputError`` for anything but a regular file of at most `MOST_LIST_BYTES`."""
    with refused(path):
        require_regular(path)
        if (n_bytes := path.stat().st_size) > MOST_LIST_BYTES:
            raise InputError(f"{path}: {n_bytes:,} bytes, expected at most {MOST_LIST_BYTES:,}")
