"""The command export."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from cli import options
from cli.completion import completing, names_in_store
from cli.output import emit, note
from cli.plain_help import LIST
from cli.scored import Training, head_option, scored_by
from stages.csv_text import ESCAPE_FORMULAS
from stages.reflection.conditions import WHERE
from stages.verbs import STORE

if TYPE_CHECKING:
    from stages.export.exported_rows import Exported
    from store.catalog import FeatureStore

FORMS = ("csv", "parquet", "label-studio", "fiftyone")


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(
        epilog="Example: intro-pipe export photos@resnet18 --out scores.parquet --scores energy\n\n"
        "Example: intro-pipe export photos@resnet18 --samples round-1/to-label.csv "
        "--images ./photos --format fiftyone --out samples.json",
        rich_help_panel=STORE,
    )(options.grouped(export))


@dataclass(frozen=True)
class Chosen:
    """The rows and the columns to export."""

    head: Annotated[
        list[str] | None,
        head_option(
            "Head whose predictions to add, as [LABEL=]NAME; may be repeated. The first of its "
            "seeds predicts."
        ),
    ] = None
    scores: Annotated[
        str | None,
        typer.Option(
            "--scores",
            metavar=LIST,
            help="Scores to add to the confidence, separated by commas: msp, energy, max-logit, "
            "gradnorm, margin, entropy, exgrad, gen, gradtrust, knn, vim, react, ...",
        ),
    ] = None
    training: Training = None
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help=WHERE),
    ] = None
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            help="CSV file with a column sample_id: export only these samples, such as the list of "
            "`active-learn --ask`.",
            metavar="FILE",
        ),
    ] = None
    curation: Annotated[
        str | None,
        typer.Option(
            "--curation",
            help="Result of curate on these features: adds the suggested class, whether the label "
            "is flagged, and all scores.",
            metavar="RESULT",
            autocompletion=completing(names_in_store("result")),
        ),
    ] = None
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            help="Folder of the images, or the part of their URLs before the sample id. Adds the "
            "column image.",
            metavar="PLACE",
        ),
    ] = None


@dataclass(frozen=True)
class FileOptions:
    """The file to write."""

    out: Annotated[str, typer.Option("--out", help="File to write; an existing one is replaced.")]
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Format: csv, parquet, label-studio (JSON tasks) or fiftyone (JSON samples). "
            "(default: from the suffix of --out, .csv or .parquet)",
        ),
    ] = None
    escape_formulas: Annotated[bool, typer.Option("--escape-formulas", help=ESCAPE_FORMULAS)] = (
        False
    )

    def checked(self) -> Self:
        """The options with their format, for use before anything is computed.

        Raises:
            InputError: the format is unknown, or the file cannot be written.
        """
        from stages.errors import InputError

        form = self.form or Path(self.out).suffix.removeprefix(".").lower()
        if form not in FORMS:
            found = f"--format {form}" if self.form else f"--out {self.out}"
            raise InputError(f"{found}: expected --format with one of {', '.join(FORMS)}")
        place = Path(self.out).resolve()
        if (place.exists() and not place.is_file()) or not place.parent.is_dir():
            raise InputError(f"--out {self.out}: expected a file in an existing folder")
        if self.escape_formulas and form != "csv":
            raise InputError(f"--escape-formulas is for CSV, found {form}: add --format csv")
        return replace(self, form=form)


def export(
    features: Annotated[
        str,
        typer.Argument(
            help="Feature set, e.g. photos@resnet18.",
            autocompletion=completing(names_in_store("features")),
        ),
    ],
    *,
    chosen: Chosen,
    file: FileOptions,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Write predictions and scores of f and heads to a file, for tables and labelling tools.

    With --format label-studio, the labeling interface of the project is printed.
    """
    from pipeline.progress import Progress
    from stages.export.export_file import write_rows
    from stages.export.label_studio import labeling_interface
    from store.catalog import FeatureStore
    from store.failures import failures_of, is_failed

    file = file.checked()
    exported = _exported(FeatureStore(store).require(), features, chosen)
    shard_set = exported.feature_set.shard_set
    if is_failed(shard_set):
        note(f"{exported.feature_set.name}: {failures_of(shard_set)}")
    with Progress("export", exported.feature_set.n_rows, unit="rows") as progress:
        n_rows = write_rows(
            exported,
            Path(file.out),
            file.form or "",
            escape_formulas=file.escape_formulas,
            tick=progress.advance,
        )
    note(f"{n_rows:,} rows in {file.out}")
    interface = labeling_interface(exported.class_names) if file.form == "label-studio" else None
    if interface or as_json:
        facts = {"out": file.out, "format": file.form, "n_rows": n_rows, "interface": interface}
        emit(facts, interface or "", as_json=as_json)


def _exported(store: FeatureStore, features: str, chosen: Chosen) -> Exported:
    from stages.csv_text import cells_of
    from stages.curation.curation_result import columns_of_rows
    from stages.export.exported_rows import Exported
    from stages.reflection.conditions import conditions
    from stages.report.results import find_result

    scores = ("confidence", *options.names(chosen.scores))
    feature_set = store.open(features)
    where = conditions(chosen.where or [], feature_set.schema)
    sample_ids = None
    if chosen.samples is not None:
        cells = cells_of(Path(chosen.samples), ["sample_id"])
        sample_ids = frozenset(sample_id for _, (sample_id,) in cells)
    scored = scored_by(store, feature_set, scores, chosen.training, chosen.head)
    more = None
    if chosen.curation is not None:
        more = columns_of_rows(find_result(store, chosen.curation), feature_set)
    return Exported(feature_set, scored, where, sample_ids, chosen.images, more)
