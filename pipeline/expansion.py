"""Expands the steps of a recipe into instances: resolves references and axes, checks parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import product
from math import prod
from typing import Any

from pipeline.fields import Scalar
from pipeline.steps import Axes, Instance, WrittenStep
from pipeline.yaml_lines import INSTANCE_SIZE, Key, YamlText, hint, validated


@dataclass
class Expansion:
    """The expansion of the steps of a text into instances."""

    text: YamlText
    parameters: Mapping[str, Any]  # Any: a YAML value
    steps: Mapping[str, WrittenStep]
    done: dict[str, list[Instance]] = field(default_factory=dict)

    def instances(self) -> tuple[Instance, ...]:
        """Every step at every point of its axes, each after the instances that it needs."""
        for step in self.steps.values():
            self._check_references(step)
        self._check_cycles()
        for name in self.steps:
            self._expand(name)
        return tuple(instance for found in self.done.values() for instance in found)

    def _check_references(self, step: WrittenStep) -> None:
        kinds = {**step.kind.one, **step.kind.many}
        for key, name in step.references:
            if name not in self.steps:
                raise self.text.error(
                    f"step {step.name}: {key}: there is no step '{name}'{hint(name, self.steps)}; "
                    f"there are: {', '.join(self.steps)}",
                    *step.path,
                    key,
                )
            found = self.steps[name].kind.name
            if found not in kinds[key]:
                raise self.text.error(
                    f"step {step.name}: {key}: expected a step of stage {' or '.join(kinds[key])}, "
                    f"found '{name}' of stage {found}",
                    *step.path,
                    key,
                )

    def _check_cycles(self) -> None:
        graph = {name: {other for _, other in step.references} for name, step in self.steps.items()}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            cycle: list[str] = error.args[1]
            raise self.text.error(
                f"the steps form a cycle: {' needs '.join(reversed(cycle))}",
                *self.steps[cycle[-1]].path,
            ) from error

    def _expand(self, name: str) -> None:
        """Make the instances of a step, after those of the steps it refers to."""
        step = self.steps[name]
        if name in self.done:
            return
        for _, other in step.references:
            self._expand(other)
        self.done[name] = [self._instance(step, axes) for axes in self._points(step)]

    def _points(self, step: WrittenStep) -> list[dict[str, Scalar]]:
        """The product of the axes that a step inherits and its own axes."""
        points: list[dict[str, Scalar]] = [{}]
        for name in step.one.values():
            self.text.spend(len(points) * len(self.done[name]), *step.path)
            points = [
                {**point, **other.axes}
                for point in points
                for other in self.done[name]
                if _agree(point, other.axes)
            ]
        if repeated := [axis for axis in step.each if any(axis in point for point in points)]:
            raise self.text.error(
                f"step {step.name}: axis '{repeated[0]}' is inherited from another step: remove "
                "it here",
                *(*step.path, "each", repeated[0]),
            )
        n_points = len(points) * prod(len(each) for each in step.each.values())
        n_others = sum(len(self.done[name]) for _, name in step.references)
        self.text.spend(n_points * (INSTANCE_SIZE + n_others), *step.path)
        values = product(*step.each.values())
        own = [dict(zip(step.each, each, strict=True)) for each in values]
        found = [{**point, **more} for point in points for more in own]
        return self._unlike(step, found) if step.unlike else found

    def _unlike(
        self, step: WrittenStep, points: list[dict[str, Scalar]]
    ) -> list[dict[str, Scalar]]:
        """The points whose axes differ as the step says."""
        for axis, other in step.unlike.items():
            path = (*step.path, "each", axis)
            if other == axis or not all(other in point for point in points):
                axes = [each for each in points[0] if each != axis]
                raise self.text.error(
                    f"step {step.name}: {axis}: unlike names '{other}', which is not another axis"
                    f"{hint(other, axes)}; there are: {', '.join(axes) or 'none'}",
                    *path,
                )
            points = [point for point in points if point[axis] != point[other]]
            if not points:
                raise self.text.error(
                    f"step {step.name}: every value of {axis} equals that of {other}: add values",
                    *path,
                )
        return points

    def _instance(self, step: WrittenStep, axes: Axes) -> Instance:
        scope = {**self.parameters, **axes}
        references = {**step.one, **step.many}
        written = self.text.at(*step.path).keys() - {"stage", "each"} - references.keys()
        chosen = {
            key: value
            for axis, settings in step.sets.items()
            for key, value in settings[axes[axis]].items()
        }
        for key in (written | chosen.keys()) & set(step.kind.refused):
            raise self.text.error(
                f"step {step.name}: {key}: a recipe cannot choose where to write: remove this key",
                *step.path,
                key,
            )
        plain = written - chosen.keys()
        values = {key: self.text.filled((*step.path, key), scope) for key in plain} | chosen
        stage = validated(
            step.kind.stage,
            self.text,
            step.path,
            {**values, **references},
            f"step {step.name}: ",
        )
        one = {
            key: next(other.label for other in self.done[name] if _agree(axes, other.axes))
            for key, name in step.one.items()
        }
        many = {key: tuple(self._collected(step, key, axes)) for key in step.many}
        where = self.text.where(*step.path)
        return Instance(step.name, step.kind, axes, stage, one, many, where)

    def _collected(self, step: WrittenStep, key: str, axes: Axes) -> Iterator[tuple[str, str]]:
        """``(entry label, instance label)`` of every instance that agrees with the axes."""
        labels: set[str] = set()
        for written, name in step.many[key].items():
            path = (*step.path, key, written)
            for other in self.done[name]:
                if not _agree(axes, other.axes):
                    continue
                self._check_axes(step, other)
                label = self._label(written, {**axes, **other.axes}, path)
                is_taken = not label.strip() or label in step.kind.taken_labels
                if is_taken and key in step.kind.labelled:
                    problem = "blank" if not label.strip() else "reserved"
                    raise self.text.error(
                        f"step {step.name}: {key}: '{label}', the label of '{name}', is {problem}: "
                        "choose another",
                        *path,
                    )
                if label in labels and key in step.kind.labelled:
                    raise self.text.error(
                        f"step {step.name}: {key}: '{label}' would name several instances of "
                        f"'{name}': write {{label: {name}}} with an axis such as "
                        f"{{{list(other.axes)[-1]}}} in the label",
                        *path,
                    )
                labels.add(label)
                yield label, other.label

    def _check_axes(self, step: WrittenStep, collected: Instance) -> None:
        """Raise ``RecipeError`` at the line of an axis whose name the step cannot take."""
        taken = [axis for axis in collected.axes if axis in step.kind.taken_axes]
        if not taken:
            return
        origin = self.steps[collected.step]
        while taken[0] not in origin.each:
            others = (self.steps[name] for name in origin.one.values())
            origin = next(other for other in others if taken[0] in self.done[other.name][0].axes)
        raise self.text.error(
            f"step {origin.name}: an axis cannot be called '{taken[0]}', which is a reserved "
            f"name in '{step.name}': choose another name",
            *(*origin.path, "each", taken[0]),
        )

    def _label(self, written: str, axes: Axes, path: tuple[Key, ...]) -> str:
        """A label with every ``{axis}`` replaced by its value."""
        for axis in re.findall(r"\{(\w+)\}", written):
            if axis not in axes:
                raise self.text.error(
                    f"label '{written}': there is no axis '{axis}'{hint(axis, axes)}; there are: "
                    f"{', '.join(axes) or 'none'}",
                    *path,
                )
        return re.sub(r"\{(\w+)\}", lambda match: str(axes[match[1]]), written)


def _agree(one: Axes, other: Axes) -> bool:
    return all(one[axis] == other[axis] for axis in one.keys() & other.keys())
