"""Annotations of the fields of stages: what a value names, and its command-line option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

Scalar = str | int | float
M = TypeVar("M")


@dataclass(frozen=True)
class Ref:
    """The value names outputs of other stages; in a recipe it names steps.

    Attributes:
        kinds: values of ``Stage.makes`` that are accepted.
        verbs: the stages that may have made the outputs; all if empty.
        taken_labels: labels that an entry of a list of outputs cannot have; if there are any, all
            labels must also be distinct.
        taken_axes: names that an axis of these steps cannot have.
    """

    kinds: tuple[str, ...]
    verbs: tuple[str, ...] = ()
    taken_labels: tuple[str, ...] = ()
    taken_axes: tuple[str, ...] = ()


PRETRAINED = "pretrained"
"""Stands for the weights that the library of a network publishes, in place of a file."""


class Place(Enum):
    """What a value names outside the store."""

    DATA = auto()
    """Data sets, by name or path."""

    FILE = auto()
    """A file or a folder to read."""

    WEIGHTS = auto()
    """A file or a folder of weights to read, or `PRETRAINED`."""

    NETWORK = auto()
    """A network, by name or by its code."""

    OUTPUT = auto()
    """A folder to write."""


@dataclass(frozen=True)
class OneOf:
    """The value is one of these words.

    For words that are listed elsewhere; use ``Literal`` for short lists.
    """

    words: tuple[str, ...]

    def __get_pydantic_core_schema__(
        self,
        source: Any,
        handler: GetCoreSchemaHandler,  # Any: a type
    ) -> CoreSchema:
        """The schema of the type, with the check after it."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: str) -> str:
        if value not in self.words:
            raise ValueError(f"expected one of {', '.join(self.words)}")
        return value


@dataclass(frozen=True)
class Written:
    """How a field is written on the command line, if not as ``--name VALUE``.

    Attributes:
        option: the option, such as ``--in``; empty for a positional argument.
        metavar: placeholder of the value in the help.
        is_hidden: whether the field has no option and is only a key of recipes.
        is_command_only: whether recipes do not have the key.
        is_repeated: the option is repeated for each value; else values are separated by commas.
        read: converts the text to the value, such as the lines of a file.
        words: returns the words that complete the value in a shell.
    """

    option: str | None = None
    metavar: str = ""
    is_repeated: bool = False
    is_hidden: bool = False
    is_command_only: bool = False
    read: Callable[[str], Any] | None = None  # Any: the value of the field
    words: Callable[[], Iterable[str]] | None = None


class Labelled(BaseModel):
    """An output with its label in tables and its values on the axes of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    name: str
    axes: dict[str, Scalar] = {}


def _labelled(value: Any) -> Any:  # Any: from YAML, JSON or the command line
    """``{label: name}``, ``["name"]`` or ``["LABEL=NAME"]`` as fields of `Labelled`."""
    if isinstance(value, dict):
        return tuple({"label": label, "name": name} for label, name in value.items())
    if isinstance(value, list | tuple):
        return tuple(_entry(each) if isinstance(each, str) else each for each in value)
    return value


def _entry(text: str) -> dict[str, str]:
    label, _, name = text.partition("=")
    return {"label": label, "name": name or label}


LabelledList = Annotated[tuple[Labelled, ...], BeforeValidator(_labelled)]
"""Outputs by label: a mapping, or a list of names or of ``LABEL=NAME``."""


def is_labelled(field: FieldInfo) -> bool:
    """Whether a field holds a `LabelledList`."""
    return Labelled in _types_in(field.annotation)


def _types_in(annotation: Any) -> Iterator[Any]:  # Any: a type
    yield annotation
    for part in get_args(annotation):
        yield from _types_in(part)


def mark_of(field: FieldInfo, kind: type[M]) -> M | None:
    """The annotation of this type anywhere in a field's type; None if there is none."""
    return next((mark for mark in marks_of(field) if isinstance(mark, kind)), None)


def marks_of(field: FieldInfo) -> Iterator[object]:
    """All annotations of a field and of the types inside its type."""
    yield from field.metadata
    yield from _marks_in(field.annotation)


def _marks_in(annotation: Any) -> Iterator[object]:  # Any: a type
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    for part in get_args(annotation):
        yield from _marks_in(part)
