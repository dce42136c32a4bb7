"""Labels that people bring: a CSV with the columns ``sample_id`` and ``label``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stages.errors import DataNotFoundError, InputError

COLUMNS = ("number", "sample_id", "label")
"""Of the list that people are given; ``number`` is that on the contact sheet."""


def read_labels(paths: Iterable[Path], known: Mapping[str, int]) -> dict[int, str]:
    """Row of the pool -> the name of its class; samples whose label is still empty are left out.

    Args:
        paths: CSV files with a head; other columns than the two do not matter.
        known: ``sample_id`` -> row.

    Raises:
        InputError: a file that is no such CSV, an unknown sample, or one with two labels.
    """
    found: dict[int, str] = {}
    for path in paths:
        for line, sample_id, label in _lines(path):
            if sample_id not in known:
                raise InputError(
                    f"{path}:{line}: there is no sample {sample_id!r} in the pool (its ids look "
                    f"like {next(iter(known))!r}): is this the list of another folder?"
                )
            row = known[sample_id]
            if label and found.setdefault(row, label) != label:
                raise InputError(
                    f"{path}:{line}: sample {sample_id!r} is labelled {label!r}, and "
                    f"{found[row]!r} before: leave one of them"
                )
    return found


def label_list(sample_ids: Sequence[str]) -> bytes:
    """A CSV of samples without labels, in this order."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((number, each, "") for number, each in enumerate(sample_ids, start=1))
    return sink.getvalue().encode()


def _lines(path: Path) -> Iterable[tuple[int, str, str]]:
    """Line, sample and label of each line."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataNotFoundError(f"{path}: cannot be read as labels ({_reason(error)})") from error
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        if not {"sample_id", "label"} <= set(reader.fieldnames or ()):
            raise InputError(
                f"{path}: expected a CSV with the columns sample_id and label and commas between, "
                f"found {' and '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        for row in reader:
            yield reader.line_num, row["sample_id"], (row["label"] or "").strip()
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: cannot be read as labels: {error}") from error


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
