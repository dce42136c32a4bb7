"""Notes on the images of a data set: files that are left out, labels that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.data.corruptions.names import constants_in_words
from stages.data.listing import LeftOut, in_words, left_out_facts
from stages.data.source import ImageSource


def source_notes(source: ImageSource) -> list[str]:
    """Notes on files that a data set leaves out, missing labels, and how it is corrupted."""
    title = f"{source.name} {source.split}"
    notes = left_out_notes(title, source.left_out)
    if source.corruption:
        height, width = source.image_size
        notes.append(
            f"{title}: images of {height}x{width} are corrupted with the constants of "
            f"{constants_in_words(source.image_size)}, seed {source.corruption['seed']}"
        )
    if source.how_to_label:
        notes.append(
            f"{title}: no labels found, so every label is -1; to add labels: {source.how_to_label}"
        )
    return notes


def left_out_notes(title: str, left_out: Sequence[LeftOut]) -> list[str]:
    """A note on how many files are left out and why; none if there are none."""
    if not left_out:
        return []
    n = sum(each.count for each in left_out)
    what = "file or folder" if n == 1 else "files or folders"
    return [f"{title}: {n:,} {what} left out: {in_words(left_out)}"]


def left_out_of(source: ImageSource) -> dict[str, Any]:  # Any: JSON
    """The files that a data set leaves out, for JSON: ``left_out``, even if it is empty."""
    return {"left_out": {}, **left_out_facts(source.left_out)}
