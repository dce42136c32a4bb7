"""Notes on groups of rows that share batch statistics."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.terminal import counted
from stages.data.classes import stored_labels
from stages.data.source import ReaderSource

SORTED = 0.5
"""Fraction of groups with images of one class from which rows count as sorted by class."""


def group_notes(
    stored: ReaderSource, group_rows: int, *, is_corrupted: bool = False
) -> Iterator[str]:
    """What to know about features with batch statistics.

    Args:
        stored: the images before they are corrupted.
        group_rows: images per group.
        is_corrupted: whether they are corrupted when they are read.
    """
    yield (
        f"batch norm uses the statistics of groups of {counted(group_rows, 'row')}: compare heads "
        "on these features with f of the same set"
    )
    n_images = stored.cell_rows or stored.n_rows
    if (is_corrupted or stored.cell_rows) and n_images % group_rows:
        yield (
            f"groups of {group_rows:,} rows do not divide the {n_images:,} images of a cell, "
            "so some groups have images of two cells: choose another --batch-statistics"
        )
    labels = stored_labels(stored)
    if group_rows == 1 or labels is None or len(labels) < group_rows:
        return
    groups = labels[: len(labels) // group_rows * group_rows].reshape(-1, group_rows)
    n_alike = int((groups == groups[:, :1]).all(axis=1).sum())
    if n_alike > SORTED * len(groups) and (labels != labels[0]).any():
        yield (
            f"{n_alike:,} of {len(groups):,} groups have images of one class, since the rows of "
            f"{stored.name} are sorted by class: add --shuffle for groups of mixed classes"
        )
