"""Corrupted sets that ``corrupt`` wrote: whether they are complete, and what their plans say."""

from __future__ import annotations

from pathlib import Path

from stages.errors import InputError
from store.errors import FormatError
from store.plan import read_object
from store.shardset import PLAN_KEY, find_set
from store.storage import LocalStorage


def check_finished(folder: Path) -> None:
    """Raise ``InputError`` if ``corrupt`` wrote the folder and receipts are missing."""
    try:
        existing = find_set(LocalStorage(str(folder)))
    except FormatError:
        return  # not one of our plans: its other content is checked where it is read
    if existing is not None and (missing := existing.missing()):
        raise InputError(
            f"{folder}: {len(missing)} of {len(existing.shards)} shards are not written "
            "yet; run the same `intro-pipe corrupt` command again"
        )


def planned_family(folder: Path) -> tuple[str, tuple[str, ...]] | None:
    """Family and class names in the plan of a set; ``None`` if it has none.

    Raises:
        InputError: the plan has another form.
    """
    path = folder / PLAN_KEY
    if not path.is_file():
        return None
    try:
        source = read_object(path.read_bytes())["inputs"]["source"]
        return str(source["family"]), tuple(str(each) for each in source["class_names"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected JSON with family and class_names in inputs.source ({error!r}); "
            "write the set again, or move the file away"
        ) from error
