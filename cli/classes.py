"""Notes of commands on the classes of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.output import note
from pipeline.terminal import printable_line

if TYPE_CHECKING:
    from stages.sensing.card import ModelCard


def note_names(card: ModelCard) -> None:
    """Print a note if the names of a model from elsewhere may be in an unintended order."""
    from stages.data.classes import order_note

    way_out = "extract with --classes FILE and another --model NAME"
    is_ours = card.M is not None  # trained here, with labels in this order
    if not is_ours and (line := order_note(f"model {card.name}", card.class_names, way_out)):
        note(printable_line(line))
