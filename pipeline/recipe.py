"""Recipes: YAML texts that define steps and connect them, checked before any input is opened.

A step has a kind, parameters and axes; steps that refer to it inherit its axes. A step is expanded
over its axes into instances, each of which has one output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.errors import RecipeError
from pipeline.expansion import Expansion
from pipeline.fields import Scalar
from pipeline.steps import REPORT, Instance, Kinds, Settings, StepKind, WrittenStep
from pipeline.workspace import Heading
from pipeline.yaml_lines import Key, YamlText, hint, mentions, plain_value, read_yaml, validated

MAX_AXIS = 10_000
"""Maximum number of values of an axis that is written as a range."""

PLUS = " + "
"""Joins the names of values of an axis whose keys are set together."""


@dataclass(frozen=True)
class Recipe(Heading):
    """A checked recipe; each instance comes after the instances that it needs."""

    parameters: Mapping[str, Any]  # Any: what YAML can hold
    instances: tuple[Instance, ...]


def read_recipe(
    text: str,
    name: str,
    kinds: Kinds,
    changes: Mapping[str, str] | None = None,
    shipped: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe of a text, with some parameters changed.

    Args:
        text: YAML.
        name: name of its file, for messages.
        kinds: the available kinds of steps.
        changes: values of ``--set`` by parameter.
        shipped: texts of the recipes that this one may name in ``like``, by name.

    Raises:
        RecipeError: the recipe is invalid; one line with file, line, expectation and finding.
    """
    yaml_text = _with_base(read_yaml(text, name), shipped or {})
    document = validated(_Document, yaml_text, ())
    places = _places(document, yaml_text)
    parameters = _changed(document.parameters, changes or {})
    steps = {
        step: written_step(step, path, kinds, parameters, yaml_text)
        for step, path in places.items()
    }
    instances = Expansion(yaml_text, parameters, steps).instances()
    _check_parameters(parameters, places, yaml_text)
    return Recipe(document.recipe, document.title, document.about, parameters, instances)


def _with_base(text: YamlText, shipped: Mapping[str, str]) -> YamlText:
    """A text on top of the recipe that it names in ``like``, if any."""
    if not isinstance(text.values, dict):
        raise text.error("expected a mapping with the keys recipe and steps")
    if "like" not in text.values:
        return text
    like = text.values["like"]
    if not isinstance(like, str) or like not in shipped:
        raise text.error(
            f"like: there is no recipe '{like}'{hint(str(like), shipped)}; there are: "
            f"{', '.join(shipped) or 'none'}",
            "like",
        )
    return text.over(_with_base(read_yaml(shipped[like], f"{like}.yaml"), {}))


class _Document(BaseModel):
    """The top-level keys of a recipe."""

    model_config = ConfigDict(extra="forbid", strict=True)

    recipe: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100
    )  # it is used as a file name
    like: str | None = None
    title: str = ""
    about: str = ""
    parameters: dict[str, Any] = {}  # Any: what YAML can hold
    steps: dict[str, dict[str, Any]]
    report: dict[str, Any] | None = None

    @field_validator("steps")
    @classmethod
    def _has_steps(cls, steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not steps:
            raise ValueError("expected one step or more")
        return steps


def _places(document: _Document, text: YamlText) -> dict[str, tuple[Key, ...]]:
    """The path of each step in the text, including the report."""
    places: dict[str, tuple[Key, ...]] = {name: ("steps", name) for name in document.steps}
    for name, path in places.items():
        if name == REPORT:
            raise text.error("'report' is the name of the last step: choose another", *path)
        if not re.fullmatch(r"[A-Za-z][\w-]*", name):
            raise text.error(f"'{name}' cannot be a step: use letters, digits, - and _", *path)
    return places | ({REPORT: (REPORT,)} if document.report is not None else {})


def _changed(defaults: Mapping[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """The parameters with the values of ``--set``; raises ``RecipeError`` if a type differs."""
    parameters = dict(defaults)
    for name, change in changes.items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise RecipeError(
                f"--set {name}: unknown parameter{hint(name, defaults)}; there are: {known}"
            )
        value = plain_value(change)
        if wrong := _type_error(value, defaults[name]):
            raise RecipeError(f"--set {name}={change}: {wrong}")
        parameters[name] = value
    return parameters


def _type_error(value: Any, default: Any) -> str:
    """Why a value cannot replace a default; empty if it can. Any value can replace ``null``."""
    if default is None:
        return ""
    if isinstance(default, list) and isinstance(value, list):
        found = (_type_error(item, default[0]) for item in value if default)
        return next((wrong for wrong in found if wrong), "")
    is_number = isinstance(default, float) or _is_fraction(default)
    if type(value) is type(default):
        return ""
    if is_number and (type(value) in (int, float) or _is_fraction(value)):
        return ""
    words = {str: "a word", int: "a whole number", float: "a number", list: "a list"}
    expected = "a number" if is_number else words.get(type(default), "true or false")
    such = f"[{', '.join(map(str, default))}]" if isinstance(default, list) else default
    return f"expected {expected} such as {such}, found {'nothing' if value is None else value}"


def _is_fraction(value: object) -> bool:
    """Whether a value is a fraction such as ``8/255``, which YAML reads as text."""
    return isinstance(value, str) and bool(re.fullmatch(r"\d+(\.\d*)?/\d+", value))


def _check_parameters(
    parameters: Mapping[str, Any], places: Mapping[str, tuple[Key, ...]], text: YamlText
) -> None:
    used = {name for path in places.values() for name in mentions(text.at(*path))}
    for name in parameters:
        place = ("parameters", name)
        if not re.fullmatch(r"[A-Za-z]\w*", name):
            raise text.error(f"'{name}' cannot be a parameter: use letters, digits and _", *place)
        if name not in used:
            raise text.error(
                f"parameter '{name}' is not used by any step: use it as ${name}, or remove it",
                *place,
            )


def written_step(
    name: str,
    path: tuple[Key, ...],
    kinds: Kinds,
    parameters: Mapping[str, Any],
    text: YamlText,
) -> WrittenStep:
    """Read a step of a text; raises ``RecipeError``."""
    values = text.at(*path)
    kind = _kind(name, path, kinds, text)
    each, unlike, sets = (
        _axes((*path, "each"), parameters, text) if "each" in values else ({}, {}, {})
    )
    given = {
        key: text.filled((*path, key), parameters)
        for key in (*kind.one, *kind.many)
        if values.get(key) is not None
    }
    one = {key: _step_name(given[key], (*path, key), text) for key in kind.one if key in given}
    many = {key: _entries(given[key], (*path, key), text) for key in kind.many if key in given}
    for axis, found in sets.items():
        _check_keys(axis, found, (*path, "each", axis), {"stage", "each", *one, *many}, text)
    return WrittenStep(name, path, kind, each, one, many, unlike, sets)


def _kind(name: str, path: tuple[Key, ...], kinds: Kinds, text: YamlText) -> StepKind:
    if name == REPORT:
        return kinds[REPORT]
    known = [each for each in kinds if each != REPORT]
    there_are = f"there are: {', '.join(known)}"
    if "stage" not in text.at(*path):
        raise text.error(f"step {name}: 'stage' is missing; {there_are}", *path)
    wanted = text.at(*path, "stage")
    if wanted not in known:
        raise text.error(
            f"step {name}: unknown stage '{wanted}'{hint(str(wanted), known)}; {there_are}",
            *path,
            "stage",
        )
    return kinds[str(wanted)]


def _axes(
    path: tuple[Key, ...], parameters: Mapping[str, Any], text: YamlText
) -> tuple[dict[str, Sequence[Scalar]], dict[str, str], dict[str, Settings]]:
    """The axes that a step adds: their values, axes that they must differ from, keys they set."""
    each = text.filled(path, parameters)
    if not isinstance(each, dict):
        raise text.error(f"each: expected axes, as in {{loss: [ce, l1]}}, found {each!r}", *path)
    for axis in each:
        if not re.fullmatch(r"[A-Za-z]\w*", str(axis)):
            raise text.error(f"'{axis}' cannot be an axis: use letters, digits and _", *path, axis)
        if axis in parameters:
            raise text.error(
                f"axis '{axis}' has the name of a parameter: choose another", *path, axis
            )
    unlike = {
        axis: value["unlike"]
        for axis, value in each.items()
        if isinstance(value, dict) and value.keys() == {"in", "unlike"}
    }
    named = {
        axis: value
        for axis, value in each.items()
        if isinstance(value, dict) and value.keys() == {"in", "sets"}
    }
    found = {
        axis: _axis_values(
            axis,
            value["in"] if axis in unlike or axis in named else value,
            (*path, axis),
            text,
            may_be_empty=axis in named,
        )
        for axis, value in each.items()
    }
    sets: dict[str, Settings] = {
        axis: {name: _settings(name, value["sets"], (*path, axis), text) for name in found[axis]}
        for axis, value in named.items()
    }
    return found, unlike, sets


def _settings(
    value: Scalar, sets: Any, path: tuple[Key, ...], text: YamlText
) -> dict[str, Any]:  # Any: YAML values
    """The keys that a value of an axis sets; ``a + b`` sets those of ``a`` and of ``b``."""
    if not isinstance(sets, dict) or not all(isinstance(keys, dict) for keys in sets.values()):
        raise text.error(
            f"axis {path[-1]}: sets: expected the keys of each value, as in "
            "{no decay: {weight_decay: 0}}, found " + repr(sets),
            *path,
        )
    settings: dict[str, Any] = {}
    for name in str(value).split(PLUS):
        if name not in sets:
            raise text.error(
                f"axis {path[-1]}: '{name}' is not in sets{hint(name, sets)}; there are: "
                f"{', '.join(sets)}; join several with '{PLUS}'",
                *path,
            )
        if twice := settings.keys() & sets[name].keys():
            raise text.error(f"axis {path[-1]}: '{value}' sets {min(twice)} twice", *path)
        settings |= sets[name]
    return settings


def _check_keys(
    axis: str, sets: Settings, path: tuple[Key, ...], refused: set[str], text: YamlText
) -> None:
    """Raise ``RecipeError`` if a value of an axis would change what a step is or refers to."""
    for value, settings in sets.items():
        if wrong := settings.keys() & refused:
            raise text.error(
                f"axis {axis}: '{value}' sets {min(wrong)}, which has one value for all instances: "
                "write another step",
                *path,
            )


def _axis_values(
    axis: str, written: Any, path: tuple[Key, ...], text: YamlText, *, may_be_empty: bool = False
) -> Sequence[Scalar]:
    """A list of words and numbers, or ``{from: 1, to: 200, by: 3}``, both ends included."""
    values = written
    if isinstance(written, dict) and written.keys() <= {"from", "to", "by"}:
        ends = [written.get("from", 0), written.get("to"), written.get("by", 1)]
        if all(type(end) is int for end in ends) and ends[2] > 0:
            if (n_values := (ends[1] - ends[0]) // ends[2] + 1) > MAX_AXIS:
                raise text.error(
                    f"axis {axis}: expected at most {MAX_AXIS:,} values, found {n_values:,}", *path
                )
            values = list(range(ends[0], ends[1] + 1, ends[2]))
    is_list = isinstance(values, list) and (bool(values) or may_be_empty)
    if not is_list or not all(isinstance(value, Scalar) for value in values):
        raise text.error(
            f"axis {axis}: expected a list of words or numbers, or a range as in "
            f"{{from: 1, to: 200, by: 3}}, found {written!r}",
            *path,
        )
    if len(set(values)) < len(values):
        raise text.error(f"axis {axis}: a value occurs twice in {values!r}", *path)
    return list(values)


def _step_name(value: Any, path: tuple[Key, ...], text: YamlText) -> str:
    if not isinstance(value, str):
        raise text.error(f"{path[-1]}: expected the name of a step, found {value!r}", *path)
    return value


def _entries(value: Any, path: tuple[Key, ...], text: YamlText) -> dict[str, str]:
    """Steps by label, from a mapping, or from a list of steps that are their own labels."""
    entries = {str(step): step for step in value} if isinstance(value, list) else value
    is_mapping = isinstance(entries, dict) and bool(entries)
    if not is_mapping or not all(isinstance(step, str) for step in entries.values()):
        raise text.error(
            f"{path[-1]}: expected steps, as in [H] or {{label: H}}, found {value!r}", *path
        )
    return {str(label): step for label, step in entries.items()}
