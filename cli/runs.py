"""Commands about runs: resume, demo."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli import options
from cli.output import note


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(epilog="Example: intro-pipe resume")(resume)
    app.command(epilog="Example: intro-pipe demo")(demo)


def resume(
    store: options.Store = options.DEFAULT_STORE,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Run the last command again that did not come to its end; the journal remembers it.

    It computes only what is missing, like any command that is given a second time.
    """
    from pipeline.journal import VARIABLES, last_unfinished
    from store.catalog import FeatureStore

    place = FeatureStore(store).require().location
    run = last_unfinished(place)
    command = [*run.command, *(["--json"] if as_json and "--json" not in run.command else [])]
    if "--store" in command:  # the store may have been moved since
        command[command.index("--store") + 1] = place
    note(f"in {run.folder}: intro-pipe {' '.join(command)}")
    if not dry_run:
        os.chdir(run.folder)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(VARIABLES)}
        environment = {**kept, **run.environment, "INTRO_PIPE_STORE": place}
        os.execve(sys.executable, [sys.executable, "-m", "cli.app", *command], environment)


def demo(
    store: Annotated[
        str, typer.Option("--store", help="Folder to keep the results in.")
    ] = "demo-store",
    as_json: options.AsJson = False,
    dry_run: options.DryRun = False,
) -> None:
    """Run the whole chain on scikit-learn's digits, offline, in a minute or two."""
    from cli.demo import run_demo

    run_demo(store, as_json=as_json, dry_run=dry_run)
