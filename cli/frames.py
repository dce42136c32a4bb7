"""Tables to a terminal or a file, in the requested format."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from cli.options import AsJson
from cli.output import note, plain, table
from pipeline.terminal import printable
from stages.csv_text import ESCAPE_FORMULAS, csv_of

if TYPE_CHECKING:
    import pandas as pd

FORMS = ("table", "csv", "json", "parquet")


@dataclass(frozen=True)
class TableOptions:
    """Format and file of a table that a command prints."""

    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Output format: table, csv, json or parquet. (default: from the suffix of --out)",
        ),
    ] = None
    out: Annotated[str | None, typer.Option("--out", help="File to write to.")] = None
    escape_formulas: Annotated[bool, typer.Option("--escape-formulas", help=ESCAPE_FORMULAS)] = (
        False
    )
    as_json: AsJson = False

    def checked(self) -> Self:
        """The options with their format, for use before anything is computed.

        Raises:
            InputError: the format is unknown, the suffix of ``out`` belongs to none (such as
                ``.xlsx``), the folder of ``out`` does not exist, or the options contradict each
                other.
        """
        from stages.errors import InputError

        form = self.form or ("json" if self.as_json else _form_by_suffix(self.out))
        if form not in FORMS:
            raise InputError(f"--format {form}: expected one of {', '.join(FORMS)}")
        if self.out is not None and not Path(self.out).absolute().parent.is_dir():
            raise InputError(f"--out {self.out}: its folder does not exist")
        if form == "parquet" and self.out is None:
            raise InputError("--format parquet: expected --out FILE too")
        if self.escape_formulas and form != "csv":
            raise InputError(f"--escape-formulas is for CSV, found {form}: add --format csv")
        return replace(self, form=form)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print the rows as a table, or write them to ``out``; the options must be `checked`.

        Output to a terminal contains no control characters.
        """
        if self.form == "parquet":
            _frame(rows).to_parquet(self.out, index=False)
        else:
            text = self._text(rows)
            if self.out is None:
                print(printable(text) if sys.stdout.isatty() else text, end="")
                return
            Path(self.out).write_text(text, encoding="utf-8")
        note(f"{len(rows)} rows in {self.out}")

    def _text(self, rows: Sequence[Mapping[str, Any]]) -> str:
        if self.form == "csv":
            return csv_of(_frame(rows), escape_formulas=self.escape_formulas)
        if self.form == "json":
            return f"{json.dumps(plain(rows), indent=2, allow_nan=False, default=str)}\n"
        return f"{table(rows, width=sys.maxsize if self.out else None)}\n"


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows))


def _form_by_suffix(out: str | None) -> str:
    from stages.errors import InputError

    suffix = Path(out).suffix.removeprefix(".").lower() if out else ""
    if suffix in FORMS:
        return suffix
    if suffix not in ("", "txt", "md", "log"):
        raise InputError(
            f"--out {out}: expected a name that ends in .csv, .json, .parquet or .txt, found "
            f".{suffix}; rename it, or choose a format with --format"
        )
    return "table"
