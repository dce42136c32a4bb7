"""Commands about recipes: run, reproduce."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output import emit, note, table

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.recipe_run import RecipeReport, RecipeRun, Status

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="A parameter of the recipe: NAME=VALUE. May be given again."),
]
IsStatus = Annotated[bool, typer.Option("--status", help="Say how far each step is; make nothing.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(epilog="Example: intro-pipe run recipe.yaml --status")(run)
    app.command(epilog="Example: intro-pipe reproduce table-5 --set epochs=100")(reproduce)


def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, see docs/recipes.md.")],
    changes: Changes = None,
    status: IsStatus = False,
    device: options.Device = None,
    executor: options.ExecutorName = "ray",
    gpus: options.Gpus = None,
    workers: options.Workers = None,
    memory: options.Memory = None,
    address: options.Address = None,
    store: options.Store = options.DEFAULT_STORE,
    data_root: options.DataRoot = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Run the steps of a recipe that are not there yet; the same command again goes on."""
    from pathlib import Path

    from stages.errors import DataNotFoundError

    try:
        text = Path(recipe).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataNotFoundError(
            f"{recipe}: cannot be read as a recipe ({error}); `intro-pipe reproduce --list` has "
            "those that ship"
        ) from error
    where = _Where(store, data_root, device, executor, gpus, workers, address, memory)
    asked = _Asked(["run", recipe], tuple(changes or ()), status, dry_run, as_json)
    _carry_out(text, recipe, asked, where)


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A recipe that ships, such as table-5.")
    ] = None,
    changes: Changes = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="List the recipes that ship, and what they cost.")
    ] = False,
    status: IsStatus = False,
    device: options.Device = None,
    executor: options.ExecutorName = "ray",
    gpus: options.Gpus = None,
    workers: options.Workers = None,
    memory: options.Memory = None,
    address: options.Address = None,
    store: options.Store = options.DEFAULT_STORE,
    data_root: options.DataRoot = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Make a table or a figure of the paper, as far as it is not there yet, and a report of it."""
    from stages.errors import InputError
    from stages.recipes.shipped import shipped_text

    if list_all:
        _list(as_json=as_json)
        return
    if name is None:
        raise InputError("which one? `intro-pipe reproduce --list` has the recipes that ship")
    where = _Where(store, data_root, device, executor, gpus, workers, address, memory)
    asked = _Asked(["reproduce", name], tuple(changes or ()), status, dry_run, as_json)
    _carry_out(shipped_text(name), f"{name}.yaml", asked, where)


@dataclass(frozen=True)
class _Where:
    """The options of execution, as they were given."""

    store: str
    data_root: str | None
    device: str | None
    executor: str
    gpus: int | None
    workers: int | None
    address: str | None
    memory: str | None


@dataclass(frozen=True)
class _Asked:
    """What is to be done with a recipe; ``command`` names it."""

    command: Sequence[str]
    changes: Sequence[str]
    status: bool
    dry_run: bool
    as_json: bool

    @property
    def shown(self) -> str:
        """The command that does this again, on whatever machine."""
        settings = [word for change in self.changes for word in ("--set", change)]
        return shlex.join(["intro-pipe", *self.command, *settings])


def _carry_out(text: str, name: str, asked: _Asked, where: _Where) -> None:
    from pipeline.journal import Journal
    from stages.recipes.shipped import recipe_of

    recipe = recipe_of(text, name, _parted(asked.changes))
    work = _run_of(recipe, asked, where)
    if asked.status or asked.dry_run:
        _show_statuses(recipe, list(work.statuses()), is_dry_run=asked.dry_run, asked=asked)
        return
    with Journal.of(work.store.location, sys.argv[1:]).outcome() as journal:
        report = work.run(journal, note)
    _show_report(recipe, report, as_json=asked.as_json)


def _parted(changes: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` as a mapping; raises ``InputError``."""
    from stages.errors import InputError
    from stages.sensing.trust import trust

    for change in changes:
        if "=" not in change:
            raise InputError(f"--set {change}: expected NAME=VALUE, as in networks=[resnet18]")
    settings: dict[str, str] = {}
    for change in changes:
        name, _, value = change.partition("=")
        if (name := name.strip()) in settings:
            raise InputError(
                f"--set {change}: {name} is set to {settings[name]} already: leave one of them"
            )
        settings[name] = value
        for network in re.findall(r"""[^\s,\[\]'"]+:\w+""", value):  # named as by --network
            trust(network)
    return settings


def _run_of(recipe: Recipe, asked: _Asked, where: _Where) -> RecipeRun:
    from pipeline.recipe_run import RecipeRun
    from stages.data.known import data_root_path
    from stages.recipes.context import Context
    from store.catalog import FeatureStore

    corrupting, _ = options.executor_of(
        where.executor, 0, where.workers, where.address, where.memory
    )
    extracting, its_device = options.executor_of(
        where.executor, where.gpus, where.workers, where.address, where.memory
    )
    store = FeatureStore(where.store)
    context = Context(
        store,
        str(data_root_path(where.data_root)),
        options.device_of(where.device),
        corrupting,
        extracting,
        where.device or its_device,
        recipe,
        asked.shown,
    )
    return RecipeRun(recipe, store, context)


def _show_statuses(
    recipe: Recipe, statuses: Sequence[Status], *, is_dry_run: bool, asked: _Asked
) -> None:
    left = [status for status in statuses if not status.is_complete]
    rows = [_row(status) for status in (left if is_dry_run else statuses)]
    what = "would make" if is_dry_run else "left:"
    text = f"{table(rows)}\n\n{recipe.name}: {what} {len(left)} of {len(statuses)} steps"
    found = {"recipe": recipe.name, "parameters": recipe.parameters, "steps": rows}
    emit(found, text, as_json=asked.as_json)


def _show_report(recipe: Recipe, report: RecipeReport, *, as_json: bool) -> None:
    from pipeline.progress import duration

    last = report.statuses[-1]
    artifact = last.task.output if last.task and last.instance.kind.name == "report" else None
    place = artifact.storage.location if artifact else None
    shows = artifact.card()["shows"] if artifact else []
    done = (
        f"{recipe.name}: {len(report.statuses)} steps, {report.n_made} of them made now in "
        f"{duration(report.seconds)}"
    )
    text = "\n".join([*shows, done, *([f"page: {place}/report.html"] if place else [])])
    found: dict[str, Any] = {
        "recipe": recipe.name,
        "parameters": recipe.parameters,
        "steps": [_row(status) for status in report.statuses],
        "made": report.n_made,
        "seconds": round(report.seconds, 1),
        "report": place,
        "shows": shows,
    }
    emit(found, text, as_json=as_json)


def _row(status: Status) -> dict[str, Any]:
    instance = status.instance
    return {
        "step": instance.label,
        "stage": instance.kind.name,
        "state": str(status.state),
        "detail": status.detail,
    }


def _list(*, as_json: bool) -> None:
    from stages.recipes.shipped import cost_of, recipe_of, shipped_texts

    rows = []
    for name, text in shipped_texts().items():
        recipe = recipe_of(text, f"{name}.yaml")
        cost = {key.removeprefix("n_"): n for key, n in asdict(cost_of(recipe)).items()}
        rows.append({"name": name, "title": recipe.title, **cost})
    text = (
        f"{table(rows)}\n\nWhat is made where nothing is there yet: networks trained, data sets "
        "sent through one, heads.\nRecipes share what they can; --set changes data set, networks, "
        "seeds and epochs."
    )
    emit(rows, text, as_json=as_json)
