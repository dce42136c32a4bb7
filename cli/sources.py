"""Notes of commands on files that are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.output import note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.data.listing import LeftOut


def note_left_out(title: str, left_out: Sequence[LeftOut]) -> None:
    """Print a note on how many files are left out and why, if any are."""
    from stages.data.source_notes import left_out_notes

    for line in left_out_notes(title, left_out):
        note(line)
