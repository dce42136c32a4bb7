"""Commands about runs: resume, demo."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.output import note

if TYPE_CHECKING:
    from pipeline.journal import Run


RESUMABLE = (
    "corrupt",
    "train-sensing",
    "extract",
    "train-head",
    "fit-temperature",
    "fit-neighbours",
    "evaluate",
    "ood",
    "analyse",
    "active-learn",
    "report",
    "run",
    "reproduce",
)
"""The commands that keep a journal. Others could, say, write a file wherever a journal says."""


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
    note(f"in {run.folder}: intro-pipe {' '.join(command[4:])}")
    if not dry_run:
        os.chdir(run.folder)
        os.execve(sys.executable, command, environment)


def command_of(run: Run, location: str) -> tuple[list[str], dict[str, str]]:
    """What gives the command of a run again, as a process: its words, and its whole environment.

    The journal may come from someone else: its words go to our own parser, and nothing of the
    folder that it names is imported, by ``-P`` and a ``PYTHONPATH`` that does not depend on it.
    """
    from pipeline.errors import JournalError
    from pipeline.journal import VARIABLES
    from stages.sensing.trust import REPLAYED

    words = list(run.command)
    if not words or words[0] not in RESUMABLE:
        asked = " ".join(["intro-pipe", *words])
        raise JournalError(
            f"the journal says `{asked}`, expected one of {', '.join(RESUMABLE)}: it is not of us"
        )
    if shadows := _shadows_in(Path(run.folder)):
        raise JournalError(
            f"{run.folder} holds {shadows[0]}, which workers would take for the installed "
            f"module: if it is yours, give the command there: intro-pipe {' '.join(words)}"
        )
    for at, word in enumerate(words):  # the store may have been moved since
        if word == "--store":
            words[at + 1 : at + 2] = [location]
        elif word.startswith("--store="):
            words[at] = f"--store={location}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(VARIABLES)}
    environment = {**kept, **run.environment, REPLAYED: "1", "INTRO_PIPE_STORE": location}
    if paths := [each for each in kept.get("PYTHONPATH", "").split(os.pathsep) if each]:
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths))
    return [sys.executable, "-P", "-m", "cli.app", *words], environment


def _shadows_in(folder: Path) -> list[str]:
    """The modules of a folder that have the name of an installed one: Ray's workers look there."""
    if not folder.is_dir() or folder.resolve() == Path(__file__).resolve().parents[1]:
        return []  # ours are from there
    found = [*folder.glob("*.py"), *folder.glob("*.so"), *folder.glob("*.pyc")]
    found += [each.parent for each in folder.glob("*/__init__.*")]
    elsewhere = [path for path in sys.path if path and Path(path).resolve() != folder.resolve()]
    names = {each.name: each.name.partition(".")[0] for each in sorted(found)}
    return [file for file, name in names.items() if PathFinder.find_spec(name, elsewhere)]


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
