"""Commands about runs: resume, demo."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.output import note

if TYPE_CHECKING:
    from pipeline.journal import Run


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
    from pipeline.journal import last_unfinished
    from store.catalog import FeatureStore

    place = FeatureStore(store).require().location
    run = last_unfinished(place)
    command, environment = command_of(run, place)
    command += ["--json"] if as_json and "--json" not in command else []
    note(f"in {run.folder}: intro-pipe {' '.join(command[3:])}")
    if not dry_run:
        os.chdir(run.folder)
        os.execve(sys.executable, command, environment)


def command_of(run: Run, location: str) -> tuple[list[str], dict[str, str]]:
    """What gives the command of a run again, as a process: its words, and its whole environment."""
    from pipeline.journal import VARIABLES

    words = list(run.command)
    if "--store" in words:  # the store may have been moved since
        words[words.index("--store") + 1] = location
    kept = {key: value for key, value in os.environ.items() if not key.startswith(VARIABLES)}
    environment = {**kept, **run.environment, "INTRO_PIPE_STORE": location}
    return [sys.executable, "-m", "cli.app", *words], environment


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
