"""What JSON says as a dataclass of ours: each field of the type that it is declared with."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stages.errors import InputError

T = TypeVar("T")


def typed(cls: type[T], values: Mapping[str, Any], what: str) -> T:  # Any: whatever JSON can hold
    """The dataclass with these values; raises ``InputError`` with the first that does not fit."""
    try:
        found: T = TypeAdapter(cls).validate_python(dict(values))
        return found
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{what}: {key + ': ' if key else ''}{first['msg']}") from error
