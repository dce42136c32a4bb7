"""Labels from people: CSV files with the columns ``sample_id`` and ``label``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stages.errors import DataNotFoundError, InputError

COLUMNS = ("number", "sample_id", "label")
"""Columns of the list of images to label; ``number`` is the one on the contact sheet."""


def read_labels(paths: Iterable[Path], known: Mapping[str, int]) -> dict[int, str]:
    """Row of the pool -> name of its class; samples with an empty label are left out.

    Names are used verbatim: surrounding blanks, leading zeros and ``NA`` are part of a name.

    Args:
        paths: CSV files with a header; columns other than these two are ignored.
        known: ``sample_id`` -> row.

    Raises:
        InputError: a file is not such a CSV, a sample is unknown, or has two labels.
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
            if label.strip() and found.setdefault(row, label) != label:
                raise InputError(
                    f"{path}:{line}: sample {sample_id!r} is labelled {label!r}, and "
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


def _lines(path: Path) -> Iterable[tuple[int, str, str]]:
    """Yield line number, sample and label of each line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # `read_text` would change line ends
    except (OSError, UnicodeDecodeError) as error:
        raise DataNotFoundError(f"{path}: cannot be read as labels ({_reason(error)})") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if not {"sample_id", "label"} <= set(reader.fieldnames or ()):
            raise InputError(
                f"{path}: expected a CSV with the columns sample_id and label and commas between, "
                f"found {' and '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        for row in reader:
            yield reader.line_num, row["sample_id"], row["label"] or ""
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: cannot be read as labels: {error}") from error


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
