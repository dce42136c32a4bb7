"""What plans record about images, as types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import NonNegativeInt

from stages.data.augmenting import Flips
from stages.data.resize import Resize, resize_of
from stages.errors import InputError
from stages.typed import typed


@dataclass(frozen=True, slots=True)
class PlannedCorruption:
    """What a plan records about images that are corrupted when they are read."""

    of: str
    n_images: int
    cells: tuple[str, ...]
    seed: int


class PlannedSample(NamedTuple):
    """What a plan records about rows that were drawn."""

    of: int
    seed: int
    shuffled: bool = False


@dataclass(frozen=True, slots=True)
class PlannedAlteration:
    """What a plan records about images that are denoised and augmented when they are read.

    Attributes:
        of: name of the data set before that.
        fingerprint: hash of its images.
        denoising: the filter and its parameters.
        augmentation: random flips, or flips and crops.
        seed: number of their draw.
    """

    of: str
    fingerprint: str
    denoising: str | None = None
    augmentation: Flips | None = None
    seed: NonNegativeInt = 0


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """What a plan records about a source, as far as it is needed to find it."""

    name: str
    split: str
    n_rows: int
    image_size: tuple[int, int]
    class_names: tuple[str, ...] | None = None
    resize: str = "none"
    corruption: PlannedCorruption | None = None
    sample: PlannedSample | None = None
    alteration: PlannedAlteration | None = None

    @property
    def resizing(self) -> Resize:
        """How its images were resized."""
        return resize_of(self.resize, self.image_size)

    @property
    def clean(self) -> tuple[str, int]:
        """Name and number of rows of the images before they are corrupted and altered."""
        if self.corruption is not None:
            return self.corruption.of, self.corruption.n_images
        return self.name if self.alteration is None else self.alteration.of, self.n_rows


def planned_source(planned: object) -> PlannedSource:
    """Parse the facts about a source in a plan, which may be foreign; raises ``InputError``."""
    if not isinstance(planned, Mapping):
        raise InputError("the plan does not describe a data set: expected its name and size")
    found = typed(PlannedSource, planned, "the data set of the plan")
    if "\0" in found.name:
        raise InputError("the data set of the plan: expected a name, found a zero byte in it")
    return found
