"""The `intro-pipe` command: its subcommands, and how errors are printed."""

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import cli.packages  # noqa: F401 - before any other module of intro-pipe: see there
from cli import (
    checking,
    data,
    exporting,
    prediction,
    reading,
    runs,
    verbs,
)
from cli.plain_help import PlainCommand
from cli.remedies import our_errors, with_remedy
from cli.streams import prepare_streams
from pipeline.cpus import limit_spinning, limit_threads
from pipeline.signals import stopped_by_signals
from pipeline.terminal import printable_line
from stages.verbs import MODULES

app = typer.Typer(
    name="intro-pipe",
    cls=verbs.Commands,
    help="Introspective gradient features of image data sets, in a store that Dask reads.",
    epilog="First: intro-pipe demo\n\nThen: intro-pipe extract --dataset cifar10c --gpus 8",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(*, is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        print(f"intro-pipe {version('intro-pipe')}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version.",
            is_eager=True,
            callback=lambda value: _print_version(is_wanted=value),
        ),
    ] = False,
) -> None:
    """Introspective gradient features of image data sets, in a store that Dask reads."""


data.add_to(app)
verbs.add_to(app)
reading.add_to(app)
checking.add_to(app)
prediction.add_to(app)
exporting.add_to(app)
runs.add_to(app)
for command in app.registered_commands:
    command.cls = PlainCommand


def commands() -> dict[str, Any]:  # Any: each version of typer has click in another module
    """Every command, by name; imports the modules of all stages."""
    program: Any = typer.main.get_command(app)
    return {
        name: verbs.command_of(name) if name in MODULES else command
        for name, command in program.commands.items()
    }


def _start_fast() -> None:
    """Save a sixth of the processor time of a short command.

    Garbage is collected less often: imports create many objects and no garbage. pydantic does not
    read the metadata of every installed package in search of plugins.
    """
    gc.set_threshold(50_000)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def main() -> None:
    """Run the command; errors of intro-pipe are printed as one line on stderr.

    Exit code 1: the work failed. Exit code 2: an option or input is invalid; nothing was written.
    Above 128: a signal stopped the command, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    _start_fast()
    prepare_streams()
    limit_threads()
    limit_spinning()
    with stopped_by_signals() as stop:
        try:
            _run_app()
        except BaseException as error:
            if not (stop.signum and _is_interrupt(error)):
                raise
            line = "finished work is kept; run the same command again to continue"
            print(f"stopped by {stop.name}: {line}", file=sys.stderr)
            sys.exit(128 + stop.signum)


def _is_interrupt(error: BaseException) -> bool:
    is_typers = isinstance(error, SystemExit) and error.code == 128 + signal.SIGINT
    return is_typers or isinstance(error, KeyboardInterrupt)


def _run_app() -> None:
    _require_current_directory()
    try:
        app()
    except Exception as error:
        if not isinstance(error, our_errors()):
            raise
        print(f"intro-pipe: {printable_line(with_remedy(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError | LookupError | FileNotFoundError) else 1)


def _require_current_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        line = "the current directory no longer exists: change to another and run the command again"
        print(f"intro-pipe: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
