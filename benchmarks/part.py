"""A part of the benchmark: contenders and the ratios between them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measuring import Contender, Measured, Run, ratios


@dataclass(frozen=True)
class Sizes:
    """Sizes of a full run and of a trial."""

    is_quick: bool

    def pick(self, quick: int, full: int) -> int:
        """The requested one of two sizes."""
        return quick if self.is_quick else full


@dataclass(frozen=True)
class Figure:
    """What a part comes to, and what is aimed at.

    How many times as much of something a row costs in ``over``, the cheapest of several, as in
    ``under``; where there is no ``under``, how much it is.
    """

    name: str
    over: Sequence[str]
    under: str | None
    of: Callable[[Run], float]
    at_least: float | None = None
    at_most: float | None = None

    def row(self, found: Sequence[Measured]) -> dict[str, Any]:
        """The median over the rounds with their range, and whether the aim is reached."""
        there = {each.contender.name: each for each in found if each.runs}
        values = [self._values(there[name], there) for name in self.over if name in there]
        best = min(filter(None, values), key=statistics.median, default=None)
        if best is None:
            return {"figure": self.name, "aim": self._aim()}
        middle = statistics.median(best)
        return {
            "figure": self.name,
            "median": middle,
            "from": min(best),
            "to": max(best),
            "aim": self._aim(),
            "reached": self._is_reached(middle) if self._aim() else None,
        }

    def _values(self, over: Measured, there: Mapping[str, Measured]) -> list[float]:
        if self.under is None:
            return [self.of(run) for run in over.runs]
        return ratios(over, there[self.under], self.of) if self.under in there else []

    def _aim(self) -> str:
        least = "" if self.at_least is None else f"≥ {self.at_least:g}"
        return least or ("" if self.at_most is None else f"≤ {self.at_most:g}")

    def _is_reached(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most


@dataclass(frozen=True)
class Part:
    """A part: name, description, contenders, and what is shown of them."""

    name: str
    title: str
    words: str | None
    contenders: Callable[[Sizes], list[Contender]]
    columns: tuple[str, ...]
    figures: tuple[Figure, ...]
