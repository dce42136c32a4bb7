"""The kinds of steps, by name: each is derived from a stage.

A step finds the output of its plan under any name, or computes it as the command of the same name
does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from pipeline.fields import Labelled, Place, Ref, Written, is_labelled, mark_of
from pipeline.stage import Job, Stage
from pipeline.steps import REPORT, Collected, Inputs, StepKind
from pipeline.workspace import Workspace
from stages.report.report import Report
from stages.verbs import MODULES, STEPS, step_of


@cache
def kinds() -> dict[str, StepKind]:
    """The kinds of steps, one for each stage that can be a step."""
    stages = {name: step_of(name) for name in (*MODULES, *STEPS)}
    steps = {name: stage for name, stage in stages.items() if stage.is_step}
    found = {name: _kind(name, steps) for name in steps}
    return {**found, REPORT: replace(found[REPORT], job=_report)}


def _kind(name: str, stages: dict[str, type[Stage]]) -> StepKind:
    """The kind of step that is derived from a stage."""
    fields = stages[name].model_fields
    refs = {key: ref for key, field in fields.items() if (ref := mark_of(field, Ref))}
    made_by = {
        key: ref.verbs or tuple(name for name in stages if stages[name].makes in ref.kinds)
        for key, ref in refs.items()
    }
    many = {key: names for key, names in made_by.items() if is_labelled(fields[key])}
    return StepKind(
        name,
        stages[name],
        _job,
        one={key: names for key, names in made_by.items() if key not in many},
        many=many,
        labelled=[key for key in many if refs[key].taken_labels],
        taken_labels=[label for key in many for label in refs[key].taken_labels],
        taken_axes=[axis for key in many for axis in refs[key].taken_axes],
        refused=[key for key, field in fields.items() if _is_refused(field)],
    )


def _is_refused(field: FieldInfo) -> bool:
    written = mark_of(field, Written)
    return mark_of(field, Place) is Place.OUTPUT or (
        written is not None and written.is_command_only
    )


def _job(workspace: Workspace, stage: Stage, inputs: Inputs) -> Job:
    """The job of a step, with names of outputs in place of names of steps.

    A list of outputs that is not given is empty, whatever its default on the command line.
    """
    fields = type(stage).model_fields.items()
    lists = [key for key, field in fields if is_labelled(field) and mark_of(field, Ref) is not None]
    names = {key: _names(found) for key, found in {**dict.fromkeys(lists, ()), **inputs}.items()}
    return stage.model_copy(update=names).job(workspace)


def _names(found: str | tuple[Collected, ...]) -> str | tuple[Labelled, ...]:
    """The value of a field for an output: its name, or its label and name in a list."""
    if isinstance(found, str):
        return found
    return tuple(Labelled(label=each.label, name=each.name, axes=dict(each.axes)) for each in found)


def _report(workspace: Workspace, stage: Report, inputs: Inputs) -> Job:
    """The report of a recipe: its title is the recipe's, and it only has the named table and
    figures."""
    heading = workspace.recipe
    assert heading is not None  # as for every step
    missing: dict[str, Any] = {"title": heading.title, "about": heading.about}
    missing |= {"figures": ()} | ({} if stage.table or stage.paper else {"metrics": ()})
    results = inputs["results"]
    if isinstance(results, tuple) and len({tuple(each.axes.items()) for each in results}) < len(
        results
    ):  # entries with the same axes are distinguished by their labels
        results = tuple(replace(each, axes={"set": each.label, **each.axes}) for each in results)
    unset = {key: missing[key] for key in missing if key not in stage.model_fields_set}
    return _job(workspace, stage.model_copy(update=unset), {"results": results})
