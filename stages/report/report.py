"""The stage report: results on one self-contained page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.fields import LabelledList, OneOf, Place, Ref, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Several, Stage, stage_name
from pipeline.workspace import Workspace
from stages.data.option_types import EscapeFormulas, OutputName
from stages.errors import InputError
from stages.metrics.definitions import DEFINITIONS, DETECTION, INFORMATION, SELECTIVE
from stages.report.kinds import kind_of
from stages.report.vocabulary import (
    COLUMNS,
    FIGURES,
    PAPER_TABLES,
    TABLE_METRICS,
)
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import fingerprint

if TYPE_CHECKING:
    from stages.report.content import Content
    from stages.report.results import Entry

Results = Annotated[
    LabelledList,
    Ref(("result",), taken_axes=COLUMNS),
    Written(option="", metavar="RESULTS", is_repeated=True),
]
PaperTable = Annotated[str, OneOf(PAPER_TABLES)]
Metric = Annotated[str, OneOf((*DEFINITIONS, *DETECTION, *INFORMATION, *SELECTIVE))]
Figure = Annotated[str, OneOf(FIGURES)]


class Table(BaseModel):
    """The table of a page: its metrics, and the table of the paper to compare with."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    paper: PaperTable | None = None
    metrics: Several[Metric] = TABLE_METRICS


class Report(Stage):
    """Write a report page of results: a table, figures, definitions, and their provenance."""

    verb = "report"
    makes = "report"
    examples = ("report cifar10c-test@resnet18 --paper table-5 --out table-5",)

    results: Annotated[Results, Field(min_length=1)] = Field(
        description="Results of the store, by name or unique prefix. LABEL=RESULT sets the name "
        "of a result on the page."
    )
    name: OutputName | None = Field(
        None, description="Name of the report. (default: the name of the first result)"
    )
    title: str | None = Field(
        None,
        description="Title of the page. (default: the name of the first result; in a recipe, "
        "its title)",
    )
    about: str = Field(
        "", description="One sentence on what the page is about. (default in a recipe: its own)"
    )
    metrics: Several[Metric] | None = Field(
        None,
        description="Columns of the table, separated by commas, or none for no table. (default: "
        "those of the kind of result, such as accuracy,ece,mce,brier for evaluate)",
    )
    paper: PaperTable | None = Field(None, description="Table of the paper to show for comparison.")
    figures: Several[Figure] | None = Field(
        None,
        description="Figures, separated by commas. (default: all that the results allow)",
    )
    profile: Annotated[str, Written(metavar="LABEL")] | None = Field(
        None,
        description="Label of a control, such as f with its last layer retrained, or f: also show "
        "the gains of each head over f and over it, and whether they have the profile of the "
        "paper's gain.",
    )
    table: Annotated[Table | None, Written(is_hidden=True)] = Field(
        None, description="Metrics and paper together, as recipes write them."
    )
    notes: Annotated[Several[str], Written(option="--note", metavar="TEXT", is_repeated=True)] = (
        Field((), description="Further limitation to list. May be repeated.")
    )
    out: Annotated[str, Place.OUTPUT, Written(metavar="FOLDER")] | None = Field(
        None,
        description="Folder to copy the files to; the files of another report there are "
        "overwritten.",
    )
    escape_formulas: EscapeFormulas = False

    @model_validator(mode="after")
    def _has_a_table(self) -> Self:
        if self.escape_formulas and self.out is None:
            raise ValueError("--escape-formulas is for the table of --out: add --out FOLDER")
        return self

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The page; it is named after the recipe or the first result.

        Raises:
            NotFoundError, AmbiguousNameError: the results are not in the store.
            InputError: the results are incompatible or have no profile of a gain, or ``out``
                contains other files.
        """
        from stages.report.writing import check_report_folder

        if self.out is not None:
            check_report_folder(Path(self.out))
        store = workspace.store.require()
        content = self.content(store, shlex.join(["intro-pipe", *workspace.command]))
        plan = content.plan
        plain = f"{content.stem}-{fingerprint(plan)}"
        stem = workspace.recipe.name if workspace.recipe else content.stem
        name = workspace.output_name("report", self.name, plain, stem, plan)

        @cache
        def written() -> Output:
            return _written(store, content)

        what = f"report {len(content.entries):,} results as {name}"
        return ArtifactJob(
            store,
            store.artifact("report", name),
            plan,
            title=f"report {name}",
            preview=Preview(what, {"report": name, "plan": plan}),
            compute=written,
            check=written,
            copy=self._copied,
        )

    def content(self, store: FeatureStore, command: str) -> Content:
        """Content of the page; options that are not given are derived from the results."""
        from stages.report.clean import clean_of
        from stages.report.content import Content
        from stages.report.tables import TableSpec

        entries = self._entries(store)
        kind = kind_of([each.result for each in entries])
        if self.profile is not None and stage_name(entries[0].result.plan()) != "evaluate":
            raise InputError(
                f"--profile: expected results of evaluate, found {entries[0].result.name}: omit it"
            )
        figures = self.figures
        if figures is None:
            figures = tuple(kind.figures(store, entries))
        metrics, paper = self.metrics, self.paper
        if self.table is not None:
            metrics, paper = self.table.metrics, self.table.paper
        if metrics is None:
            metrics = kind.metrics
        return Content(
            title=_title(entries) if self.title is None else self.title,
            about=self.about,
            entries=entries,
            table=TableSpec(paper, metrics) if metrics else None,
            figures=figures,
            notes=self.notes,
            command=command,
            clean=[clean_of(store, entry) for entry in entries],
            profile=self.profile,
        )

    def _entries(self, store: FeatureStore) -> list[Entry]:
        from stages.report.results import Entry, entries_of, find_result

        found = [find_result(store, each.name) for each in self.results]
        if any(each.axes for each in self.results):
            places = zip(self.results, found, strict=True)
            return [Entry(each.axes, result) for each, result in places]
        return entries_of(
            found, ["" if each.label == each.name else each.label for each in self.results]
        )

    def _copied(self, report: Artifact) -> list[Path]:
        from stages.csv_text import escaped_csv
        from stages.report.writing import TABLE, copy_report

        if self.out is None:
            return []
        copied = copy_report(report, Path(self.out))
        if self.escape_formulas and (table := Path(self.out, TABLE)) in copied:
            table.write_text(escaped_csv(table.read_text("utf-8")), "utf-8")
        return copied


def _title(entries: Sequence[Entry]) -> str:
    """Default title of a report: the title of its first result."""
    from stages.introspection.comparison_card import ComparisonCard
    from stages.report.results import is_judged

    first = entries[0].result
    if not is_judged(first):
        return first.name
    card = ComparisonCard.of(first)
    is_of_several = len(entries) > 1 and card.detector is not None
    return f"Out-of-distribution detection on {card.features}" if is_of_several else card.title


def _written(store: FeatureStore, content: Content) -> Output:
    from stages.report.writing import output_of

    page, numbers = kind_of([each.result for each in content.entries]).build(store, content)
    return output_of(page, numbers, content)
