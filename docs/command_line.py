"""The command reference: Markdown made from the commands themselves, as `--help` is."""

import re
from collections.abc import Iterator

import typer.main
from typer.core import TyperCommand

from cli.app import app

MARK = "<!-- Generated when the site is built: every command, with its options. -->"
"""The line of a page that the reference replaces."""


def commands() -> dict[str, TyperCommand]:
    """Every command by its name, with its options."""
    group = typer.main.get_command(app)
    context = typer.Context(group)
    return {
        name: group.resolve_command(context, [name])[1] for name in group.list_commands(context)
    }


def reference() -> str:
    """A section for each command: what it does, an example, and its options."""
    found = commands()
    return "\n".join(line for name in found for line in _section(name, found[name]))


def _section(name: str, command: TyperCommand) -> Iterator[str]:
    yield f"## intro-pipe {name}\n"
    yield _plain(command.help or "") + "\n"
    if command.epilog:
        lines = command.epilog.split("\n\n")
        examples = (f"$ {line.removeprefix('Example: ')}" for line in lines)
        yield "\n".join(["```console", *examples, "```\n"])
    context = typer.Context(command, info_name=name)
    yield "| option | meaning |\n|---|---|"
    for title, records in _groups(command, context).items():
        yield f"| **{title}** | |"
        yield from (f"| `{_cell(option)}` | {_cell(_plain(text))} |" for option, text in records)
    yield ""


def _groups(command: TyperCommand, context: typer.Context) -> dict[str, list[tuple[str, str]]]:
    """Options by the panel that `--help` shows them in."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.params:
        if record := parameter.get_help_record(context):
            title = getattr(parameter, "rich_help_panel", None) or "Options"
            groups.setdefault(title, []).append(record)
    return groups


def _plain(text: str) -> str:
    """Text in which nothing is Markdown but what stands between backticks."""
    parts = re.split(r"(`[^`]*`)", text.replace("\b", ""))
    return "".join(
        p if p.startswith("`") else re.sub(r"([\\*_\[\]<>{}$])", r"\\\1", p) for p in parts
    )


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
