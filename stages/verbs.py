"""The stages by verb. A new verb is one line here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.stage import Stage

MODULES: dict[str, str] = {
    "corrupt": "stages.data.corrupt",
    "extract": "stages.reflection.extract",
    "train-sensing": "stages.sensing.train_sensing",
    "import-model": "stages.sensing.import_model",
    "train-head": "stages.introspection.train_head",
    "fit-temperature": "stages.introspection.fit_temperature",
    "fit-neighbours": "stages.introspection.fit_neighbours",
    "fit-laplace": "stages.introspection.fit_laplace",
    "score": "stages.scores.score_rows",
    "evaluate": "stages.evaluation.evaluate",
    "uncertainty": "stages.uncertainty.uncertainty",
    "conformal": "stages.conformal.conformal",
    "estimate-accuracy": "stages.estimation.estimate_accuracy",
    "ood": "stages.ood.ood",
    "detect-failures": "stages.failures.detect_failures",
    "curate": "stages.curation.curate",
    "influence": "stages.influence.influence",
    "prune": "stages.pruning.prune",
    "active-learn": "stages.active_learning.active_learn",
    "keep-model": "stages.active_learning.keep_model",
    "analyse": "stages.analysis.analyse",
    "explain": "stages.explanation.explain",
    "draw-maps": "stages.explanation.draw_maps",
    "evaluate-maps": "stages.explanation.evaluate_maps",
    "train-quality": "stages.quality.train_quality",
    "iqa": "stages.quality.iqa",
    "report": "stages.report.report",
    "run": "stages.recipes.run",
    "reproduce": "stages.recipes.run",
}
"""Verb -> the module of its stage, in the order in which commands are listed."""

STEPS: dict[str, str] = {
    "snapshot": "stages.sensing.snapshot",
    "ood": "stages.ood.detect",  # one of the comparisons that the command ood makes
}
"""The same for steps of recipes that are not commands, or that differ from the command."""


IMAGES, NETWORKS = "Images and features", "Networks and heads"
APPLICATIONS, PAGES, STORE = "Applications", "Pages and recipes", "The store"
"""Groups of commands in the help, in this order."""

GROUPS = {
    "data": IMAGES,
    "reflection": IMAGES,
    "sensing": NETWORKS,
    "introspection": NETWORKS,
    "report": PAGES,
    "recipes": PAGES,
}
"""Package -> the group of its commands; those of the other packages are applications."""


def group_of(verb: str) -> str:
    """The group of a command in the help."""
    package = MODULES[verb].removeprefix("stages.").partition(".")[0]
    return GROUPS.get(package, APPLICATIONS)


def stage_of(verb: str) -> type[Stage]:
    """The stage of a command; imports its module."""
    return _stage_in(MODULES[verb], verb)


def step_of(name: str) -> type[Stage]:
    """The stage of a step of a recipe; imports its module."""
    return _stage_in({**MODULES, **STEPS}[name], name)


@cache
def _stage_in(module: str, verb: str) -> type[Stage]:
    """The stage that a module defines; that of the verb if it defines several."""
    values = vars(import_module(module)).values()
    stages: Iterator[type[Stage]] = filter(_is_stage, values)
    found = [stage for stage in stages if stage.__module__ == module]
    return next((stage for stage in found if stage.verb == verb), found[0])


def summary_of(verb: str) -> str:
    """The first line of a stage's docstring, read without importing its module.

    `intro-pipe --help` lists all commands, and importing their modules would make it slow.
    """
    spec = find_spec(MODULES[verb])
    assert spec is not None  # the module is part of this package
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    texts = (ast.get_docstring(node) for node in classes if _has_verb(node, verb))
    return next(text for text in texts if text).partition("\n")[0]


def _is_stage(value: object) -> bool:
    from pipeline.stage import Stage

    return isinstance(value, type) and issubclass(value, Stage) and hasattr(value, "verb")


def _has_verb(node: ast.ClassDef, verb: str) -> bool:
    return any(
        isinstance(each, ast.Assign) and ast.unparse(each) == f"verb = {verb!r}"
        for each in node.body
    )
