"""The `intro-pipe` command: its sub-commands, and the one place where errors become a line."""

import sys
from typing import Annotated

import typer

from cli import (
    active,
    analysis,
    checking,
    data,
    detection,
    heads,
    reading,
    recipes,
    report,
    runs,
    training,
)
from pipeline.terminal import printable_line

app = typer.Typer(
    name="intro-pipe",
    help="Introspective gradient features of image data sets, in a store that Dask reads.",
    epilog="First: intro-pipe demo  ·  Then: intro-pipe extract --dataset cifar10c --gpus 8",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _say_version(*, is_wanted: bool) -> None:
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
            callback=lambda value: _say_version(is_wanted=value),
        ),
    ] = False,
) -> None:
    """Introspective gradient features of image data sets, in a store that Dask reads."""


INTERRUPTED = 130
"""Exit code after Ctrl-C, by the custom of shells; typer has turned the interrupt into it."""

data.add_to(app)
training.add_to(app)
heads.add_to(app)
reading.add_to(app)
active.add_to(app)
checking.add_to(app)
detection.add_to(app)
analysis.add_to(app)
report.add_to(app)
recipes.add_to(app)
runs.add_to(app)


def main() -> None:
    """Run the command; our errors are one line on stderr.

    Exit code 1: the work failed. Exit code 2: what was asked for does not fit; nothing was written.
    """
    try:
        app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("stopped: what was finished is kept; the same command goes on", file=sys.stderr)
        raise
    except Exception as error:
        if not _is_ours(error):
            raise
        print(f"intro-pipe: {printable_line(str(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError | LookupError | FileNotFoundError) else 1)


def _is_ours(error: Exception) -> bool:
    from pipeline.errors import PipelineError
    from stages.errors import StageError
    from store.errors import StoreError

    # The world's errors say what and where by themselves: a full disk, a file in the way.
    return isinstance(error, StoreError | PipelineError | StageError | OSError)


if __name__ == "__main__":
    main()
