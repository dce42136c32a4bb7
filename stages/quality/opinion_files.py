"""Files of data sets of image quality: names in any case, and lists."""

from __future__ import annotations

from math import isfinite, nan
from pathlib import Path
from typing import Any

from stages.data.listing import images_below
from stages.data.regular import refused
from stages.errors import DataNotFoundError, InputError
from stages.quality.matlab import check_size


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
    check_size(path)
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
