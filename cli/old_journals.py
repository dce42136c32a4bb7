"""Journals of versions 0.3 and 0.4, which keep the command line of a run instead of its stage.

Delete this module once no such store is to be resumed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.stage import Stage

Options = dict[str, Any]  # Any: texts, numbers, flags, and lists of texts


def options_in(words: Sequence[str]) -> Options:
    """The options and arguments of a command line, by parameter; raises ``ValueError``."""
    from cli.verbs import command_of

    command = command_of(words[0])
    context = command.context_class(command)
    known = {str(parameter.name): parameter for parameter in command.params}
    try:
        given, rest, _ = command.make_parser(context).parse_args(list(words[1:]))
        values = {
            option: known[option].process_value(context, value)
            for option, value in given.items()
            if option in known and (isinstance(value, str | bool) or value)
        }
    except Exception as error:  # click's, which has another home in each version of typer
        raise ValueError(str(error)) from error
    if rest:
        raise ValueError(f"unexpected {shlex.join(rest)}")
    return values


def stage_in(stage: type[Stage], options: Options, place: Callable[[str], str]) -> Stage:
    """The stage that the options of a command describe.

    Args:
        stage: its class.
        options: as from ``options_in``.
        place: returns the full path of a file that an option names, or raises.

    Raises:
        InputError: a value is invalid, or a file cannot be read.
    """
    from cli.verbs import parsed, written_of
    from pipeline.fields import Place, mark_of

    fields = stage.model_fields
    values = {key: value for key, value in options.items() if key in fields}
    for key in values:
        if written_of(fields[key]).read and mark_of(fields[key], Place) is Place.FILE:
            values[key] = place(values[key])  # it is read now
    return parsed(stage, values)
