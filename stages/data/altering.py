"""Denoise and augment the images of any source while they are read.

Images are changed after they are resized, cropped and corrupted: first denoised, then augmented.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from stages.data.augmenting import Augmenting
from stages.data.denoising import Denoising, denoising_of
from stages.data.planned_source import PlannedAlteration
from stages.data.resize import Resize
from stages.data.source import Reader, ReaderSource, Rows

VERSION = 1
"""Raise it if the pixels change."""

FILTER_BYTES = 64 * 2**20
"""Memory of OpenCV and of the tables of a filter."""


@dataclass(frozen=True, slots=True)
class Alteration:
    """What is done to images; at least one of the two."""

    denoising: Denoising | None = None
    augmenting: Augmenting | None = None

    @property
    def label(self) -> str:
        """Suffix of the name of a data set, such as ``nlm+flip-0``."""
        steps = (self.denoising, self.augmenting)
        return "+".join(step.label for step in steps if step is not None)

    def facts(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines what is done to an image."""
        found: dict[str, Any] = {"version": VERSION}
        if self.denoising is not None:
            found["denoising"] = self.denoising.word
        if self.augmenting is not None:
            found |= {"augmentation": self.augmenting.how, "seed": self.augmenting.seed}
        return found


@dataclass(frozen=True, slots=True)
class AlteringReader:
    """Altered rows of another reader; rows that cannot be read stay zeros."""

    reader: Reader
    alteration: Alteration

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        """Rows ``[start, stop)``, resized and altered."""
        rows = self.reader.read(start, stop, resizing)
        images, how = rows.images, self.alteration
        if how.denoising is not None:
            images = how.denoising.of(images)
        if how.augmenting is not None:
            images = how.augmenting.of(images, start)
        images[list(rows.failed)] = 0
        return replace(rows, images=images)

    def held_bytes(self) -> int:
        """Memory of the data, and of a filter."""
        return self.reader.held_bytes() + FILTER_BYTES

    def content(self) -> str:
        """Hash of the data and of what is done to it, hex."""
        facts = [self.reader.content(), self.alteration.facts()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def altering(source: ReaderSource, alteration: Alteration) -> ReaderSource:
    """The source with altered images; its rows and their columns stay the same."""
    return replace(
        source,
        name=f"{source.name}+{alteration.label}",
        reader=AlteringReader(source.reader, alteration),
        alteration=alteration.facts(),
        original=source,
    )


def planned_alteration(planned: PlannedAlteration | None) -> Alteration | None:
    """The alteration that a plan records; raises ``InputError`` for an unknown filter."""
    if planned is None:
        return None
    denoising = None if planned.denoising is None else denoising_of(planned.denoising)
    how = planned.augmentation
    return Alteration(denoising, None if how is None else Augmenting(how, planned.seed))
