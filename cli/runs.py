"""Commands about runs: resume, demo."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options
from cli.output import note
from cli.replay import Named, replayed
from stages.verbs import PAGES, STORE


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(epilog="Example: intro-pipe resume", rich_help_panel=STORE)(options.grouped(resume))
    app.command(epilog="Example: intro-pipe demo", rich_help_panel=PAGES)(demo)


def resume(
    store: options.Store = options.DEFAULT_STORE,
    *,
    named: Named,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Resume the last unfinished run from its journal.

    It computes only what is missing. Options that say where it runs, and where it writes outside
    the store, are not taken from the journal: pass them again.
    """
    from pipeline.journal import last_unfinished
    from store.catalog import FeatureStore

    place = FeatureStore(store).require().location
    run = last_unfinished(place)
    again = replayed(run, place, named)
    for line in again.notes():
        note(line)
    if not dry_run:
        again.make(as_json=as_json)


def demo(
    store: Annotated[
        str, typer.Option("--store", help="Folder to keep the results in.")
    ] = "demo-store",
    as_json: options.AsJson = False,
    dry_run: options.DryRun = False,
) -> None:
    """Run the whole pipeline on scikit-learn's digits, offline, in a minute or two."""
    from cli.demo import run_demo

    run_demo(store, as_json=as_json, dry_run=dry_run)
