"""The stages run and reproduce: a recipe in a file, and a built-in one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.fields import Place, Written
from pipeline.recipe_run import RecipeJob
from pipeline.stage import Several, Stage
from pipeline.workspace import Execution, Workspace
from pipeline.yaml_lines import MAX_CHARACTERS
from stages.errors import DataNotFoundError, InputError
from stages.recipes.shipped import recipe_of, shipped_text, shipped_texts

_CODE = re.compile(r"""[^\s,\[\]'"]+:\w+""")
"""A network that is code, written as for --network."""

RUNS_WITH = ("data_root", *Execution.model_fields)
Changes = Annotated[
    Several[str],
    Written("--set", "NAME=VALUE", is_repeated=True),
    Field(description="Value of a parameter of the recipe. May be repeated."),
]
Folder = Annotated[
    str,
    Place.FILE,
    Written(is_hidden=True),
    Field(description="Folder of the relative paths in the recipe. (default: the current one)"),
]


class Run(Stage):
    """Run the missing steps of a recipe; running the command again continues it."""

    verb = "run"
    makes = "recipe"
    is_step = False
    runs_with = RUNS_WITH
    examples = ("run recipe.yaml --status",)

    recipe: Annotated[str, Place.FILE, Written("", "RECIPE")] = Field(
        description="YAML file, see docs/recipes.md."
    )
    changes: Changes = ()
    folder: Folder = "."

    def networks(self) -> list[str]:
        """The networks that the changes name."""
        return _networks_in(self.changes, self.folder)

    def job(self, workspace: Workspace) -> RecipeJob:
        """The steps of the recipe, as its file is now; raises ``RecipeError``."""
        return _recipe_job(self, self._text(), self.recipe, workspace)

    def _text(self) -> str:
        try:
            with Path(self.folder, self.recipe).open(encoding="utf-8") as file:
                return file.read(MAX_CHARACTERS + 1)  # a longer one is refused
        except (OSError, UnicodeDecodeError) as error:
            raise DataNotFoundError(
                f"{self.recipe}: cannot be read as a recipe ({error}); `intro-pipe reproduce "
                "--list` lists the built-in recipes"
            ) from error


class Reproduce(Stage):
    """Reproduce a table or figure of the paper: compute the missing steps and write a report."""

    verb = "reproduce"
    makes = "recipe"
    is_step = False
    runs_with = RUNS_WITH
    examples = ("reproduce table-5 --set epochs=100",)

    recipe: Annotated[str, Written("", "NAME", words=shipped_texts)] = Field(
        "", description="Name of a built-in recipe, such as table-5."
    )
    changes: Changes = ()
    folder: Folder = "."

    def networks(self) -> list[str]:
        """The networks that the changes name."""
        return _networks_in(self.changes, self.folder)

    def job(self, workspace: Workspace) -> RecipeJob:
        """The steps of the recipe; raises ``InputError`` or ``RecipeError``."""
        if not self.recipe:
            raise InputError(
                "expected the name of a recipe; `intro-pipe reproduce --list` lists the built-in "
                "ones"
            )
        return _recipe_job(self, shipped_text(self.recipe), f"{self.recipe}.yaml", workspace)


def _recipe_job(stage: Run | Reproduce, text: str, file: str, workspace: Workspace) -> RecipeJob:
    """The job of a recipe.

    Args:
        stage: the stage of the run.
        text: the recipe.
        file: name of its file, for messages.
        workspace: where it runs.

    Raises:
        InputError: a change is not NAME=VALUE, or sets a parameter again; a resumed recipe names a
            URL outside the store.
        RecipeError: the recipe or a change of it is invalid.
        ResourceError: a requested worker or device does not exist.
    """
    from stages.data.known import data_root_path
    from stages.data.places import located

    recipe = recipe_of(text, file, _settings(stage.changes))
    root = data_root_path(workspace.data_root)
    find = partial(_place, stage.folder, workspace)
    instances = tuple(
        replace(each, stage=located(each.stage, find, root, (*each.one, *each.many)))
        for each in recipe.instances
    )
    settings = [word for change in stage.changes for word in ("--set", change)]
    command = (stage.verb, stage.recipe, *settings)  # it repeats this on any machine
    workspace.workers()  # raises for what does not exist
    inside = replace(workspace, command=command, named_by="the recipe")
    return RecipeJob(replace(recipe, instances=instances), inside)


def _place(folder: str, workspace: Workspace, path: str) -> str:
    """The full path; raises ``InputError`` for a URL that would be fetched because of a journal."""
    from stages.data.places import full_path, is_fetched

    place = full_path(path, folder)
    if workspace.resumes and is_fetched(place, workspace.store.location):
        raise InputError(
            f"the recipe of the journal names a URL to fetch, {path}: run the recipe yourself"
        )
    return place


def _networks_in(changes: Sequence[str], folder: str) -> list[str]:
    """What may be networks in the values of NAME=VALUE; their files are relative to a folder."""
    words = [word for change in changes for word in _CODE.findall(change.partition("=")[2])]
    named = [word for word in words if "://" not in word]
    return [str(Path(folder, word)) if ".py:" in word else word for word in named]


def _settings(changes: Sequence[str]) -> dict[str, str]:
    """The values of NAME=VALUE by name; raises ``InputError``."""
    settings: dict[str, str] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"--set {change}: expected NAME=VALUE, as in networks=[resnet18]")
        if (name := name.strip()) in settings:
            raise InputError(
                f"--set {change}: {name} is already set to {settings[name]}: remove one of them"
            )
        settings[name] = value
    return settings
