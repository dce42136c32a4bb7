"""Options that several commands share, with their help texts and defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer

from pipeline import execution_help

DEFAULT_STORE = "intro-pipe-store"
HOW, OUTPUT = "How to run", "Output"
"""Groups of options in the help."""


Store = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="INTRO_PIPE_STORE",
        help="Folder or URL (s3://…) of the feature store.",
        metavar="PLACE",
        rich_help_panel=HOW,
    ),
]
DataRoot = Annotated[
    str | None,
    typer.Option(
        "--data-root",
        envvar="INTRO_PIPE_DATA",
        help="Folder with the data sets. (default: ~/.cache/intro-pipe/data)",
        metavar="FOLDER",
        rich_help_panel=HOW,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON.", metavar="", rich_help_panel=OUTPUT),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print what would be done without writing anything.",
        metavar="",
        rich_help_panel=OUTPUT,
    ),
]
Device = Annotated[str | None, typer.Option("--device", help=execution_help.DEVICE)]
_AS_IN_RUN = "(default: as in the run)"


@dataclass(frozen=True, slots=True)
class Overrides:
    """Where a run continues; values that are not given are those of the run or the default."""

    data_root: Annotated[
        str | None,
        typer.Option("--data-root", help=f"Folder with the data sets. {_AS_IN_RUN}"),
    ] = None
    executor: Annotated[
        str | None, typer.Option("--executor", help=f"{execution_help.EXECUTOR} (default: auto)")
    ] = None
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, help=execution_help.GPUS)] = None
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help=execution_help.WORKERS)
    ] = None
    memory: Annotated[str | None, typer.Option("--memory", help=execution_help.MEMORY)] = None
    address: Annotated[str | None, typer.Option("--address", help=execution_help.ADDRESS)] = None
    device: Device = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The same command for typer, with the fields of a dataclass as options.

    A parameter whose type is a dataclass is replaced by one option per field, which has the type
    and the default of the field.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    def run(**given: Any) -> None:  # Any: whatever options hold
        values = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **values)

    parameters = [
        option
        for each in signature(command).parameters.values()
        for option in _options_of(each, hints[each.name])
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # for typer
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _options_of(parameter: Parameter, hint: Any) -> Iterator[Parameter]:  # Any: a type
    """One option for each field of a dataclass, or for the parameter itself."""
    if not is_dataclass(hint):
        yield parameter.replace(annotation=hint, kind=Parameter.KEYWORD_ONLY)
        return
    hints = get_type_hints(hint, include_extras=True)
    for field in fields(hint):
        default = Parameter.empty if field.default is MISSING else field.default
        yield Parameter(
            field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )


def names(text: str | None) -> tuple[str, ...]:
    """The names in a list separated by commas, such as ``"fog,snow"``; none in ``None``."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
