"""Commands derived from stages: options, help, dry run, and the call of `make`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction
from inspect import Parameter, Signature, getdoc
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from typer.core import DEFAULT_MARKUP_MODE, TyperCommand, TyperGroup
from typer.main import get_command_from_info
from typer.models import CommandInfo

from cli import options
from cli.completion import completing, data_sets, names_in_store
from cli.output import emit, note
from cli.plain_help import LIST, PlainCommand, with_placeholders
from cli.remedies import with_remedy
from pipeline.terminal import printable_line
from stages.verbs import MODULES, group_of, stage_of, summary_of

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo

    from pipeline.fields import Written
    from pipeline.stage import Stage
    from pipeline.workspace import Workspace

M = TypeVar("M", bound="BaseModel")
MAX_CHOICES = 12
"""Choices that are listed in the help of an option."""

WHAT = "What to compute"
"""A group of options in the help, beside those of `cli.options`."""


class Commands(TyperGroup):
    """The commands of the program; the module of a stage is imported when its command is used."""

    def get_params(self, ctx: Any) -> list[Any]:  # Any: click's home varies
        """The options of the program, ``--help`` included."""
        return with_placeholders(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:  # Any: click's home varies
        """The names of the commands, whose summaries are read now: they take a while."""
        for verb in MODULES:
            self.commands[verb].help = summary_of(verb)
        return super().list_commands(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # Any: click's home varies
        """The command that the arguments begin with."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command_of(name) if name and name in MODULES else command, rest


def add_to(app: typer.Typer) -> None:
    """List the verbs of all stages among the commands."""
    for verb in MODULES:
        app.command(verb, rich_help_panel=group_of(verb))(lambda: None)


def command_of(verb: str) -> TyperCommand:
    """The command of a verb."""
    from cli.recipes import VIEWS

    stage, views = stage_of(verb), VIEWS.get(verb, ())

    def run(context: typer.Context, **values: Any) -> None:  # Any: whatever options hold
        given = {key for key in values if _is_given(context, key)}
        show = next((view.show for view in views if values[view.option]), run_stage)
        show(stage, values, given)

    context = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *_parameters(stage), *(view.parameter for view in views)]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # for typer
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    examples = "\n\n".join(f"Example: intro-pipe {example}" for example in stage.examples)
    info = CommandInfo(verb, cls=PlainCommand, callback=run, help=getdoc(stage), epilog=examples)
    command = get_command_from_info(
        info, pretty_exceptions_short=False, rich_markup_mode=DEFAULT_MARKUP_MODE
    )
    assert isinstance(command, TyperCommand)
    return command


def _is_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def run_stage(stage: type[Stage], values: Mapping[str, Any], given: Collection[str]) -> None:
    """Make the output of a stage, or print what would be made.

    Args:
        stage: the class.
        values: by option; the default for options that were not given.
        given: the options that were given.
    """
    asked, workspace = asked_in(stage, values, given)
    make_and_print(asked, workspace, dry_run=values["dry_run"], as_json=values["as_json"])


def asked_in(
    stage: type[Stage], values: Mapping[str, Any], given: Collection[str]
) -> tuple[Stage, Workspace]:
    """The stage that the options of `run_stage` describe, and where it is to run."""
    from pipeline.workspace import Execution, Workspace
    from stages.sensing.trust import trust
    from store.catalog import FeatureStore

    asked = parsed(stage, {key: values[key] for key in stage.model_fields if key in given})
    asked.check_given(given)
    for network in asked.networks():
        trust(network)
    workspace = Workspace(
        FeatureStore(values["store"]),
        values.get("data_root") or "",
        parsed(Execution, {key: values[key] for key in given}),
        command=tuple(sys.argv[1:]),
    )
    return asked, workspace


def make_and_print(asked: Stage, workspace: Workspace, *, dry_run: bool, as_json: bool) -> None:
    """Make the output of a stage, or print what would be made."""
    job = asked.job(workspace)
    preview = job.preview
    for line in dict.fromkeys(preview.notes):
        note(printable_line(line))
    if dry_run:
        job.refuse()
        if failure := job.failure():
            note(with_remedy(failure))
        emit(preview.facts, f"would {preview.text}", as_json=as_json)
        return
    with workspace.journal(_recorded(asked, workspace)).outcome() as journal:
        made = job.run(journal)
    from cli.summaries import SUMMARIES, summary

    text, facts = SUMMARIES.get(asked.verb, summary)(asked, made, workspace)
    emit(facts, text, as_json=as_json)


def _recorded(asked: Stage, workspace: Workspace) -> dict[str, Any]:  # Any: JSON
    """The stage as the journal keeps it: with full paths."""
    from stages.data.known import data_root_path
    from stages.data.places import full_path, located

    return located(asked, full_path, data_root_path(workspace.data_root)).to_json()


def _parameters(stage: type[Stage]) -> Iterator[Parameter]:
    """The options of a stage, then those of execution that it uses, then those of all."""
    from pipeline.fields import Place, mark_of
    from pipeline.workspace import Execution

    for name, field in stage.model_fields.items():
        if not written_of(field).is_hidden:
            is_output = mark_of(field, Place) is Place.OUTPUT
            yield _parameter(name, field, options.OUTPUT if is_output else WHAT)
    for name in stage.runs_with:
        if name in Execution.model_fields:
            yield _parameter(name, Execution.model_fields[name], options.HOW)
    common = {
        "store": (options.Store, options.DEFAULT_STORE),
        **({"data_root": (options.DataRoot, None)} if "data_root" in stage.runs_with else {}),
        "dry_run": (options.DryRun, False),
        "as_json": (options.AsJson, False),
    }
    for name, (annotation, default) in common.items():
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(name: str, field: FieldInfo, panel: str) -> Parameter:
    """An option, or an argument, for a field."""
    written = written_of(field)
    kind = _kind(field)
    shown: Any = {  # Any: keyword arguments of typer
        "help": _described(field),
        "rich_help_panel": panel,
        "metavar": "" if kind is bool else written.metavar or _metavar(field, kind),
        "show_default": kind is not bool and _default(field) is not None,
        "autocompletion": _completion(field),
    }
    value: Any = kind | None
    if written.is_repeated:
        value = list[str] | None
    if written.option == "":
        mark: Any = typer.Argument(**{**shown, "rich_help_panel": None})
    else:
        mark = typer.Option(written.option or f"--{name.replace('_', '-')}", **shown)
    default = _default(field)
    if field.is_required():
        value, default = (list[str] if written.is_repeated else kind), Parameter.empty
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[value, mark]
    )


def written_of(field: FieldInfo) -> Written:
    """How a field is written on the command line."""
    from pipeline.fields import Written, mark_of

    return mark_of(field, Written) or Written()


def _kind(field: FieldInfo) -> type:
    """The type of an option: a number, a flag, or a word."""
    kinds = {each for each in _leaves(field.annotation) if each is not NoneType}
    if _is_list(field.annotation) or written_of(field).read:
        return str
    return next((kind for kind in (bool, int, float) if kinds == {kind}), str)


def _leaves(annotation: Any) -> Iterator[Any]:  # Any: a type
    """The innermost types of a type: members of unions, and types without their annotations."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _leaves(parts[0])
    elif origin is Literal:
        yield from map(type, parts)
    elif parts and origin is not tuple:
        for part in parts:
            yield from _leaves(part)
    else:
        yield annotation


def _is_list(annotation: Any) -> bool:  # Any: a type
    return any(get_origin(each) is tuple for each in _leaves(annotation))


def _metavar(field: FieldInfo, kind: type) -> str:
    """Placeholder of a value in the help."""
    if _is_list(field.annotation):
        return LIST
    return {int: "N", float: "X"}.get(kind, "WORD" if _words(field) else "TEXT")


def _described(field: FieldInfo) -> str:
    """The description, followed by the choices if it does not explain each of them."""
    from pydantic.fields import FieldInfo

    from pipeline.fields import marks_of

    inner = (mark for mark in marks_of(field) if isinstance(mark, FieldInfo))
    texts = (field.description, *(each.description for each in inner))
    text, words = next(filter(None, texts), ""), _words(field)
    if len(words) > MAX_CHOICES or all(
        re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) for word in words
    ):
        return text
    return f"{text} Choices: {', '.join(words)}."


def _words(field: FieldInfo) -> tuple[str, ...]:
    """The words that the values of a field may be; empty if there is no list of them."""
    from pipeline.fields import OneOf, mark_of

    if found := mark_of(field, OneOf):
        return found.words
    return tuple(_literals(field.annotation))


def _literals(annotation: Any) -> Iterator[str]:  # Any: a type
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for part in get_args(annotation):
            yield from _literals(part)


def _default(field: FieldInfo) -> Any:  # Any: what the option holds
    """The default of a field, in the form of the option's value; None shows none."""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or None
    if isinstance(default, float) and written_of(field).read:  # it is read from a text
        return min(repr(default), str(Fraction(default).limit_denominator(10_000)), key=len)
    return default if default not in ("", None) else None


def _completion(field: FieldInfo) -> Callable[[str], list[str]] | None:
    """What completes the value in a shell; None for nothing."""
    from pipeline.fields import Place, Ref, mark_of

    if words := written_of(field).words:
        return completing(words)
    if mark_of(field, Place) is Place.DATA:
        return completing(data_sets)
    if ref := mark_of(field, Ref):
        return completing(names_in_store(*ref.kinds))
    return completing(lambda: _words(field)) if _words(field) else None


def parsed(model: type[M], given: Mapping[str, Any]) -> M:  # Any: what options hold
    """The model with the values of its options; raises ``InputError``, which names the option."""
    from pydantic import ValidationError

    fields = {key: field for key, field in model.model_fields.items() if key in given}
    try:
        return model(**{key: _value(field, given[key]) for key, field in fields.items()})
    except ValidationError as error:
        raise refusal(model, error) from error


def _value(field: FieldInfo, given: Any) -> Any:  # Any: what the option and the field hold
    """Convert the value of an option to the value of its field; lists are separated by commas."""
    written = written_of(field)
    if written.read is not None:
        return written.read(given)
    if written.is_repeated or not _is_list(field.annotation):
        return tuple(given) if written.is_repeated else given
    if given.strip() in ("", "none"):
        return ()
    kinds = set(_item_kinds(field.annotation))
    return tuple(_item(word.strip(), kinds) for word in given.split(",") if word.strip())


def _item_kinds(annotation: Any) -> Iterator[Any]:  # Any: a type
    for each in _leaves(annotation):
        if get_origin(each) is tuple:
            for part in get_args(each):
                if part is not ...:
                    yield from _leaves(part)


def _item(word: str, kinds: set[Any]) -> str | int | float:
    """A word of a list as a number, if numbers are expected and it is one."""
    number = next((kind for kind in (int, float) if kind in kinds), str)
    try:
        return number(word)
    except ValueError:  # the stage reports it with the name of the option
        return word


def refusal(model: type[BaseModel], error: ValidationError) -> Exception:
    """One line: the option, what was expected and what was found."""
    from pipeline.yaml_lines import in_words
    from stages.errors import InputError

    found = error.errors()[0]
    message = in_words(found)
    if not found["loc"]:
        return InputError(message)
    name = str(found["loc"][0])
    field = model.model_fields.get(name)
    option = (written_of(field).option if field else None) or f"--{name.replace('_', '-')}"
    return InputError(f"{option}: {message}")
