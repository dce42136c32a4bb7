"""Pairs of a reference and a distorted image, with the opinions of people if there are any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

from pipeline.terminal import printable_line
from stages.data.corruptions.cells import Cells
from stages.data.fingerprint import listing_content
from stages.data.listing import expected_images, images_below
from stages.data.registry import name_of
from stages.data.regular import size_of_regular
from stages.errors import DataNotFoundError, InputError

UNKNOWN = -1
"""Level of a distortion that has none."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A reference and a distorted image.

    Attributes:
        reference: file of the reference, relative to the folder of the pairs or absolute.
        distorted: file of the distorted image; for one that is made by corruption, its name.
        mos: mean opinion score; NaN if there is none.
        std: standard deviation of the opinions; NaN if it is not known.
        distortion: kind of distortion; empty if it is not known.
        level: its strength, larger for stronger distortions; `UNKNOWN` if it is not known.
    """

    reference: str
    distorted: str
    mos: float = nan
    std: float = nan
    distortion: str = ""
    level: int = UNKNOWN

    def __str__(self) -> str:
        """Both files, for a message."""
        return f"{printable_line(self.reference)[:80]} and {printable_line(self.distorted)[:80]}"


@dataclass(frozen=True)
class Pairs:
    """The pairs of a data set, in the order of its list.

    Attributes:
        name: name of the data set.
        root: folder that the files are relative to.
        pairs: the pairs.
        layout: how they were found.
        opinions: what the scores of people are, in words; empty without scores.
        cells: corruptions with which distorted images are made; ``None`` if they are files.
    """

    name: str
    root: Path
    pairs: tuple[Pair, ...]
    layout: str
    opinions: str = ""
    cells: Cells | None = None

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InputError(f"{self.root}: expected pairs of images, found none")
        first: dict[tuple[str, str], int] = {}
        for at, pair in enumerate(self.pairs, start=1):
            if (other := first.setdefault((pair.reference, pair.distorted), at)) != at:
                raise InputError(
                    f"{self.root}: pairs {other:,} and {at:,} are the same, {pair}, expected every "
                    "pair once"
                )
            if pair.std < 0:
                raise InputError(
                    f"{self.root}: pair {at:,}, {pair}, has a standard deviation of {pair.std:g}, "
                    "expected at least 0"
                )

    @property
    def has_opinions(self) -> bool:
        """Whether any pair has a mean opinion score."""
        return any(not isnan(pair.mos) for pair in self.pairs)

    @property
    def references(self) -> tuple[str, ...]:
        """The references, each once, in order of first appearance."""
        return tuple(dict.fromkeys(pair.reference for pair in self.pairs))

    def files(self) -> tuple[str, ...]:
        """All image files, each once."""
        distorted = () if self.cells else tuple(pair.distorted for pair in self.pairs)
        return tuple(dict.fromkeys((*self.references, *distorted)))

    def fingerprint(self) -> str:
        """Hash of the list and of the files (see `listing_content` for what it may miss)."""
        listed = [(name, size_of_regular(self.root / name)) for name in self.files()]
        rows = json.dumps([_plain(pair) for pair in self.pairs]).encode()
        found = [listing_content(self.root, listed), hashlib.sha256(rows).hexdigest()]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:  # Any: JSON
        """What plans record of the pairs."""
        facts = {"name": self.name, "layout": self.layout, "fingerprint": self.fingerprint()}
        if self.cells is None:
            return facts
        return {**facts, "corrupt": list(self.cells.words), "seed": self.cells.seed}


def _plain(pair: Pair) -> list[Any]:  # Any: JSON
    numbers = [None if isnan(each) else each for each in (pair.mos, pair.std)]
    return [pair.reference, pair.distorted, *numbers, pair.distortion, pair.level]


def corrupted_pairs(folder: Path, cells: Cells) -> Pairs:
    """Every image below a folder in every cell: by corruption, then severity, then image.

    Raises:
        DataNotFoundError, InputError: the folder does not exist, or has no images.
    """
    if not folder.is_dir():
        raise DataNotFoundError(f"{folder}: no such folder, expected one of reference images")
    images, left_out = images_below(folder)
    if not images:
        raise InputError(f"{folder}: {expected_images('reference images', left_out)}")
    pairs = [
        Pair(image, f"{name}/{severity}/{image}", distortion=name, level=severity)
        for name, severity in cells.cells
        for image in images
    ]
    name = f"{name_of(folder)}+{cells.label}"
    return Pairs(name, folder, tuple(pairs), "references", cells=cells)


def check_lengths(what: str, n_expected: int, found: Sequence[tuple[str, int]]) -> None:
    """Raise ``InputError`` unless every list has one entry per pair.

    Args:
        what: the list that says how many pairs there are, such as "mos_with_names.txt".
        n_expected: its length.
        found: name and length of the other lists.
    """
    for name, n in found:
        if n != n_expected:
            raise InputError(
                f"{name} has {n:,} values and {what} {n_expected:,}, expected the same number: "
                "are both of the same version of the data set?"
            )
