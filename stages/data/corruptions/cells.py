"""Cells, each a corruption at one severity, written as ``fog:3``; ``fog`` and ``all`` name many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby

from stages.data.corruptions.names import CORRUPTIONS, N_SEVERITIES
from stages.errors import InputError

ALL = "all"
SEVERITIES = range(1, N_SEVERITIES + 1)
MAX_NAMED = 3
"""Maximum number of words in the name of a set; a set with more is named by the number of cells."""

Cell = tuple[str, int]
"""A corruption and its severity."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells in the order of rows: by corruption, then severity; each once.

    Attributes:
        cells: the cells.
        seed: seed of their random numbers.
    """

    cells: tuple[Cell, ...]
    seed: int = 0

    @property
    def words(self) -> tuple[str, ...]:
        """The fewest words that `cells_of` reads as these cells, sorted."""
        if len(self.cells) == len(CORRUPTIONS) * N_SEVERITIES:
            return (ALL,)
        found: list[str] = []
        for name, group in groupby(self.cells, key=lambda cell: cell[0]):
            severities = [severity for _, severity in group]
            is_whole = len(severities) == N_SEVERITIES
            found += [name] if is_whole else [f"{name}:{severity}" for severity in severities]
        return tuple(found)

    @property
    def label(self) -> str:
        """Suffix of the name of a data set, such as ``fog-3`` or ``95-cells``."""
        if self.words != (ALL,) and len(self.words) <= MAX_NAMED:
            return "+".join(word.replace(":", "-") for word in self.words)
        return f"{len(self.cells)}-cells"


def cells_of(words: Sequence[str], seed: int = 0) -> Cells:
    """The cells that some words name.

    >>> cells_of(["snow:2", "fog:3"]).cells
    (('fog', 3), ('snow', 2))
    >>> cells_of(["all"]).label, cells_of([f"fog:{severity}" for severity in SEVERITIES]).words
    ('95-cells', ('fog',))

    Raises:
        InputError: a word is not a corruption, one with its severity, or ``all``.
    """
    return Cells(tuple(sorted({cell for word in words for cell in _cells(word)})), seed)


def _cells(word: str) -> Iterator[Cell]:
    name, colon, level = word.partition(":")
    severities = [each for each in SEVERITIES if level in ("", str(each))]
    names = CORRUPTIONS if word == ALL else [each for each in CORRUPTIONS if each == name]
    if not names:
        near = get_close_matches(name, (*CORRUPTIONS, ALL), n=1)
        hint = f" (did you mean {near[0]}{colon}{level}?)" if near else ""
        raise InputError(
            f"no corruption {name!r}{hint}: expected {ALL}, or one of {', '.join(CORRUPTIONS)}"
        )
    if not severities or (colon and not level):
        raise InputError(
            f"severity {level!r} of {name}: expected 1 to {N_SEVERITIES}, such as {name}:3, or "
            f"{name} for all"
        )
    yield from ((each, severity) for each in names for severity in severities)
