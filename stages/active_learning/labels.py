"""Labels from people: CSV files of ``sample_id`` and ``label``, and Label Studio's JSON export."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from stages.active_learning.annotations import annotated_labels
from stages.csv_text import cells_of, text_of
from stages.errors import InputError

COLUMNS = ("number", "sample_id", "label")
"""Columns of the list of images to label; ``number`` is the one on the contact sheet."""


def read_labels(paths: Iterable[Path], known: Mapping[str, int]) -> dict[int, str]:
    """Row of the pool -> name of its class; samples with an empty label are left out.

    Names are used verbatim: surrounding blanks, leading zeros and ``NA`` are part of a name.

    Args:
        paths: CSV files with a header, whose columns other than these two are ignored; and files
            that end in .json, which Label Studio exported (see `annotated_labels`).
        known: ``sample_id`` -> row.

    Raises:
        InputError: a file is neither, a sample is unknown, or has two labels.
    """
    found: dict[int, str] = {}
    for path in paths:
        for place, sample_id, label in _labels_in(path):
            if sample_id not in known:
                raise InputError(
                    f"{place}: there is no sample {sample_id!r} in the pool (its ids look "
                    f"like {next(iter(known))!r}): is this the list of another folder?"
                )
            row = known[sample_id]
            if label.strip() and found.setdefault(row, label) != label:
                raise InputError(
                    f"{place}: sample {sample_id!r} is labelled {label!r}, and "
                    f"{found[row]!r} before: leave one of them"
                )
    return found


def label_list(sample_ids: Sequence[str]) -> bytes:
    """A CSV of samples in this order, with an empty label for each.

    `read_labels` reads every id back unchanged.
    """
    sink = io.StringIO()
    plain = csv.writer(sink, lineterminator="\n")
    quoted = csv.writer(sink, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(COLUMNS)
    for number, sample_id in enumerate(sample_ids, start=1):
        has_return = "\r" in sample_id  # the csv module does not quote it
        (quoted if has_return else plain).writerow((number, sample_id, ""))
    return sink.getvalue().encode()


def _labels_in(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield a place in the file, a sample and its label, which may be empty."""
    if path.suffix.lower() == ".json":
        yield from annotated_labels(path, text_of(path))
        return
    for place, (sample_id, label) in cells_of(path, COLUMNS[1:]):
        yield place, sample_id, label
