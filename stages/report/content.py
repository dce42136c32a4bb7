"""Content of a report, and the plan derived from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from stages.planned import PlannedResult
from stages.report.clean import Clean
from stages.report.results import Entry
from stages.report.tables import TableSpec
from stages.stored_card import StoredCard
from store.plan import Plan, fingerprint

VERSION = 3
"""Raised whenever the page for the same content changes."""


@dataclass(frozen=True, slots=True)
class ReportCard(StoredCard):
    """The card of a report, in its order.

    Attributes:
        shows: the findings, in sentences.
        falls_short: what a reader must know before comparing.
        figures: names of the figures.
        versions: library -> its version.
    """

    title: str
    about: str
    shows: tuple[str, ...]
    falls_short: tuple[str, ...]
    figures: tuple[str, ...]
    results: tuple[PlannedResult, ...]
    versions: Mapping[str, str]
    command: str


@dataclass(frozen=True)
class Content:
    """Content of a report.

    Attributes:
        title: title of the page, plain text.
        about: description below the title, plain text.
        entries: results, each with different values on the same axes.
        table: metrics of the table, and the table of the paper to compare with; ``None`` for no
            table.
        figures: names of figures.
        notes: further limitations to list.
        command: command that reproduces the report.
        clean: for each entry, where its accuracy on clean images comes from.
        profile: control for the profile of the paper's gain; ``None`` to leave the profile out.
    """

    title: str
    about: str
    entries: Sequence[Entry]
    table: TableSpec | None
    figures: Sequence[str]
    notes: Sequence[str] = ()
    command: str = ""
    clean: Sequence[Clean] = ()
    profile: str | None = None

    @property
    def plan(self) -> Plan:
        """Everything that determines the content of a report; the results must exist.

        The command is not part of it: different commands may create the same report.
        """
        table = self.table
        params = {
            "title": self.title,
            "about": self.about,
            "table": None if table is None else {**asdict(table), "metrics": list(table.metrics)},
            "figures": list(self.figures),
            "notes": list(self.notes),
            **({} if self.profile is None else {"profile": self.profile}),
        }
        return {
            "stage": {"name": "report", "version": VERSION, "params": params},
            "inputs": {
                "results": [asdict(result) for result in self.results],
                **({"clean": [asdict(each) for each in self.clean]} if any(self.clean) else {}),
            },
        }

    @property
    def results(self) -> tuple[PlannedResult, ...]:
        """The results as plans record them.

        Only the hash of each plan is recorded, since it contains those of features and heads.
        """
        found = [(entry.axes, entry.result) for entry in self.entries]
        return tuple(
            PlannedResult(dict(axes), result.name, fingerprint(result.plan()))
            for axes, result in found
        )

    @property
    def stem(self) -> str:
        """Name of the first result without its hash, after which a report is named."""
        first = self.entries[0].result.name
        return first.rpartition("-")[0] or first


def title_of(content: Content, title: str) -> str:
    """The title that was given, else one that says more than the name of the first result."""
    return title if content.title == content.entries[0].result.name else content.title
