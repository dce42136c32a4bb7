"""Paths in the fields of stages, in a form that is valid in any working directory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from pipeline.fields import PRETRAINED, Place, Written, mark_of
from pipeline.stage import Stage
from stages.data.known import KNOWN
from store.disk import spelled_out

S = TypeVar("S", bound=Stage)
Resolve = Callable[[str], str]
"""Returns the full path of a path; URLs stay as they are."""


def located(stage: S, resolve: Resolve, root: Path, steps: Collection[str] = ()) -> S:
    """The stage with full paths of the data sets, files and networks that its fields name.

    Args:
        stage: the stage.
        resolve: returns the full path of a path, or raises.
        root: the data root; names of data sets below it stay as they are.
        steps: fields that name steps of a recipe, which stay as they are.
    """
    fields = type(stage).model_fields
    changes = {}
    for name in fields.keys() - set(steps):
        value, place = getattr(stage, name), mark_of(fields[name], Place)
        is_content = (mark_of(fields[name], Written) or Written()).read is not None
        if value and place and not is_content:
            changes[name] = _found(value, place, resolve, root)
    return stage.model_copy(update=changes)


def _found(value: Any, place: Place, resolve: Resolve, root: Path) -> Any:  # Any: text or tuple
    if isinstance(value, tuple):
        return tuple(_found(each, place, resolve, root) for each in value)
    if place is Place.DATA:
        return _data_sets(value, resolve, root)
    if place is Place.NETWORK:
        kind, _, folder = value.partition(":")
        if kind == "hf":
            return f"hf:{resolve(folder)}" if _exists(resolve(folder)) else value  # else an ID
        file, _, factory = value.rpartition(":")
        return f"{resolve(file)}:{factory}" if file.endswith(".py") else value
    is_file = place is Place.FILE or (place is Place.WEIGHTS and value != PRETRAINED)
    return resolve(value) if is_file else value


def _data_sets(names: str, resolve: Resolve, root: Path) -> str:
    """The data sets of a comma-separated list; a path may contain commas too."""
    if "," not in names or _exists(resolve(names)):
        return data_set(names, resolve, root)
    return ",".join(data_set(name, resolve, root) for name in names.split(","))


def data_set(name: str, resolve: Resolve, root: Path) -> str:
    """The name of a data set as it is, else its full path; the data root is searched first."""
    is_plain = Path(name).name == name
    is_name = name in KNOWN or (is_plain and (_exists(root / name) or not _exists(resolve(name))))
    return name if is_name else resolve(name)


def full_path(path: str, folder: str | Path = "") -> str:
    """The full path of a path that is relative to a folder; a URL stays as it is."""
    return path if "://" in path else str(Path(folder, spelled_out(path)).absolute())


def is_fetched(place: str, store: str) -> bool:
    """Whether a place is a URL outside the store; a store without a location has no inside."""
    is_inside = bool(store) and place.startswith(f"{store}/") and ".." not in place
    return "://" in place and not is_inside


def _exists(path: str | Path) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # not a path: too long, or with a zero byte
        return False
