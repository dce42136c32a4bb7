"""YAML with line numbers: values, their lines, and the replacement of ``$names``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import RecipeError
from pipeline.terminal import counted

Key = str | int
"""A key of a mapping, or a position in a list."""

MAX_CHARACTERS = 200_000
"""Maximum length of a recipe; the longest built-in one has 5,000 characters."""

MAX_VALUES = 100_000
"""Maximum number of values with aliases expanded; a few nested aliases can expand to billions."""

MAX_SIZE = 3_000_000
"""Maximum number of characters, values, instances and references of an expanded recipe."""

INSTANCE_SIZE = 50
"""Size that an instance of a step counts as, from the time and memory that it needs."""

MAX_NUMBER = 2**63
"""Upper bound of numbers: numpy and arrow accept 64 bits."""

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_KEY_TAGS = ("tag:yaml.org,2002:str", _INT, _FLOAT, "tag:yaml.org,2002:merge")
_MAX_DIGITS = 100
_MENTION = re.compile(r"\$(?:\{(\w+)\}|(\w+)|(\$))")
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass
class _Budget:
    """How much may still be expanded: a short recipe can expand to a very long one."""

    left: int = MAX_SIZE


@dataclass(frozen=True, slots=True)
class YamlText:
    """The values of a YAML text, and the line of each.

    ``lines`` maps the path of a value, such as ``("steps", "f", "epochs")``, to its ``file:line``.
    """

    values: Any  # Any: a YAML value
    lines: Mapping[tuple[Key, ...], str]
    _budget: _Budget = field(default_factory=_Budget, compare=False, repr=False)

    def at(self, *path: Key) -> Any:  # Any: a YAML value
        """The value at the end of a path."""
        value = self.values
        for key in path:
            value = value[key]
        return value

    def where(self, *path: Key) -> str:
        """``file:line`` of a value, or of its nearest parent if it does not exist."""
        above = (path[:n] for n in range(len(path), -1, -1))
        return next(self.lines[each] for each in above if each in self.lines)

    def error(self, message: str, *path: Key) -> RecipeError:
        """An error with the line of a value: ``file:line: message``."""
        return RecipeError(f"{self.where(*path)}: {message}")

    def over(self, base: YamlText) -> YamlText:
        """This text on top of ``base``: its top-level keys replace those of ``base``."""
        mine = {path: line for path, line in base.lines.items() if path[:1] not in self.lines}
        return YamlText({**base.values, **self.values}, {**mine, **self.lines})

    def spend(self, size: int, *path: Key) -> None:
        """Add ``size`` to the size of the expanded text: characters, values and references.

        Raises ``RecipeError`` at ``path`` if the total is more than ``MAX_SIZE``.
        """
        self._budget.left -= size
        if self._budget.left < 0:
            raise self.error(
                f"with parameters and axes expanded, the recipe has more than {MAX_SIZE:,} "
                "characters, steps and references: use shorter parameters or fewer axes",
                *path,
            )

    def filled(self, path: tuple[Key, ...], scope: Mapping[str, Any]) -> Any:
        """The value at a path with its ``$name`` and ``${name}`` replaced; ``$$`` is a dollar.

        A value that is only a name is replaced by the value in scope with its type. Raises
        ``RecipeError`` for a name that is not in scope, or as ``spend`` does.
        """
        return self._filled(self.at(*path), scope, path)

    def _filled(self, value: Any, scope: Mapping[str, Any], path: tuple[Key, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(item, scope, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item, scope, (*path, at)) for at, item in enumerate(value)]
        if not isinstance(value, str):
            self.spend(1, *path)
            return value

        def found(match: re.Match[str]) -> Any:
            name = match[1] or match[2]
            if name and name not in scope:
                raise self.error(
                    f"${name}: no such parameter or axis{hint(name, scope)}; there are: "
                    f"{', '.join(scope) or 'none'}",
                    *path,
                )
            replacement = scope[name] if name else "$"
            self.spend(_size_of(replacement), *path)
            return replacement

        if whole := _MENTION.fullmatch(value):
            return found(whole)
        self.spend(len(value), *path)
        return _MENTION.sub(lambda match: str(found(match)), value)


def _size_of(value: Any) -> int:
    """Number of characters and values of a parameter's value."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return 1 + sum(map(_size_of, items))
    return 1 if isinstance(value, int | float) else len(str(value))


def mentions(value: Any) -> Iterator[str]:
    """The names after every ``$`` in the strings of a value."""
    for text in texts_in(value):
        yield from (match[1] or match[2] for match in _MENTION.finditer(text) if not match[3])


def texts_in(value: Any) -> Iterator[str]:
    """Every string in a value; keys of mappings are not included."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)
    elif isinstance(value, str):
        yield value


def read_yaml(text: str, name: str) -> YamlText:
    """Read a text; ``name`` is the name of its file, for messages.

    Raises ``RecipeError`` if it is not valid YAML, has duplicate keys, contains itself or is too
    large.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(
            f"{name}: expected a text of at most {MAX_CHARACTERS:,} characters, found "
            f"{len(text):,}: shorten it, or use axes"
        )
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
        problem = " ".join(part for part in (error.context, error.problem) if part)
        if not isinstance(error, yaml.constructor.ConstructorError):
            problem = f"invalid YAML (check the indentation): {problem}"
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{name}:{line}: {problem}") from error
    except RecursionError as error:
        raise RecipeError(f"{name}:1: this is nested too deeply: use fewer levels") from error
    except (yaml.YAMLError, ValueError) as error:  # a control character, an impossible date
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{name}:1: invalid YAML: {' '.join(str(error).split())}") from error


def plain_value(text: str) -> Any:  # Any: a YAML value
    """The YAML value of a short text, such as ``3``, ``5e-3`` or ``[resnet18]``.

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
    """Validate the value at a path, or ``values`` that were made from it, as a model.

    Raises ``RecipeError`` with the line of the first invalid value.
    """
    try:
        return model.model_validate(text.at(*path) if values is None else values)
    except ValidationError as error:
        found = error.errors()[0]
        key, known = ".".join(str(part) for part in found["loc"]), list(model.model_fields)
        message = in_words(found)
        if found["type"] == "extra_forbidden":
            message = f"unknown key '{key}'{hint(key, known)}; there are: {', '.join(known)}"
        elif found["type"] == "missing":
            message = f"'{key}' is missing"
        elif key:
            message = f"{key}: {message}"
        raise text.error(f"{title}{message}", *path, *found["loc"]) from error


def in_words(found: ErrorDetails) -> str:
    """A message that says what was expected and what was found."""
    if found["type"] == "too_short":
        n, n_found = found["ctx"]["min_length"], found["ctx"]["actual_length"]
        return f"expected at least {counted(n, 'value')}, found {n_found or 'none'}"
    message = found["msg"].replace("Input should be", "expected").replace("Value error, ", "")
    says_it = not found["loc"] or " found " in message or message.startswith("no ")
    return message if says_it else f"{message}, found {_short(found['input'])}"


def hint(name: str, known: Iterable[str]) -> str:
    """A suggestion for an unknown name, for a message; empty if no known name is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


class _Loader(yaml.SafeLoader):
    """Reads numbers as in YAML 1.2: ``5e-3`` is one, ``1:30`` is not. Long ones are refused."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """The whole number of a node, below ``MAX_NUMBER``."""
        number = super().construct_yaml_int(node) if _is_short(node) else MAX_NUMBER
        if abs(number) >= MAX_NUMBER:
            raise _too_long(node, "a whole number below 2^63")
        return int(number)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """The number of a node."""
        if not _is_short(node):
            raise _too_long(node, f"a number of at most {_MAX_DIGITS} characters")
        return float(super().construct_yaml_float(node))


def _is_short(node: yaml.ScalarNode) -> bool:
    return len(node.value) <= _MAX_DIGITS


def _too_long(node: yaml.ScalarNode, expected: str) -> yaml.constructor.ConstructorError:
    found = node.value if len(node.value) <= 40 else f"one of {len(node.value):,} characters"
    return yaml.constructor.ConstructorError(
        None, None, f"expected {expected}, found {found}", node.start_mark
    )


_Loader.add_constructor(_INT, _Loader.construct_yaml_int)
_Loader.add_constructor(_FLOAT, _Loader.construct_yaml_float)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in (_INT, _FLOAT)]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT,
    re.compile(r"[-+]?(0b[01_]+|0[0-7_]*|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"[-+]?((\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))$"
        r"|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


@dataclass
class _Places:
    """Collects the lines of the values of a text."""

    name: str
    lines: dict[tuple[Key, ...], str]
    n_values: int = 0

    def note(self, node: yaml.Node, path: tuple[Key, ...], above: tuple[int, ...]) -> None:
        """Record the lines of all values in a node; ``above`` has the ids of its ancestors."""
        self.n_values += 1
        if id(node) in above:
            raise RecipeError(f"{self._line(node)}: this contains itself: remove the alias")
        if self.n_values > MAX_VALUES:
            raise RecipeError(
                f"{self._line(node)}: this has more than {MAX_VALUES:,} values with aliases "
                "expanded: remove aliases"
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
                        f"{self._line(key)}: duplicate key '{key.value}', first at "
                        f"{self.lines[place]}: remove one of them"
                    )
                self.lines[place] = self._line(key)
                self.note(value, place, above)

    def _key(self, key: yaml.Node) -> str:
        if key.tag not in _KEY_TAGS:  # YAML 1.1 reads on, off, yes and no as true and false
            shown = f"'{key.value}'" if isinstance(key, yaml.ScalarNode) else "this"
            raise RecipeError(
                f"{self._line(key)}: expected a string as key, but YAML does not read {shown} as "
                "one: put it in quotes, or choose another"
            )
        return str(key.value)

    def _line(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


def _short(value: Any, n_characters: int = 60) -> str:
    shown = repr(value)
    return shown if len(shown) <= n_characters else f"{shown[: n_characters - 1]}…"
