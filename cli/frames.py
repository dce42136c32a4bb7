"""Data frames to a terminal or a file, in the form that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import frame_table, note

if TYPE_CHECKING:
    import pandas as pd

FORMS = ("table", "csv", "json", "parquet")


def form_of(out: str | None) -> str:
    """The form that a file's ending stands for; a table for others, and for a terminal."""
    ending = Path(out).suffix.removeprefix(".") if out else ""
    return ending if ending in FORMS else "table"


def write_frame(frame: pd.DataFrame, form: str, out: str | None) -> None:
    """Print the frame, or write it to ``out``; Parquet needs a file."""
    from stages.errors import InputError

    if form not in FORMS:
        raise InputError(f"--format {form}: expected one of {', '.join(FORMS)}")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no such folder")
    if form == "parquet":
        if out is None:
            raise InputError("--format parquet: it needs a file, give --out FILE")
        frame.to_parquet(out, index=False)
        note(f"{len(frame)} rows in {out}")
        return
    text = {
        "table": lambda: frame_table(frame) + "\n",
        "csv": lambda: frame.to_csv(index=False),
        "json": lambda: frame.to_json(orient="records", indent=2) + "\n",
    }[form]()
    if out is None:
        print(text, end="")
    else:
        Path(out).write_text(text, encoding="utf-8")
        note(f"{len(frame)} rows in {out}")
