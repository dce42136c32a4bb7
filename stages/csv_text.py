"""CSV text: of tables, safe to open in a spreadsheet if asked for, and of files to read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import DataNotFoundError, InputError

if TYPE_CHECKING:
    import pandas as pd

ESCAPE_FORMULAS = (
    "In CSV, put an apostrophe before cells that a spreadsheet would run as a formula (those that "
    "begin with =, +, -, @, a tab or a line break). Off by default."
)
"""Help of the option ``--escape-formulas``."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of cells that spreadsheets treat as formulas; the last four are the full-width
forms of the first four."""


def csv_of(frame: pd.DataFrame, *, escape_formulas: bool, header: bool = True) -> str:
    """A data frame as CSV, with the names of the columns as ``header``.

    With ``escape_formulas``, cells that begin with one of ``FORMULA_STARTS`` are prefixed with an
    apostrophe unless they are numbers, as OWASP recommends against CSV injection.

    >>> import pandas as pd
    >>> csv_of(pd.DataFrame({"name": ["=1+1"], "gain": [-0.5]}), escape_formulas=True)
    "name,gain\\n'=1+1,-0.5\\n"
    """
    if escape_formulas:
        frame = frame.map(_as_text).rename(columns=_as_text)
    # A carriage return ends a line for readers, and the csv module does not quote it by itself.
    has_returns = frame.map(lambda cell: isinstance(cell, str) and "\r" in cell).to_numpy().any()
    text: str = frame.to_csv(
        index=False,
        header=header,
        quoting=csv.QUOTE_NONNUMERIC if has_returns else csv.QUOTE_MINIMAL,
    )
    return text


def escaped_csv(text: str) -> str:
    """A CSV with its formulas escaped as by ``csv_of``."""
    import pandas as pd

    frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    return csv_of(frame, escape_formulas=True)


def cells_of(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the place of each line of a CSV, and its cells in these columns.

    Raises:
        DataNotFoundError: the file cannot be read.
        InputError: it is not a CSV that has these columns.
    """
    reader = csv.DictReader(io.StringIO(text_of(path), newline=""), strict=True)
    try:
        if not set(columns) <= set(reader.fieldnames or ()):
            raise InputError(
                f"{path}: expected a CSV with {_in_words(columns)} and commas between, "
                f"found {' and '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        for row in reader:
            yield f"{path}:{reader.line_num}", tuple(row[name] or "" for name in columns)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: cannot be read as CSV: {error}") from error


def text_of(path: Path) -> str:
    """The text of a UTF-8 file; raises ``DataNotFoundError`` if it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")  # `read_text` would change line ends
    except (OSError, UnicodeDecodeError) as error:
        raise DataNotFoundError(f"{path}: cannot be read ({_reason(error)})") from error


def _as_text(cell: object) -> object:
    is_formula = isinstance(cell, str) and cell.startswith(FORMULA_STARTS) and not _is_number(cell)
    return f"'{cell}" if is_formula else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _in_words(columns: Sequence[str]) -> str:
    return f"the column{'s' if len(columns) > 1 else ''} {' and '.join(columns)}"


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
