"""The command that writes a page: report."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer

from cli import options
from cli.output import emit


def add_to(app: typer.Typer) -> None:
    """Add this command to the app."""
    app.command(
        epilog="Example: intro-pipe report cifar10c-test@resnet18 --paper table-5 --out table-5"
    )(report)


def report(
    results: Annotated[
        list[str], typer.Argument(help="Results of the store, or as much of a name as tells one.")
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call the report. (default: as the first result)")
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Of the page. (default: as the first result)")
    ] = None,
    about: Annotated[str, typer.Option(help="What the page is about, in a sentence.")] = "",
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Columns of the table, commas between. (default: accuracy,ece,mce,brier; of "
            "active learning accuracy; of ood fpr95,detection_error,auroc)"
        ),
    ] = None,
    figures: Annotated[
        str | None,
        typer.Option(
            help="accuracy-vs-ece, gain-by-corruption, gain-by-level, ece-by-level, reliability, "
            "by-epoch; of active learning learning-curves; commas between. (default: all that the "
            "results allow)"
        ),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(help="Whose numbers stand beside: table-1, -2, -3, -5, -7, -8 or -11."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", help="Folder to copy the files to, over those of another report."),
    ] = None,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Write results as one page to look at: a table, figures, definitions, where it comes from."""
    from pathlib import Path

    from pipeline.journal import Journal
    from stages.applications.detection import SHOWN as DETECTION_SHOWN
    from stages.applications.evaluation import SHOWN
    from stages.report.learning import CURVES, METRICS, build_learning_report, is_learning
    from stages.report.report import (
        build_report,
        check_folder,
        copy_report,
        figures_for,
        report_name,
        report_plan,
    )
    from stages.report.results import entries_of, find_result
    from stages.report.tables import TableSpec
    from store.catalog import FeatureStore

    if out is not None:
        check_folder(Path(out))
    place = FeatureStore(store).require()
    entries = entries_of([find_result(place, result) for result in results])
    card = entries[0].result.card()
    is_of_learning = is_learning(entries[0].result)
    build = build_learning_report if is_of_learning else build_report
    columns: tuple[str, ...] = DETECTION_SHOWN if "detector" in card else SHOWN
    if is_of_learning:
        columns = METRICS
    if figures is not None:
        shown = list(options.names(figures))
    else:
        shown = [CURVES] if is_of_learning else list(figures_for(place, entries))
    if len(entries) > 1 and "detector" in card:
        card = {**card, "title": f"Out-of-distribution detection on {card['features']}"}
    says: dict[str, Any] = {
        "title": title or str(card.get("title", entries[0].result.name)),
        "about": about,
        "entries": entries,
        "table": TableSpec(paper, options.names(metrics) or columns),
        "figures": shown,
    }
    called = name or report_name(report_plan(**says))
    command = shlex.join(["intro-pipe", *sys.argv[1:]])
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        made = build(place, called, **says, command=command, journal=journal)
    copied = copy_report(made, Path(out)) if out else []
    card, page = made.card(), f"{made.storage.location}/report.html"
    text = [*card["shows"], f"page: {page}", *([f"copied to {out}"] if out else [])]
    facts = {"report": made.name, "page": page, "copied": [str(path) for path in copied]}
    told = {key: card[key] for key in ("shows", "falls_short", "figures")}
    emit({**facts, **told}, "\n".join(text), as_json=as_json)
