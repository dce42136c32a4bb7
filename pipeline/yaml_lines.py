"""YAML with line numbers: what a text says, where it says it, and what its ``$names`` stand for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import RecipeError

Key = str | int
"""A key of a mapping, or a position in a list."""

MAX_VALUES = 100_000
"""In one text, its aliases written out: a few of them, nested, can stand for billions."""

_KEY_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "merge"))
_MENTION = re.compile(r"\$(?:\{(\w+)\}|(\w+)|(\$))")
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class YamlText:
    """The values of a YAML text, and where each of them begins.

    ``lines`` maps the keys on the way to a value, ``("steps", "f", "epochs")``, to its
    ``file:line``.
    """

    values: Any  # Any: what YAML can hold
    lines: Mapping[tuple[Key, ...], str]

    def at(self, *path: Key) -> Any:  # Any: what YAML can hold
        """The value at the end of a path."""
        value = self.values
        for key in path:
            value = value[key]
        return value

    def where(self, *path: Key) -> str:
        """``file:line`` of a value; where there is none of it, that of what would hold it."""
        above = (path[:n] for n in range(len(path), -1, -1))
        return next(self.lines[each] for each in above if each in self.lines)

    def error(self, message: str, *path: Key) -> RecipeError:
        """``file:line: message``."""
        return RecipeError(f"{self.where(*path)}: {message}")

    def over(self, base: YamlText) -> YamlText:
        """This text on top of another one: what it says at the top stands, the rest is theirs."""
        mine = {path: line for path, line in base.lines.items() if path[:1] not in self.lines}
        return YamlText({**base.values, **self.values}, {**mine, **self.lines})

    def filled(self, path: tuple[Key, ...], scope: Mapping[str, Any]) -> Any:
        """The value at a path with its ``$name`` and ``${name}`` replaced; ``$$`` is a dollar.

        A name that stands alone keeps the type of what it stands for. Raises ``RecipeError`` for a
        name that is not in scope.
        """
        return self._filled(self.at(*path), scope, path)

    def _filled(self, value: Any, scope: Mapping[str, Any], path: tuple[Key, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(item, scope, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item, scope, (*path, at)) for at, item in enumerate(value)]
        if not isinstance(value, str):
            return value

        def found(match: re.Match[str]) -> Any:
            name = match[1] or match[2]
            if name and name not in scope:
                raise self.error(
                    f"${name}: no such parameter or axis{hint(name, scope)}; there are: "
                    f"{', '.join(scope) or 'none'}",
                    *path,
                )
            return scope[name] if name else "$"

        if whole := _MENTION.fullmatch(value):
            return found(whole)
        return _MENTION.sub(lambda match: str(found(match)), value)


def mentions(value: Any) -> Iterator[str]:
    """The names behind every ``$`` below a value."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from mentions(item)
    elif isinstance(value, str):
        yield from (match[1] or match[2] for match in _MENTION.finditer(value) if not match[3])


def read_yaml(text: str, name: str) -> YamlText:
    """Read a text; ``name`` is that of its file, for messages.

    Raises ``RecipeError`` where it is no YAML, says a key twice, holds itself or too much.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        places = _Places(name, {(): f"{name}:1"})
        if node is None:
            return YamlText(None, places.lines)
        places.note(node, (), ())
        return YamlText(loader.construct_document(node), places.lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        said = f"this is no YAML (mind the indentation): {said}"
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{name}:{line}: {said}") from error
    except RecursionError as error:
        raise RecipeError(f"{name}:1: this is nested too deeply: write it flatter") from error
    except (yaml.YAMLError, ValueError) as error:  # a control character, an impossible date
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{name}:1: this is no YAML: {' '.join(str(error).split())}") from error


def plain_value(text: str) -> Any:  # Any: what YAML can hold
    """What a short text stands for: ``3``, ``5e-3``, ``[resnet18]``, or itself.

    >>> plain_value("[5e-3, none]")
    [0.005, 'none']
    """
    return read_yaml(text, repr(text)).values


def validated(
    model: type[_Model],
    text: YamlText,
    path: tuple[Key, ...],
    values: Any = None,
    title: str = "",
) -> _Model:
    """The model of what stands at a path, or of ``values`` that were made of it.

    Raises ``RecipeError`` with the line of the first value that does not fit.
    """
    try:
        return model.model_validate(text.at(*path) if values is None else values)
    except ValidationError as error:
        found = error.errors()[0]
        key, known = ".".join(str(part) for part in found["loc"]), list(model.model_fields)
        message = found["msg"].replace("Input should be", "expected")
        if found["type"] == "extra_forbidden":
            message = f"unknown key '{key}'{hint(key, known)}; there are: {', '.join(known)}"
        elif found["type"] == "missing":
            message = f"'{key}' is missing"
        elif key:
            message = f"{key}: {message}, found {_short(found['input'])}"
        message = message.replace("Value error, ", "")
        raise text.error(f"{title}{message}", *path, *found["loc"]) from error


def hint(name: str, known: Iterable[str]) -> str:
    """What may have been meant by a name that is not known, to be put into a message."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


class _Loader(yaml.SafeLoader):
    """Reads ``5e-3`` as a number, as YAML 1.2 does; PyYAML takes it for a word."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass
class _Places:
    """The lines of a text's values, as they are found below its nodes."""

    name: str
    lines: dict[tuple[Key, ...], str]
    n_values: int = 0

    def note(self, node: yaml.Node, path: tuple[Key, ...], above: tuple[int, ...]) -> None:
        """Write down the lines of everything below a node, which lies below those ``above``."""
        self.n_values += 1
        if id(node) in above:
            raise RecipeError(f"{self._line(node)}: this holds itself: cut the alias")
        if self.n_values > MAX_VALUES:
            raise RecipeError(
                f"{self._line(node)}: this is more than {MAX_VALUES:,} values, expected fewer: "
                "cut the aliases"
            )
        above = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[*path, index] = self._line(item)
                self.note(item, (*path, index), above)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*path, self._key(key))
                if place in self.lines and key.value != "<<":
                    raise RecipeError(
                        f"{self._line(key)}: '{key.value}' stands at {self.lines[place]} already: "
                        "leave one"
                    )
                self.lines[place] = self._line(key)
                self.note(value, place, above)

    def _key(self, key: yaml.Node) -> str:
        if key.tag not in _KEY_TAGS:  # YAML 1.1 takes on, off, yes and no for true and false
            shown = f"'{key.value}'" if isinstance(key, yaml.ScalarNode) else "this"
            raise RecipeError(
                f"{self._line(key)}: expected a word for a key, {shown} is none to YAML: put it "
                "in quotes, or choose another"
            )
        return str(key.value)

    def _line(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


def _short(value: Any, n_characters: int = 60) -> str:
    shown = repr(value)
    return shown if len(shown) <= n_characters else f"{shown[: n_characters - 1]}…"
