"""What the commands of recipes print: the state of their steps, and the built-in ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output import emit, table

if TYPE_CHECKING:
    from pipeline.stage import Made, Stage
    from pipeline.workspace import Workspace


@dataclass(frozen=True)
class View:
    """A flag of a verb's command that prints something in place of running the stage.

    Attributes:
        option: name of the flag, without dashes.
        help: its description.
        show: prints; it takes the arguments of `cli.verbs.run_stage`.
    """

    option: str
    help: str
    show: Callable[[type[Stage], Mapping[str, Any], Collection[str]], None]

    @property
    def parameter(self) -> Parameter:
        """The flag."""
        mark = typer.Option(f"--{self.option}", help=self.help, rich_help_panel=options.OUTPUT)
        kind = Parameter.KEYWORD_ONLY
        return Parameter(self.option, kind, default=False, annotation=Annotated[bool, mark])


def show_status(stage: type[Stage], values: Mapping[str, Any], given: Collection[str]) -> None:
    """Print the state of each step."""
    from cli.verbs import asked_in
    from pipeline.recipe_run import RecipeJob

    asked, workspace = asked_in(stage, values, given)
    job = asked.job(workspace)
    assert isinstance(job, RecipeJob)
    rows = [status.to_dict() for status in job.statuses]
    n_left = sum(not status.is_complete for status in job.statuses)
    text = f"{table(rows)}\n\n{job.recipe.name}: {n_left} of {len(rows)} steps left"
    facts = {"recipe": job.recipe.name, "parameters": job.recipe.parameters, "steps": rows}
    emit(facts, text, as_json=values["as_json"])


def show_list(_: type[Stage], values: Mapping[str, Any], __: Collection[str]) -> None:
    """Print the built-in recipes and what they cost."""
    from stages.recipes.shipped import cost_of, recipe_of, shipped_texts

    rows = []
    for name, text in shipped_texts().items():
        recipe = recipe_of(text, f"{name}.yaml")
        cost = {key.removeprefix("n_"): n for key, n in asdict(cost_of(recipe)).items()}
        rows.append({"name": name, "title": recipe.title, **cost})
    text = (
        f"{table(rows)}\n\nThe cost in an empty store: networks to train, data sets to extract "
        "and heads to train.\nRecipes share outputs; --set changes data set, networks, seeds and "
        "epochs."
    )
    emit(rows, text, as_json=values["as_json"])


_STATUS = View("status", "Print the progress of each step without running anything.", show_status)
VIEWS: Mapping[str, tuple[View, ...]] = {
    "run": (_STATUS,),
    "reproduce": (_STATUS, View("list", "List the built-in recipes and their cost.", show_list)),
}
"""By verb."""


def summary_of_recipe(_: Stage, made: Made, __: Workspace) -> tuple[str, Any]:  # Any: JSON
    """What the report shows, and the number of steps that were computed."""
    from pipeline.progress import duration
    from pipeline.recipe_run import RecipeJob
    from pipeline.steps import REPORT
    from stages.report.content import ReportCard

    job, report = made.job, made.report
    assert isinstance(job, RecipeJob)
    has_page = report.statuses[-1].instance.kind.name == REPORT
    place = made.output.storage.location if has_page else None
    shows = ReportCard.of(made.output).shows if has_page else ()
    n_all, n_made = len(report.statuses), report.n_made
    done = (
        f"{made.name}: {n_all} steps, {n_all - n_made} cached, {n_made} computed in "
        f"{duration(report.seconds)}"
    )
    text = "\n".join([*shows, done, *([f"page: {place}/report.html"] if place else [])])
    facts = {
        "recipe": made.name,
        "parameters": job.recipe.parameters,
        "steps": [status.to_dict() for status in report.statuses],
        "made": n_made,
        "seconds": round(report.seconds, 1),
        "report": place,
        "shows": shows,
    }
    return text, facts
